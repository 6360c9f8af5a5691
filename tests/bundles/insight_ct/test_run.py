"""The bundle as a user runs it: features of a phantom, training from yes/no labels, scored masks out."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.commands.features import features
from common.commands.phantom import phantom_dataset
from common.features import FeatureStore
from common.metrics import dice
from tests.bundles.conftest import infer, infer_beside_a_broken_scan, read_json, run_bundle, shuffled_copy, volumes

BUNDLE = "insight_ct"
SMALL = {"zoom": 2.0}  # features of slices twice as large take a quarter of the time of the demo's, four times as large


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A phantom with its features."""
    data = phantom_dataset(tmp_path_factory.mktemp("data"))
    features(BUNDLE, str(data), configs=["inference.json", "phantom.json"], progress=False, **SMALL)
    return data


def entries(data: Path) -> dict[str, int]:
    """When each entry of the store was written."""
    found = FeatureStore(data / "features").entries()
    return {entry.folder.name: (entry.folder / "entry.json").stat().st_mtime_ns for entry in found}


@pytest.fixture(scope="module")
def shuffled(data, tmp_path_factory) -> Path:
    """The same phantom and features with every mask's voxels elsewhere in their slices."""
    return shuffled_copy(data, tmp_path_factory.mktemp("shuffled") / "shuffled")


def train(data: Path, output: Path, *more: str, **overrides: object) -> Path:
    configs = ["train.json", "phantom.json", *more]
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, **SMALL | overrides)
    return output


def weights(training: Path) -> dict[str, torch.Tensor]:
    return torch.load(training / "model.pt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of a training with the demo's settings, but smaller and shorter."""
    before = entries(data)
    output = train(data, tmp_path_factory.mktemp("training"), max_epochs=5)
    assert entries(data) == before
    return output


@pytest.fixture(scope="module")
def evaluation(data, trained, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("evaluation")
    before = entries(data)
    configs = ["inference.json", "evaluate.json", "phantom.json"]
    options = {"ckpt": trained / "model.pt", "store_dir": data / "features", "baseline_thresholds": [1.4, 1.3]}
    run_bundle(BUNDLE, configs, dataset_dir=data, output_dir=output, **options, **SMALL)
    return read_json(output / "summary.json") | {"output": output, "computed": set(entries(data)) - set(before)}


def test_masks_beat_the_empty_mask_and_the_threshold(evaluation):
    assert evaluation["dice"]["mean"] > evaluation["dice_empty"]["mean"] + 0.2
    assert evaluation["dice"]["mean"] > evaluation["dice_baseline_threshold"]["mean"]


def test_what_the_features_command_computed_is_found_by_training_and_by_evaluation(evaluation, trained, data):
    assert len(entries(data)) == len(list(data.glob("*/flair.nii.gz")))
    record = read_json(data / "features" / "features.json")  # of the last extraction, that of validation
    validation = [case["case"] for case in read_json(data / "datalist.json")["validation"]]
    assert sorted(record["found"]) == sorted(validation)
    assert record["computed"] == []
    assert not evaluation["computed"]


def test_weights_kept_are_those_of_the_best_epoch_and_hold_no_encoder(trained):
    with open(trained / "training_log.csv", encoding="utf-8") as file:
        reached = [float(row["auc"]) for row in csv.DictReader(file)]
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert checkpoint["best"] == pytest.approx(max(reached), abs=1e-4)
    state = torch.load(trained / "model.pt", weights_only=True)
    assert {key.split(".")[0] for key in state} == {"head", "encoder_fingerprint"}
    assert (trained / "model.pt").stat().st_size < 2**20


SHORT = {"max_epochs": 1, "bags_per_epoch": 32}


def test_training_never_sees_where_in_a_slice_the_mask_is(data, shuffled, tmp_path):
    one, other = (weights(train(place, tmp_path / place.name, **SHORT)) for place in (data, shuffled))
    assert equal(one, other)


def test_a_second_stage_learns_from_the_firsts_pseudo_masks_and_never_from_masks(data, shuffled, trained, tmp_path):
    taught = weights(trained)
    options = {"teacher_ckpt": trained / "model.pt", "threshold": 0.2}
    student = train(data, tmp_path / "student", "train_refine.json", max_epochs=4, **options)
    with open(student / "training_log.csv", encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])
    assert float(log[-1]["auc"]) > 0.9
    learned = weights(student)
    assert learned.keys() == taught.keys()
    assert torch.equal(learned["encoder_fingerprint"], taught["encoder_fingerprint"])
    options |= SHORT
    learned = weights(train(data, tmp_path / "short", "train_refine.json", **options))
    assert equal(weights(train(shuffled, tmp_path / "of_shuffled", "train_refine.json", **options)), learned)
    taught["head.detection.9.bias"] -= 100.0  # a teacher that marks nothing
    torch.save(taught, tmp_path / "teacher.pt")
    options["teacher_ckpt"] = tmp_path / "teacher.pt"
    assert not equal(weights(train(data, tmp_path / "of_another", "train_refine.json", **options)), learned)


def test_a_second_stage_that_draws_learns_from_pseudo_masks_alone_and_marks_what_is_ill(
    data, shuffled, trained, tmp_path
):
    configs = ["train_refine.json", "train_draw.json"]
    options = {"teacher_ckpt": trained / "model.pt", "threshold": 0.2, "slice_size": [64, 64], "slices_per_epoch": 96}
    options |= {"cache_dir": tmp_path / "cache", "val_interval": 4}  # what is made of masks has its own entries
    drawn = train(data, tmp_path / "drawn", *configs, max_epochs=4, **options)
    assert read_json(drawn / "model.json")["trained"]["map_width"] == 32
    out = tmp_path / "scores"
    run_bundle(
        BUNDLE,
        ["inference.json", "evaluate.json", "phantom.json"],
        **{"dataset_dir": data, "output_dir": out, "ckpt": drawn / "model.pt", "baseline_thresholds": [1.4, 1.3]},
        **{"threshold": 0.5, "refine": "null"},
    )
    scores = read_json(out / "summary.json")
    assert scores["dice"]["mean"] > scores["dice_empty"]["mean"] + 0.1  # 48 steps
    options |= {"max_epochs": 1, "slices_per_epoch": 16}
    one, other = (weights(train(place, tmp_path / place.name, *configs, **options)) for place in (data, shuffled))
    assert equal(one, other)


def test_one_bad_scan_is_named_and_the_others_are_as_in_evaluation(evaluation, data, trained, tmp_path):
    """Inference from the bundle's root, without a store, on two cases and a broken one."""
    tested = sorted(volumes(evaluation["output"]))[:2]
    out = infer_beside_a_broken_scan(BUNDLE, data, tested, trained / "model.pt", tmp_path, **SMALL)
    for case in tested:
        # Features in the store are float16, which may tip a voxel over the threshold.
        assert dice(volumes(out)[case], volumes(evaluation["output"])[case]) >= 0.98
    with open(out / "predictions.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == tested


def test_the_organs_mask_is_taken_from_its_file(data, trained, tmp_path):
    """With nothing but the organ to bound it, the mask is the organ's."""
    case = read_json(data / "datalist.json")["test"][0]["case"]
    shutil.copytree(data / case, tmp_path / "data" / case)
    image = nib.load(data / case / "flair.nii.gz")
    organ = np.zeros(image.shape, np.uint8)
    organ[20:37, 25:44, 3:9] = 1
    nib.save(nib.Nifti1Image(organ, image.affine), tmp_path / "data" / case / "lung.nii.gz")
    everything = {"threshold": "-1.0", "gate": "0.0", "refine": "null", "check_range": "false"}
    infer(
        BUNDLE, tmp_path / "data", trained / "model.pt", tmp_path, lung_pattern="*/lung.nii.gz", **everything, **SMALL
    )
    np.testing.assert_array_equal(nib.load(tmp_path / f"{case}_seg.nii.gz").get_fdata(), organ)
    with open(tmp_path / "predictions.csv", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row["warnings"].startswith("organ of 87 ml, in training ")  # as model.json beside the weights says


def test_weights_of_another_encoder_are_refused(data, trained, tmp_path):
    done = infer(BUNDLE, data, trained / "model.pt", tmp_path, check=False, stride="4", **SMALL)
    assert done.returncode != 0
    assert "these weights were trained on features of another encoder" in done.stderr, done.stderr[-2000:]
