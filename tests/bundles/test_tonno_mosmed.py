"""The bundle as a user runs it: a phantom in, training from yes/no labels of stacks of slices, scored masks out."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.demo import phantom_dataset, run_bundle
from common.phantom import write_phantom

from .conftest import REPOSITORY, infer, read_json, shuffle_within_slices

BUNDLE = "tonno_mosmed"
ROOT = REPOSITORY / "bundles" / BUNDLE


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"), cases=40)


def train(data: Path, output: Path, **overrides) -> Path:
    settings = {"dataset_dir": str(data), "output_dir": str(output), "progress": False} | overrides
    run_bundle(BUNDLE, ["train.json", "phantom.json"], **settings)
    return output


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of a training with the demo's settings."""
    return train(data, tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def evaluation(data, trained, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("evaluation")
    run_bundle(
        BUNDLE,
        ["evaluate.json", "phantom.json"],
        dataset_dir=str(data),
        output_dir=str(output),
        ckpt=str(trained / "model.pt"),
        intensities=[1.4, 1.3],
        progress=False,
    )
    return read_json(output / "summary.json") | {"output": output}


def test_masks_beat_the_empty_mask_and_the_threshold(evaluation):
    assert evaluation["dice"]["mean"] > evaluation["dice_empty"]["mean"] + 0.2
    assert evaluation["dice"]["mean"] > evaluation["dice_baseline_threshold"]["mean"]


def test_components_and_volumes_are_scored_beside_the_rivals(evaluation):
    volumes = read_json(evaluation["output"] / "volumes.json")
    assert set(volumes) == {"method", "threshold", "gated"}
    assert volumes["method"]["f1"]["mean"] > volumes["threshold"]["f1"]["mean"]
    assert volumes["method"]["dice"]["mean"] == pytest.approx(evaluation["dice"]["mean"], abs=1e-3)


def test_one_bad_scan_is_named_and_the_others_are_as_in_evaluation(evaluation, data, trained, tmp_path):
    """Inference from the bundle's root, on two cases and a broken one."""
    tested = sorted(path.name.removesuffix("_seg.nii.gz") for path in evaluation["output"].glob("*_seg.nii.gz"))[:2]
    for case in tested:
        shutil.copytree(data / case, tmp_path / "data" / case)
    broken = tmp_path / "data" / "broken" / "flair.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes((data / tested[0] / "flair.nii.gz").read_bytes()[:2000])
    out = tmp_path / "out"
    done = infer(BUNDLE, tmp_path / "data", trained / "model.pt", out, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "1 of 3 cases failed" in done.stderr
    assert "broken" in done.stderr
    for case in tested:
        image = nib.load(data / case / "flair.nii.gz")
        for name in ("seg", "heatmap"):
            written = nib.load(out / f"{case}_{name}.nii.gz")
            assert written.shape == image.shape
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        expected = nib.load(evaluation["output"] / f"{case}_seg.nii.gz").get_fdata()
        np.testing.assert_array_equal(nib.load(out / f"{case}_seg.nii.gz").get_fdata(), expected)
    with open(out / "predictions.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == tested


def test_training_never_sees_where_in_a_slice_the_mask_is(tmp_path):
    data = phantom_dataset(tmp_path / "data", cases=8)
    states = []
    for name in ("as_is", "shuffled"):
        copy = tmp_path / name
        for case in sorted(path.parent for path in data.glob("*/flair.nii.gz")):
            shutil.copytree(case, copy / case.name)
        shutil.copy(data / "datalist.json", copy)
        if name == "shuffled":
            for path in copy.glob("*/mask.nii.gz"):
                shuffle_within_slices(path)
        train(copy, tmp_path / f"{name}_run", max_epochs=1, volumes_per_epoch=32, size=32, val_interval=2)
        states.append(torch.load(tmp_path / f"{name}_run" / "model.pt", weights_only=True))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "radon"}, "method must be one of"),
        ({"cam_layer": "4"}, "cam_layer 4 does not exist: Classifier has 3 stages"),
        ({"backbone": "resnet10"}, "does not fit the network Classifier"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, overrides, message):
    write_phantom(tmp_path / "data", cases=1)
    ckpt = ROOT / "models" / "model.pt"
    done = infer(BUNDLE, tmp_path / "data", ckpt, tmp_path / "out", names=("inference",), check=False, **overrides)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr[-2000:]
