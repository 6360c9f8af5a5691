"""The paper's preset from the folder that its data's owners publish to scored masks, on few small scans."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.commands.prepare import prepare
from tests.bundles.conftest import read_json, run_bundle, volumes

BUNDLE = "ensemble_gradcam_brats"
SHAPE, CROP = (48, 40, 10), (32, 32, 8)
BOX = tuple(slice((n - c) // 2, (n - c) // 2 + c) for n, c in zip(SHAPE, CROP, strict=True))
SMALL = {
    "members": [{"backbone": "resnet10", "width": 0.25}, {"backbone": "resnet10", "width": 0.5}],
    "organ_options": {"size": list(CROP)},
    "window": list(CROP[:2]),
}


def write_brats(root: Path, patients: int = 6) -> None:
    """`MICCAI_BraTS2020_TrainingData`: tumor fills 4.6 % of the crop, and is bright in FLAIR alone."""
    for number in range(patients):
        name = f"BraTS20_Training_{number:03d}"
        rng = np.random.default_rng(number)
        truth = np.zeros(SHAPE, np.uint8)
        x, y = rng.integers((10, 6), (26, 22))
        truth[x : x + 12, y : y + 10, 3:6] = 4
        truth[x : x + 8, y + 10, 3:5] = 2
        truth[0:6, 0:5, 4] = 1  # beyond the crop, where the paper does not look
        (root / name).mkdir(parents=True)
        for modality in ("t1", "t2", "t1ce", "flair"):
            image = rng.uniform(50, 100, SHAPE) + 120 * (truth > 1) * (modality == "flair")
            image[24, 34] = 220  # what is brightest in every slice, tumor or not
            nib.save(affine_like_brats(image.astype(np.float32)), root / name / f"{name}_{modality}.nii")
        nib.save(affine_like_brats(truth), root / name / f"{name}_seg.nii")


def affine_like_brats(volume: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("brats")
    write_brats(data)
    prepare("brats2020", str(data), modalities="t1ce,t2,flair", binary=True, fractions=(0.5, 0.17, 0.33))
    training = {"max_epochs": 1, "batch_size": 8, "output_dir": data / "runs"}
    run_bundle(BUNDLE, ["train.json", "paper.json"], dataset_dir=data, **SMALL, **training)
    configs = ["inference.json", "evaluate.json", "paper.json"]
    scoring = {"dataset_dir": data, "ckpt": data / "runs" / "model.pt", "baseline_openings_mm": []}
    run_bundle(BUNDLE, [*configs, "search.json"], output_dir=data / "search", **SMALL, **scoring)
    chosen = str(data / "search" / "calibrated.json")
    run_bundle(BUNDLE, [*configs, chosen], output_dir=data / "out", **SMALL, **scoring)
    return data


def test_the_empty_mask_scores_what_it_does_in_the_paper(run):
    truths = [nib.load(path).get_fdata()[BOX] > 0 for path in run.glob("*/*_seg.nii")]
    assert np.mean(truths) == pytest.approx(0.046, abs=5e-4)
    pooled = read_json(run / "out" / "summary.json")["pooled"]
    assert pooled["empty"]["miou"] == pytest.approx(0.477, abs=1e-3)
    assert pooled["empty"]["paper_dsc"] == pytest.approx(0.646, abs=1e-3)
    assert {"baseline_resnet10", "baseline_resnet10_2"} <= pooled.keys()  # two members of one backbone
    assert {"baseline_or", "baseline_and", "baseline_min", "baseline_max"} <= pooled.keys()


def test_thresholds_are_fitted_by_miou_within_the_crop(run):
    with open(run / "search" / "search.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["training_miou"]) >= 0.476 for row in rows)  # the highest threshold leaves an empty mask


def test_the_baseline_sees_flair_in_its_own_units(run):
    """Tumor is brighter than all else in FLAIR; the two images before it do not show it."""
    assert read_json(run / "out" / "summary.json")["dice_baseline_threshold"]["mean"] > 0.9


def test_masks_lie_in_the_crop_on_the_scans_grids(run):
    masks = volumes(run / "out")
    assert len(masks) == 2
    for mask in masks.values():
        assert mask.shape == SHAPE
        assert set(np.unique(mask)) <= {0, 1}
        outside = mask.copy()
        outside[BOX] = 0
        assert not outside.any()
