"""The bundle as a user runs it: a phantom in, training from yes/no labels, scored masks out."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from common.commands.phantom import phantom_dataset
from common.commands.run import run_bundle
from tests.bundles.conftest import REPOSITORY, infer, monai_bundle, read_json, shuffle_within_slices

BUNDLE = "gp_unet_brats"
ROOT = REPOSITORY / "bundles" / BUNDLE


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of a training with the demo's settings."""
    output = tmp_path_factory.mktemp("training")
    run_bundle(BUNDLE, ["train.json", "phantom.json"], dataset_dir=str(data), output_dir=str(output), progress=False)
    return output


@pytest.fixture(scope="module")
def evaluation(data, trained, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("evaluation")
    run_bundle(
        BUNDLE,
        ["inference.json", "evaluate.json", "phantom.json"],
        dataset_dir=str(data),
        output_dir=str(output),
        ckpt=str(trained / "model.pt"),
        progress=False,
    )
    return read_json(output / "summary.json") | {"output": output}


@pytest.fixture(scope="module")
def inference(data, trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("inference")
    infer(BUNDLE, data, trained / "model.pt", output)
    return output


def test_masks_beat_the_empty_mask_and_the_threshold(evaluation):
    assert evaluation["dice"]["mean"] > evaluation["dice_empty"]["mean"] + 0.2
    assert evaluation["dice"]["mean"] > evaluation["dice_baseline_threshold"]["mean"]


def test_slices_are_told_apart_better_than_by_their_position(evaluation):
    assert evaluation["slices"]["auc"] > 0.9
    assert evaluation["slices"]["auc"] > evaluation["slices"]["auc_position_alone"]


def test_scores_are_those_of_the_written_masks(evaluation, data):
    with open(evaluation["output"] / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == evaluation["cases"]
    for row in rows:
        pred = nib.load(evaluation["output"] / f"{row['case']}_seg.nii.gz").get_fdata() > 0
        truth = nib.load(data / row["case"] / "mask.nii.gz").get_fdata() > 0
        total = pred.sum() + truth.sum()
        expected = 2 * (pred & truth).sum() / total if total else 1.0
        assert float(row["dice"]) == pytest.approx(expected, abs=1e-3)


def test_every_case_gets_heatmap_mask_and_picture_on_its_own_grid(inference, data):
    cases = sorted(path.parent.name for path in data.glob("*/flair.nii.gz"))
    for case in cases:
        image = nib.load(data / case / "flair.nii.gz")
        seg = nib.load(inference / f"{case}_seg.nii.gz")
        heatmap = nib.load(inference / f"{case}_heatmap.nii.gz")
        for written in (seg, heatmap):
            assert written.shape == image.shape
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        assert set(np.unique(seg.dataobj)) <= {0, 1}
        assert heatmap.get_data_dtype() == np.float32
        assert Image.open(inference / f"{case}_montage.png").mode == "RGB"
    with open(inference / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == cases
    assert {"probability_none", "probability_tumor", "threshold", "volume_ml", "seconds"} <= set(rows[0])


def test_inference_from_the_bundles_root_writes_the_same(inference, data, trained, tmp_path):
    infer(BUNDLE, data, trained / "model.pt", tmp_path, cwd=ROOT)
    for path in inference.glob("*_seg.nii.gz"):
        np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(tmp_path / path.name).get_fdata())


def test_inference_and_evaluation_give_the_same_masks(inference, evaluation):
    for path in evaluation["output"].glob("*_seg.nii.gz"):
        np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(inference / path.name).get_fdata())


def test_training_never_sees_where_in_a_slice_the_mask_is(data, tmp_path):
    states = []
    for name, shuffle in (("as_is", False), ("shuffled", True)):
        copy = shutil.copytree(data, tmp_path / name)
        if shuffle:
            for path in copy.glob("*/mask.nii.gz"):
                shuffle_within_slices(path)
        monai_command("prepare", "folder", str(copy), "--fractions", "(0.5,0.2,0.3)")
        output = tmp_path / f"{name}_run"
        run_bundle(
            BUNDLE,
            ["train.json", "phantom.json"],
            dataset_dir=str(copy),
            output_dir=str(output),
            max_epochs=1,
            progress=False,
        )
        states.append(torch.load(output / "model.pt", weights_only=True))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def monai_command(*arguments: str) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "common", *arguments], check=True, cwd=REPOSITORY)


def test_interrupted_training_goes_on_after_its_last_epoch(data, tmp_path):
    for epochs in (1, 2):
        run_bundle(
            BUNDLE,
            ["train.json", "phantom.json"],
            dataset_dir=str(data),
            output_dir=str(tmp_path),
            max_epochs=epochs,
            lr_scheduler={"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0},
            progress=False,
        )
    with open(tmp_path / "training_log.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_second_stage_learns_from_the_first(data, trained, tmp_path):
    run_bundle(
        BUNDLE,
        ["train.json", "phantom.json", "train_refine.json"],
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        teacher_ckpt=str(trained / "model.pt"),
        max_epochs=8,
        val_interval=1,
        progress=False,
    )
    with open(tmp_path / "training_log.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < 0.7 * float(rows[0]["loss"])
    assert float(rows[-1]["auc"]) > 0.7


def test_one_bad_scan_is_named_and_the_others_are_written(data, trained, tmp_path):
    mixed = tmp_path / "mixed"
    for case in ("phantom_000", "phantom_001", "phantom_002"):
        shutil.copytree(data / case, mixed / case)
    whole = (mixed / "phantom_001" / "flair.nii.gz").read_bytes()
    (mixed / "phantom_001" / "flair.nii.gz").write_bytes(whole[: len(whole) // 2])
    image = nib.load(mixed / "phantom_002" / "flair.nii.gz")
    broken = image.get_fdata()
    broken[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(broken, image.affine), mixed / "phantom_002" / "flair.nii.gz")
    done = infer(BUNDLE, mixed, trained / "model.pt", tmp_path / "out", check=False)
    assert done.returncode != 0
    assert "2 of 3 cases failed" in done.stderr
    assert "phantom_001" in done.stderr
    assert "holds NaN or infinite values" in done.stderr
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").exists()
    assert not list((tmp_path / "out").glob("phantom_001*"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_pattern": "*/t1.nii.gz"}, "no file matches '\\*/t1.nii.gz'"),
        ({"ckpt": "nowhere.pt"}, "no weights at nowhere.pt"),
        ({"channels": "2"}, "does not fit the network GPUNet"),
        ({"organ": "liver"}, "organ must be one of"),
    ],
)
def test_wrong_settings_are_explained(data, trained, tmp_path, overrides, message):
    done = infer(BUNDLE, data, trained / "model.pt", tmp_path, check=False, **overrides)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_cuda_is_explained(data, trained, tmp_path):
    done = infer(BUNDLE, data, trained / "model.pt", tmp_path, check=False, device="cuda:0")
    assert done.returncode != 0
    assert "use --device cpu" in done.stderr


def test_weights_of_another_architecture_are_refused_by_name(data, trained, tmp_path):
    done = monai_bundle(
        *("run", "--config_file", str(ROOT / "configs" / "inference.json"), "--dataset_dir", str(data)),
        *("--output_dir", str(tmp_path), "--ckpt", str(trained / "model.pt")),
        check=False,
    )
    assert done.returncode != 0
    assert "does not fit the network GPEfficientNet" in done.stderr
