"""The paper's preset from the folder that its data's owners publish to scored masks, on few small scans."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.commands.prepare import prepare
from tests.bundles.conftest import read_json, run_bundle, volumes

BUNDLE = "gp_unet_brats"
SMALL = {"network_options": {"features": [4, 8, 16]}}


def write_brats(root: Path, patients: int = 8) -> None:
    """`MICCAI_BraTS2020_TrainingData` of 32×32×6 voxels: slice 0 is empty, slices 2 and 3 hold tumor."""
    grades = ["Grade,BraTS_2020_subject_ID"]
    for number in range(patients):
        name = f"BraTS20_Training_{number:03d}"
        rng = np.random.default_rng(number)
        truth = np.zeros((32, 32, 6), np.uint8)
        truth[8:20, 10:22, 2:4] = 4
        (root / name).mkdir(parents=True)
        for modality in ("t1", "t2", "t1ce", "flair"):
            image = rng.uniform(50, 100, truth.shape) + 80 * (truth > 0)
            image[..., 0] = 0
            save(root / name / f"{name}_{modality}.nii", image.astype(np.float32))
        save(root / name / f"{name}_seg.nii", truth)
        grades.append(f"{('LGG', 'HGG')[number % 2]},{name}")
    (root / "name_mapping.csv").write_text("\n".join(grades))


def save(path: Path, volume: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("brats")
    write_brats(data)
    prepare("brats2020", str(data), fractions=(0.5, 0.25, 0.25))
    training = {"max_epochs": 2, "batch_size": 8, "slice_size": [32, 32], "output_dir": data / "runs"}
    run_bundle(BUNDLE, ["train.json", "paper.json"], dataset_dir=data, **SMALL, **training)
    configs = ["inference.json", "evaluate.json", "paper.json", "paper_scores.json"]
    scoring = {"ckpt": data / "runs" / "model.pt", "output_dir": data / "out"}
    run_bundle(BUNDLE, configs, dataset_dir=data, offsets=[0.0, 0.3], **SMALL, **scoring)
    return data


def test_epochs_are_compared_by_median_validation_loss(run):
    with open(run / "runs" / "training_log.csv", encoding="utf-8") as file:
        losses = [float(row["median_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2
    assert max(losses) < 0
    assert read_json(run / "runs" / "model.json")["trained"]["backbone"] == "gp_unet"


def test_slices_are_scored_by_grade_without_the_empty_ones(run):
    scores = read_json(run / "out" / "class_scores.json")
    with open(run / "out" / "class_slices.csv", encoding="utf-8") as file:
        slices = [row["slice"] for row in csv.DictReader(file)]
    assert set(slices) == set("12345")
    assert scores["slices"] == len(slices) == 10
    assert scores["masks"]["all"]["slices"] == 4
    assert {"LGG", "HGG"} & scores["masks"].keys()


def test_masks_lie_where_the_scans_are_and_hold_grades(run):
    masks = volumes(run / "out")
    assert masks
    for mask in masks.values():
        assert mask.shape == (32, 32, 6)
        assert set(np.unique(mask)) <= {0, 1, 2}
