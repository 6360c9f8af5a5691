"""The paper's preset from the folder that its data's owners publish to scored masks, on few small scans."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from common.commands.prepare import prepare
from tests.bundles.conftest import read_json, run_bundle, volumes
from tests.running import REPOSITORY

BUNDLE = "gp_unet_brats"
SCORING = ["inference.json", "evaluate.json", "paper.json", "paper_scores.json"]
SMALL = {"network_options": {"features": [4, 8, 16]}}


def write_brats(root: Path, patients: int = 8) -> None:
    """`MICCAI_BraTS2020_TrainingData` of 32×32×6 voxels: slice 0 is empty, slices 2 and 3 hold tumor.

    It is bright in T2 and FLAIR, and where the grade is high in T1ce, too.
    """
    grades = ["Grade,BraTS_2020_subject_ID"]
    for number in range(patients):
        name = f"BraTS20_Training_{number:03d}"
        rng = np.random.default_rng(number)
        truth = np.zeros((32, 32, 6), np.uint8)
        truth[8:20, 10:22, 2:4] = 4
        (root / name).mkdir(parents=True)
        for modality in ("t1", "t2", "t1ce", "flair"):
            bright = modality in (("t2", "flair"), ("t2", "flair", "t1ce"))[number % 2]
            image = rng.uniform(50, 100, truth.shape) + 300 * bright * (truth > 0)
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
    training = {"max_epochs": 40, "batch_size": 8, "slice_size": [32, 32], "output_dir": data / "runs"}
    training |= {"learning_rate": 0.003, "dropout": 0.0}  # 60 steps have to do
    run_bundle(BUNDLE, ["train.json", "paper.json"], dataset_dir=data, **SMALL, **training)
    scoring = {"ckpt": data / "runs" / "model.pt", "output_dir": data / "out", "section": "validation"}
    run_bundle(BUNDLE, SCORING, dataset_dir=data, offsets=[0.0, 0.3], **SMALL, **scoring)
    return data


def test_epochs_are_compared_by_median_validation_loss(run):
    with open(run / "runs" / "training_log.csv", encoding="utf-8") as file:
        losses = [float(row["median_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 40
    assert max(losses) < 0
    assert max(losses) > losses[0] + 0.5  # the metric is minus the loss
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
    masks, heats = volumes(run / "out"), volumes(run / "out", "heatmap")
    assert len(masks) == 2
    assert any(mask.any() for mask in masks.values())
    for case, mask in masks.items():
        assert mask.shape == (32, 32, 6)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert heats[case].min() == 0
        assert heats[case].std() > 0


def test_masks_are_scored_beside_baselines_and_offsets_are_swept(run):
    """Divided by their own maximum, slices without tumor are as bright as tumor: the threshold is no more than fair."""
    summary = read_json(run / "out" / "summary.json")
    assert summary["dice_empty"]["mean"] == 0
    assert 0.3 < summary["dice_baseline_threshold"]["mean"] < summary["slice_dice_baseline_threshold"]["mean"]
    assert {"dice_baseline_gated", "dice_baseline_opened", "dice_baseline_opened_gated"} <= summary.keys()
    with open(run / "out" / "offset_sweep.csv", encoding="utf-8") as file:
        assert [float(row["offset"]) for row in csv.DictReader(file)] == [0.0, 0.3]


def test_offsets_are_not_swept_on_test_patients(run, tmp_path):
    settings = {"ckpt": run / "runs" / "model.pt", "output_dir": tmp_path, "baseline_thresholds": [0.5, 0.5]}
    done = run_bundle(BUNDLE, SCORING, dataset_dir=run, offsets=[0.0, 0.3], check=False, **SMALL, **settings)
    assert done.returncode != 0
    assert "say --section validation" in done.stderr
    assert not list(tmp_path.glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("backbone", "offset"),
    [("gp_unet", 0.3), ("gp_shuffle_unet", 1.6), ("gp_recon_resnet", 0.1), ("gp_efficientnet", 0.0)],
)
def test_the_offset_is_the_papers_for_each_network(backbone, offset):
    parser = ConfigParser()
    parser.read_config(
        [REPOSITORY / "bundles" / BUNDLE / "configs" / name for name in ("inference.json", "paper.json")]
    )
    assert parser["backbone"] == "gp_unet"
    parser["backbone"] = backbone
    assert parser.get_parsed_content("offset") == offset


@pytest.fixture(scope="module")
def by_slice(tmp_path_factory) -> Path:
    """The paper's split, by one command, and its preset on it."""
    root, data = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("slices")
    write_brats(root)
    prepare("brats2020", str(root), dataset_dir=str(data), split="paper")
    training = {"max_epochs": 2, "batch_size": 8, "slice_size": [32, 32], "output_dir": data / "runs"}
    run_bundle(BUNDLE, ["train.json", "paper.json"], dataset_dir=data, **SMALL, **training)
    scoring = {"ckpt": data / "runs" / "model.pt", "output_dir": data / "out", "baseline_thresholds": [0.5, 0.5]}
    run_bundle(BUNDLE, SCORING, dataset_dir=data, **SMALL, **scoring)
    return data


def test_papers_split_draws_slices_of_volumes_with_their_grades(by_slice):
    content = read_json(by_slice / "datalist.json")
    assert (content["split"], content["classes"]) == ("paper", ["healthy", "LGG", "HGG"])
    cases = [case for section in ("training", "validation", "test") for case in content[section]]
    assert len(cases) == 8 * 5  # slice 0 is empty
    grades = {case["case"]: case["cls"] for case in cases}
    assert all(grades[f"BraTS20_Training_{n:03d}_s002"] == [1 + n % 2] for n in range(8))
    assert sorted(grades.values()) == [[0]] * 24 + [[1]] * 8 + [[2]] * 8
    whose = [{case["patient"] for case in content[section]} for section in ("training", "test")]
    assert len(whose[0] & whose[1]) > 2  # what makes it memory


def test_papers_split_is_scored_by_slice_and_by_the_true_patient(by_slice):
    scores = read_json(by_slice / "out" / "class_scores.json")
    tested = read_json(by_slice / "datalist.json")["test"]
    with open(by_slice / "out" / "class_slices.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"]: row["patient"] for row in rows} == {case["case"]: case["patient"] for case in tested}
    assert {row["case"]: [int(row["class"])] for row in rows} == {case["case"]: case["cls"] for case in tested}
    assert all(case["case"].startswith(f"{case['patient']}_s") for case in tested)
    assert scores["slices"] == len(tested) == 10
    labels = [cls for case in tested for cls in case["cls"]]
    assert np.sum(scores["confusion"], axis=1).tolist() == [labels.count(k) for k in range(3)]
    for name in ("class_scores.json", "labels.json", "summary.json"):
        assert "scores are of memory" in read_json(by_slice / "out" / name)["note"]
