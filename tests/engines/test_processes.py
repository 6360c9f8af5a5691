"""`torchrun` with two processes on a CPU: training, evaluation and inference end as with one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.commands.phantom import phantom_dataset
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json

CONFIGS = "bundles/gp_unet_brats/configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten phantom volumes, three of them for the test; another one beside them is not readable."""
    return phantom_dataset(tmp_path_factory.mktemp("data"), cases=10)


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "-m", "monai.bundle", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run(*names: str, **overrides: object) -> list[str]:
    files = str([f"{CONFIGS}/{name}.json" for name in names])
    overrides = {"device": "cpu", "progress": False} | overrides
    return ["run", "--config_file", files, *(str(part) for k, v in overrides.items() for part in (f"--{k}", v))]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of an epoch trained by two processes."""
    output = tmp_path_factory.mktemp("training")
    done = torchrun(*run("train", "phantom", "multi_gpu_train", dataset_dir=data, output_dir=output, max_epochs=1))
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_two_processes_train_one_network_and_log_once(trained):
    with open(trained / "training_log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1"]
    assert np.isfinite(float(rows[0]["loss"]))
    state = torch.load(trained / "model.pt", weights_only=True)
    assert not [key for key in state if key.startswith("module.")]


@pytest.fixture(scope="module")
def evaluations(data, trained, tmp_path_factory) -> tuple[Path, Path]:
    """The same evaluation, of all cases, by one process and by two."""
    options = {"dataset_dir": data, "ckpt": trained / "model.pt", "section": "training+validation+test"}
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:  # threads change the order of sums, and with it the last digit
        patch.setenv("OMP_NUM_THREADS", "1")
        monai_bundle(*run("inference", "evaluate", "phantom", output_dir=one, **options))
    done = torchrun(*run("inference", "evaluate", "phantom", "multi_gpu_evaluate", output_dir=two, **options))
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


def test_two_processes_score_as_one(evaluations):
    one, two = evaluations
    assert read_json(two / "summary.json") == read_json(one / "summary.json")
    for name in ("metrics.csv", "slices.csv"):
        assert (two / name).read_text() == (one / name).read_text()


def test_outputs_of_two_processes_are_those_of_one_and_merged_once(evaluations):
    one, two = evaluations
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for path in one.glob("*.nii.gz"):
        np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(two / path.name).get_fdata())
    tables = []
    for folder in (one, two):
        with open(folder / "predictions.csv") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 10


def test_a_bad_scan_of_one_process_is_named_and_the_table_holds_the_others(data, trained, tmp_path):
    for number, name in enumerate(sorted(path.name for path in data.iterdir() if path.is_dir())[:3]):
        (tmp_path / "in" / name).mkdir(parents=True)
        whole = (data / name / "flair.nii.gz").read_bytes()
        (tmp_path / "in" / name / "flair.nii.gz").write_bytes(whole[: len(whole) // 2] if number == 1 else whole)
    options = {"dataset_dir": tmp_path / "in", "ckpt": trained / "model.pt", "output_dir": tmp_path / "out"}
    done = torchrun(*run("inference", "phantom", "multi_gpu_evaluate", **options))
    assert done.returncode != 0
    assert "1 of 3 cases failed" in done.stderr
    with open(tmp_path / "out" / "predictions.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_000", "phantom_002"]


def test_more_processes_than_cases_are_refused(data, trained, tmp_path):
    options = {"dataset_dir": data, "ckpt": trained / "model.pt", "output_dir": tmp_path, "image_pattern": "*_000/f*"}
    done = torchrun(*run("inference", "phantom", "multi_gpu_evaluate", **options))
    assert done.returncode != 0
    assert "2 processes for 1 case(s): start at most 1" in done.stderr
