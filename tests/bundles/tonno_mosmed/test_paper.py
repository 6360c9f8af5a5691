"""The paper's preset from the folder that its data's owners publish to scored masks, on few small scans.

Timm's network is a stand-in: what is tested is that weights are asked for, found and used, and all that follows.
"""

from __future__ import annotations

import csv
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch

from common.commands.prepare import prepare
from tests.bundles.conftest import read_json, volumes
from tests.bundles.mosmed import SHAPE, run_with_modules, write_mosmed

TRAINING = ("train.json", "mosmed.json", "paper.json")
SCORING = ("inference.json", "evaluate.json", "mosmed.json", "paper.json")
SMALL = {"size": 32, "max_epochs": 1, "volumes": 4, "planes": 2, "volumes_per_epoch": 8, "validation_planes": 4}
FEW = {"size": 32, "num_slices": 5, "num_directions": 6, "baseline_openings_mm": [], "min_component_ml": 0.01}
TIMM = """
import torch
from monai.networks.nets import resnet10

def create_model(name, pretrained, in_chans, num_classes):
    assert (name, pretrained, num_classes) == ("resnet10t.c3_in1k", False, 0)
    body = resnet10(spatial_dims=2, n_input_channels=in_chans, conv1_t_stride=2, widen_factor=0.25, num_classes=1)
    body.num_features, body.fc = body.fc.in_features, torch.nn.Identity()
    body.feature_info = [{"module": f"layer{i}"} for i in (1, 2, 3, 4)]
    return body
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("mosmed")
    write_mosmed(data)
    prepare("mosmed", str(data), fractions=(0.5, 0.25, 0.25), stratify=True)
    (data / "modules").mkdir()
    (data / "modules" / "timm.py").write_text(TIMM)
    timm = ModuleType("timm")
    exec(TIMM, vars(timm))
    torch.save(timm.create_model("resnet10t.c3_in1k", False, 3, 0).state_dict(), data / "resnet10t.bin")
    return data


def run(data: Path, configs: tuple[str, ...], output: Path, **more: Any) -> CompletedProcess[str]:
    settings = {"modules": data / "modules", "dataset_dir": data, "output_dir": output} | more
    return run_with_modules("tonno_mosmed", configs, **settings)


def test_frozen_norms_without_weights_end_the_run_before_anything_is_read(data, tmp_path):
    done = run(data, TRAINING, tmp_path, check=False, datalist=tmp_path / "absent.json")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "timm/resnet10t.c3_in1k has random ones: give a local file with --pretrained FILE" in last
    assert "pytorch_model.bin of huggingface.co/timm/resnet10t.c3_in1k" in last


@pytest.fixture(scope="module")
def trained(data) -> Path:
    run(data, TRAINING, data / "runs", pretrained=data / "resnet10t.bin", **SMALL)
    return data / "runs" / "model.pt"


@pytest.fixture(scope="module")
def compared(data, trained) -> Path:
    run(data, (*SCORING, "compare.json"), data / "compared", ckpt=trained, **FEW)
    return data / "compared"


def test_frozen_norms_are_those_of_the_file_and_the_rest_learned(data, trained):
    before, after = (torch.load(path, weights_only=True) for path in (data / "resnet10t.bin", trained))
    for key, value in before.items():
        frozen = "bn" in key or "downsample.1" in key
        assert torch.equal(value, after[f"body.{key}"]) is frozen or "num_batches" in key, key


def test_every_method_is_compared_and_patients_without_a_finding_count(compared):
    with open(compared / "table.csv", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    kinds = ("layercam", "three_views", "averaged_cam", "tomographic_cam")
    assert rows.keys() == {"intensity", "tonno"} | {f"{kind}@{layer}" for kind in kinds for layer in (1, 2, 3, 4)}
    assert all(0 <= float(row["balanced_accuracy_patients"]) <= 1 for row in rows.values())
    assert float(rows["intensity"]["dice"]) > 0.95  # no units but its own
    assert float(rows["intensity"]["balanced_accuracy_patients"]) == 1


def test_masks_are_cut_at_the_threshold_of_validation_and_scored_beside_the_baseline(data, trained, compared):
    chosen = compared / "calibrated.json"
    run(data, (*SCORING, str(chosen)), data / "out", ckpt=trained, **FEW)
    heats, masks = volumes(data / "out", "heatmap"), volumes(data / "out")
    assert len(masks) == 2
    for case, mask in masks.items():
        assert mask.shape == SHAPE
        assert not (mask.astype(bool) & (heats[case] <= read_json(chosen)["threshold"] - 1e-3)).any()
    assert read_json(data / "out" / "summary.json")["dice_baseline_threshold"]["mean"] > 0.95
    assert "balanced_accuracy" in read_json(data / "out" / "volumes.json")["threshold"]
