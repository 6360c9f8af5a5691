"""The bundle as a user runs it: a phantom in, training from yes/no labels of stacks of slices, scored masks out."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.commands.phantom import phantom_dataset
from common.datasets import write_phantom
from tests.bundles.conftest import (
    REPOSITORY,
    infer,
    infer_beside_a_broken_scan,
    read_json,
    run_bundle,
    shuffled_copy,
    volumes,
)

BUNDLE = "tonno_mosmed"
ROOT = REPOSITORY / "bundles" / BUNDLE
QUICK = {"num_slices": 16, "num_directions": 12}  # half the demo's time


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"), cases=28)


def train(data: Path, output: Path, *more: str, **overrides: object) -> Path:
    configs = ["train.json", "phantom.json", *more]
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, **overrides)
    return output


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of a training with the demo's settings, but shorter."""
    return train(data, tmp_path_factory.mktemp("training"), max_epochs=8, volumes_per_epoch=256)


@pytest.fixture(scope="module")
def evaluation(data, trained, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("evaluation")
    configs = ["inference.json", "evaluate.json", "phantom.json"]
    options = {"ckpt": trained / "model.pt", "baseline_thresholds": [1.4, 1.3]} | QUICK
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, **options)
    return read_json(output / "summary.json") | {"output": output}


def test_masks_beat_the_empty_mask_and_the_threshold(evaluation):
    assert evaluation["dice"]["mean"] > evaluation["dice_empty"]["mean"] + 0.2
    assert evaluation["dice"]["mean"] > evaluation["dice_baseline_threshold"]["mean"]


def test_components_and_volumes_are_scored_beside_the_baselines(evaluation):
    volumes = read_json(evaluation["output"] / "volumes.json")
    assert set(volumes) == {"method", "threshold", "gated"}
    assert volumes["method"]["f1"]["mean"] > volumes["threshold"]["f1"]["mean"]
    with open(evaluation["output"] / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ill = [float(row["dice"]) for row in rows if row["slice_dice"] != "nan"]
    assert volumes["method"]["with_lesion"] == len(ill) < len(rows)
    assert volumes["method"]["dice"]["mean"] == pytest.approx(np.mean(ill), abs=1e-3)
    assert 0 <= volumes["method"]["negatives_empty"] <= 1


def test_one_bad_scan_is_named_and_the_others_are_as_in_evaluation(evaluation, data, trained, tmp_path):
    """Inference from the bundle's root, on two cases and a broken one."""
    tested = sorted(volumes(evaluation["output"]))[:2]
    out = infer_beside_a_broken_scan(BUNDLE, data, tested, trained / "model.pt", tmp_path, **QUICK)
    for case in tested:
        np.testing.assert_array_equal(volumes(out)[case], volumes(evaluation["output"])[case])
    with open(out / "predictions.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == tested


@pytest.fixture(scope="module")
def two_truths(tmp_path_factory) -> list[Path]:
    """A small data set, and the same with every mask's voxels elsewhere in their slices."""
    root = tmp_path_factory.mktemp("truths")
    data = phantom_dataset(root / "as_is", cases=8)
    return [data, shuffled_copy(data, root / "shuffled")]


SHORT = {"max_epochs": 1, "volumes_per_epoch": 32, "size": 32, "val_interval": 2}


def test_training_never_sees_where_in_a_slice_the_mask_is(two_truths, tmp_path):
    states = [weights(train(data, tmp_path / data.name, **SHORT)) for data in two_truths]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_second_round_learns_from_heatmaps_and_never_from_masks(two_truths, trained, tmp_path):
    pseudo = tmp_path / "pseudo"
    part = {"datalist": two_truths[0] / "datalist.json", "section": "training"}
    part |= {"num_slices": 12, "num_directions": 8}  # rough maps do to learn from
    infer(BUNDLE, two_truths[0], trained / "model.pt", pseudo, **{key: str(value) for key, value in part.items()})
    heats = {path: nib.load(path) for path in pseudo.glob("*_heatmap.nii.gz")}
    threshold = float(np.quantile(np.concatenate([heat.get_fdata().ravel() for heat in heats.values()]), 0.9))
    second = {"pseudo_dir": pseudo, "threshold": threshold, "refine": None} | SHORT
    states = [weights(train(data, tmp_path / data.name, "train_refine.json", **second)) for data in two_truths]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for path, heat in heats.items():
        nib.save(nib.Nifti1Image(heat.get_fdata()[::-1].astype(np.float32), heat.affine), path)
    other = weights(train(two_truths[0], tmp_path / "other", "train_refine.json", **second))
    assert not all(torch.equal(states[0][key], other[key]) for key in other)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model.pt", weights_only=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "radon"}, "method must be one of"),
        ({"cam": "layercam", "cam_layer": "4"}, "cam_layer 4 does not exist: Classifier has 3 stages"),
        ({"backbone": "resnet10"}, "does not fit the network Classifier"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, overrides, message):
    write_phantom(tmp_path / "data", cases=1)
    ckpt = ROOT / "models" / "model.pt"
    done = infer(BUNDLE, tmp_path / "data", ckpt, tmp_path / "out", names=("inference",), check=False, **overrides)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr[-2000:]
