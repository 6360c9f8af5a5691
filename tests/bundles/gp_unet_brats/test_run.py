"""The bundle as a user runs it: a phantom in, training from yes/no labels, scored masks out."""

from __future__ import annotations

import csv
import re
import shutil
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from common.commands.phantom import phantom_dataset
from common.metrics import dice
from tests.bundles.conftest import REPOSITORY, infer, monai_bundle, read_json, run_bundle, shuffled_copy, volumes
from tests.report.conftest import embedded

BUNDLE = "gp_unet_brats"
ROOT = REPOSITORY / "bundles" / BUNDLE
# One epoch may be followed by others: the learning rate does not depend on how many are planned.
ONE_EPOCH = {
    "max_epochs": 1,
    "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0},
}
# Half the demo's channels, which train in a third of the time.
SMALL = {"network_options": {"features": [8, 16, 32], "upsample": "bilinear", "input_mean": 1.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"))


def train(data: Path, output: Path, *more: str, **overrides: object) -> Path:
    configs = ["train.json", "phantom.json", *more]
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, **SMALL | overrides)
    return output


def evaluate(data: Path, training: Path, output: Path, **overrides: object) -> dict:
    configs = ["inference.json", "evaluate.json", "phantom.json"]
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, ckpt=training / "model.pt", **SMALL | overrides)
    return read_json(output / "summary.json") | {"output": output}


def log_of(training: Path) -> list[dict[str, str]]:
    with open(training / "training_log.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of a training with the demo's settings, but smaller and shorter."""
    return train(data, tmp_path_factory.mktemp("training"), max_epochs=12)


@pytest.fixture(scope="module")
def one_epoch(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("one_epoch"), **ONE_EPOCH)


@pytest.fixture(scope="module")
def evaluation(data, trained, tmp_path_factory) -> dict:
    return evaluate(data, trained, tmp_path_factory.mktemp("evaluation"), report=True)


@pytest.fixture(scope="module")
def scans(data, tmp_path_factory) -> Path:
    """A folder with the test cases and one of training."""
    folder, datalist = tmp_path_factory.mktemp("scans"), read_json(data / "datalist.json")
    for case in (*datalist["test"], datalist["training"][0]):
        shutil.copytree(data / case["case"], folder / case["case"])
    return folder


@pytest.fixture(scope="module")
def inference(scans, trained, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("inference")
    infer(BUNDLE, scans, trained / "model.pt", output, **SMALL)
    return output


def test_a_report_tells_the_scores_and_what_they_stand_on(evaluation, trained):
    report = embedded(evaluation["output"])
    assert report["headline"]["value"] == evaluation["dice"]["mean"]
    assert "volumes" in report["cases"][0]
    told = dict(report["provenance"])
    assert told["weights (SHA-256)"] == f"model.pt {sha256((trained / 'model.pt').read_bytes()).hexdigest()}"
    assert re.fullmatch("[0-9a-f]{64}", told["config (SHA-256)"])
    assert str(trained) not in (evaluation["output"] / "report.html").read_text()


def test_masks_beat_the_empty_mask_and_the_threshold(evaluation):
    assert evaluation["dice"]["mean"] > evaluation["dice_empty"]["mean"] + 0.2
    assert evaluation["dice"]["mean"] > evaluation["dice_baseline_threshold"]["mean"]


def test_slices_are_told_apart_better_than_by_their_position(evaluation):
    assert evaluation["slices"]["auc"] > 0.9
    assert evaluation["slices"]["auc"] > evaluation["slices"]["auc_position_alone"]


def test_labels_and_masks_score_the_same_slices_those_with_brain(evaluation):
    labels, slices = read_json(evaluation["output"] / "labels.json")["slices"], evaluation["slices"]
    with open(evaluation["output"] / "slices.csv", encoding="utf-8") as file:
        scored = list(csv.DictReader(file))
    assert len(scored) == labels["positives"] + labels["negatives"] < 16 * evaluation["cases"]
    assert slices["auc"] == labels["auc"]


def test_scores_are_those_of_the_written_masks(evaluation, data):
    with open(evaluation["output"] / "metrics.csv", encoding="utf-8") as file:
        scores = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
    tested = [case["case"] for case in read_json(data / "datalist.json")["test"]]
    assert sorted(scores) == sorted(tested)
    for case, mask in volumes(evaluation["output"]).items():
        truth = nib.load(data / case / "mask.nii.gz").get_fdata()
        assert scores[case] == pytest.approx(dice(mask > 0, truth > 0), abs=1e-3)
    assert evaluation["cases"] == len(tested)


def test_every_case_gets_heatmap_mask_and_picture_on_its_own_grid(inference, scans):
    cases = sorted(path.parent.name for path in scans.glob("*/flair.nii.gz"))
    assert len(cases) == 8
    for case in cases:
        image = nib.load(scans / case / "flair.nii.gz")
        seg = nib.load(inference / f"{case}_seg.nii.gz")
        heatmap = nib.load(inference / f"{case}_heatmap.nii.gz")
        for written in (seg, heatmap):
            assert written.shape == image.shape
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        assert set(np.unique(seg.dataobj)) <= {0, 1}
        assert heatmap.get_data_dtype() == np.float32
        assert Image.open(inference / f"{case}_montage.png").mode == "RGB"
    with open(inference / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == cases
    assert {"probability_none", "probability_tumor", "threshold", "volume_ml", "seconds"} <= set(rows[0])


def test_inference_from_the_bundles_root_writes_the_same(inference, data, trained, tmp_path):
    case = next(case for case, mask in volumes(inference).items() if mask.any())
    options = SMALL | {"image_pattern": f"{case}/flair.nii.gz"}
    infer(BUNDLE, data, trained / "model.pt", tmp_path, cwd=ROOT, **options)
    for kind in ("seg", "heatmap"):
        (again,) = volumes(tmp_path, kind).values()
        np.testing.assert_array_equal(again, volumes(inference, kind)[case])


def test_inference_and_evaluation_give_the_same_masks(inference, evaluation):
    inferred, scored = volumes(inference), volumes(evaluation["output"])
    assert any(mask.any() for mask in scored.values())
    for case, mask in scored.items():
        np.testing.assert_array_equal(mask, inferred[case])


def test_training_never_sees_where_in_a_slice_the_mask_is(data, one_epoch, tmp_path):
    """Nor does what it learns depend on whether pictures are drawn meanwhile."""
    other = train(shuffled_copy(data, tmp_path / "shuffled"), tmp_path / "run", **ONE_EPOCH, report=True)
    states = [torch.load(folder / "model.pt", weights_only=True) for folder in (one_epoch, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert len(list((other / "montages").glob("*_epoch_0001.png"))) == 3
    report = embedded(other)
    assert report["supervision"][0].startswith("The network learned from yes/no labels of slices: 12 cases")
    assert [len(case["pictures"]) for case in report["training"]["montages"]] == [1, 1, 1]


def test_interrupted_training_goes_on_after_its_last_epoch(data, one_epoch, tmp_path):
    shutil.copytree(one_epoch, tmp_path / "run")
    train(data, tmp_path / "run", **ONE_EPOCH | {"max_epochs": 2})
    first, second = log_of(tmp_path / "run")
    assert [first] == log_of(one_epoch)
    assert (first["epoch"], second["epoch"]) == ("1", "2")


def test_second_stage_marks_what_the_first_stage_marks(data, trained, tmp_path):
    """Pseudo-masks alone teach it here; where the teacher marks nothing, so does the student."""
    state = torch.load(trained / "model.pt", weights_only=True)
    state["head.bias"][1] -= 1000.0
    (tmp_path / "blind").mkdir()
    torch.save(state, tmp_path / "blind" / "model.pt")
    scores = []
    for teacher, epochs in ((trained, 6), (tmp_path / "blind", 4)):
        student = tmp_path / f"student_of_{teacher.name}"
        options = {"max_epochs": epochs, "val_interval": epochs, "threshold": 0.0, "loss#classification": 0.0}
        train(data, student, "train_refine.json", teacher_ckpt=teacher / "model.pt", **options)
        scores.append(evaluate(data, student, student / "evaluation", baseline_thresholds=[1.4, 1.3]))
    seeing, blind = scores
    assert seeing["dice_raw"]["mean"] > seeing["dice_empty"]["mean"] + 0.2
    assert blind["dice_raw"]["mean"] == blind["dice_empty"]["mean"]
    log = log_of(tmp_path / f"student_of_{trained.name}")
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])
    assert float(log[-1]["auc"]) > 0.7


def test_a_volumetric_network_is_trained_by_one_key_and_its_weights_say_so(data, tmp_path):
    """So inference needs no config but its own."""
    options = {"spatial_dims": 3, "imbalance": "none", "batch_size": 2, "bag_size": 2}
    options["network_options"] = {"features": [4, 8, 16], "upsample": "bilinear", "input_mean": 1.0}
    train(data, tmp_path, **ONE_EPOCH | options)
    assert float(log_of(tmp_path)[0]["loss"]) > 0
    trained = read_json(tmp_path / "model.json")["trained"]
    assert (trained["spatial_dims"], trained["stack"]) == (3, 16)
    chosen = {"gate": 0.5, "gate_smooth_mm": 0.0, "binarize": "fixed", "threshold": 0.0, "refine": None}
    chosen |= {"min_volume_ml": 0.0, "image_pattern": "phantom_000/flair.nii.gz"}
    infer(BUNDLE, data, tmp_path / "model.pt", tmp_path / "out", names=["inference"], **chosen)
    (heatmap,) = volumes(tmp_path / "out", "heatmap").values()
    assert heatmap.std() > 0


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
    done = infer(BUNDLE, mixed, trained / "model.pt", tmp_path / "out", check=False, **SMALL)
    assert done.returncode != 0
    assert "2 of 3 cases failed" in done.stderr
    assert "phantom_001" in done.stderr
    assert "holds NaN or infinite values" in done.stderr
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").exists()
    assert not list((tmp_path / "out").glob("phantom_001*"))
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".cases"]  # what is finished, nothing half-written


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_pattern": "*/t1.nii.gz"}, "no file matches '\\*/t1.nii.gz'"),
        ({"ckpt": "nowhere.pt"}, "no weights at nowhere.pt"),
        ({"channels": "2"}, "does not fit the network GPUNet"),
        ({"organ": "liver"}, "organ must be one of"),
        ({"treshold": 99}, "--treshold: .*; did you mean threshold"),
    ],
)
def test_wrong_settings_are_explained_in_the_last_line(data, trained, tmp_path, overrides, message):
    done = infer(BUNDLE, data, trained / "model.pt", tmp_path, check=False, **SMALL | overrides)
    assert done.returncode != 0
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_without_cuda_is_explained(data, trained, tmp_path):
    done = infer(BUNDLE, data, trained / "model.pt", tmp_path, check=False, device="cuda:0", **SMALL)
    assert done.returncode != 0
    assert "use --device cpu" in done.stderr


def test_weights_of_another_architecture_are_refused_by_name(data, trained, tmp_path):
    shutil.copy(trained / "model.pt", tmp_path)  # without model.json, which names the network
    done = monai_bundle(
        *("run", "--config_file", str(ROOT / "configs" / "inference.json"), "--dataset_dir", str(data)),
        *("--output_dir", str(tmp_path), "--ckpt", str(tmp_path / "model.pt")),
        check=False,
    )
    assert done.returncode != 0
    assert "does not fit the network GPEfficientNet" in done.stderr
