"""Two processes on a CPU, as `torchrun` starts them: training, evaluation and inference end as with one process."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from common.commands.phantom import phantom_dataset
from common.commands.run import run_arguments
from tests.bundles.conftest import read_json, volumes
from tests.report.conftest import embedded
from tests.running import run_module, run_ranks

# What each process ends with: its own weights and the loss of its own last batch.
KEEP = (
    "$torch.save({'parameters': {k: p.detach() for k, p in @network.named_parameters()}, "
    "'loss': float(@train#trainer.state.output['loss'])}, @output_dir + '/rank' + os.environ['RANK'] + '.pt')"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten phantom volumes, three of them for the test; another one beside them is not readable."""
    return phantom_dataset(tmp_path_factory.mktemp("data"), cases=10)


def two_processes(*arguments: str, check: bool = True) -> list[subprocess.CompletedProcess[str]]:
    ranks = run_ranks("monai.bundle", *arguments)
    assert not check or [done.returncode for done in ranks] == [0, 0], "".join(done.stderr[-3000:] for done in ranks)
    return ranks


def run(*names: str, **overrides: object) -> list[str]:
    configs = [f"{name}.json" for name in names]
    return run_arguments("gp_unet_brats", configs, **{"device": "cpu", "progress": False} | overrides)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Folder of an epoch trained by two processes."""
    output = tmp_path_factory.mktemp("training")
    return train(data, output, "train", report=True)


@pytest.fixture(scope="module")
def student(data, trained, tmp_path_factory) -> Path:
    """Folder of an epoch of the second training, on the masks of the first."""
    output = tmp_path_factory.mktemp("student")
    return train(data, output, "train", "train_refine", teacher_ckpt=trained / "model.pt")


def train(data: Path, output: Path, *names: str, **overrides: object) -> Path:
    (output / "keep.json").write_text(json.dumps({"+finalize": [KEEP]}))
    files = [*names, "phantom", "multi_gpu_train", str(output / "keep")]
    two_processes(*run(*files, dataset_dir=data, output_dir=output, max_epochs=1, **overrides))
    return output


def test_two_processes_train_one_network_and_log_once(trained):
    with open(trained / "training_log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1"]
    assert np.isfinite(float(rows[0]["loss"]))
    state = torch.load(trained / "model.pt", weights_only=True)
    assert not [key for key in state if key.startswith("module.")]


def test_the_page_of_a_training_by_two_processes_has_its_curve_and_a_picture_of_each_case(trained):
    shown = embedded(trained)["training"]
    assert shown["epochs"] == [1]
    assert [len(case["pictures"]) for case in shown["montages"]] == [1] * 2


@pytest.mark.parametrize("training", ["trained", "student"])
def test_each_process_steps_by_the_gradients_of_both(training, request):
    """They draw other slices and other distortions, so that without an average their weights would part."""
    folder = request.getfixturevalue(training)
    one, other = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert one["parameters"].keys() == other["parameters"].keys()
    assert all(torch.equal(value, other["parameters"][name]) for name, value in one["parameters"].items())
    assert one["loss"] != other["loss"]


@pytest.fixture(scope="module")
def evaluations(data, trained, tmp_path_factory) -> tuple[Path, Path]:
    """The same evaluation, of five cases, by one process and by two."""
    options = {"dataset_dir": data, "ckpt": trained / "model.pt", "section": "validation+test"}
    options |= {"baseline_thresholds": [1.4, 1.3], "report": True}
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    # One thread, as with two processes: threads change the order of sums, and with it the last digit.
    alone = run("inference", "evaluate", "phantom", output_dir=one, **options)
    done = run_module("monai.bundle", *alone, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    two_processes(*run("inference", "evaluate", "phantom", "multi_gpu_evaluate", output_dir=two, **options))
    return one, two


def test_two_processes_score_as_one(evaluations):
    one, two = evaluations
    assert read_json(two / "summary.json") == read_json(one / "summary.json")
    for name in ("metrics.csv", "slices.csv"):
        assert (two / name).read_text() == (one / name).read_text()


def test_outputs_of_two_processes_are_those_of_one_and_merged_once(evaluations):
    one, two = evaluations
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for kind in ("seg", "heatmap"):
        merged = volumes(two, kind)
        for case, volume in volumes(one, kind).items():
            np.testing.assert_array_equal(volume, merged[case])
    tables = []
    for folder in (one, two):
        with open(folder / "predictions.csv", encoding="utf-8") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5


def test_the_page_of_two_processes_is_that_of_one(evaluations):
    """The first one writes it, after all have written their cases, the second's as well."""
    one, two = (embedded(folder) for folder in evaluations)
    assert len(two["cases"]) == 5
    assert all(row["volumes"] and row["thumbnail"] for row in two["cases"])
    for row in one["cases"] + two["cases"]:
        row.pop("seconds")
    of_the_run = {"run", "provenance"}  # its date, its folder
    assert {key: two[key] for key in two.keys() - of_the_run} == {key: one[key] for key in one.keys() - of_the_run}


def test_a_bad_scan_of_one_process_is_named_and_the_table_holds_the_others(data, trained, tmp_path):
    for number, name in enumerate(sorted(path.name for path in data.iterdir() if path.is_dir())[:3]):
        (tmp_path / "in" / name).mkdir(parents=True)
        whole = (data / name / "flair.nii.gz").read_bytes()
        (tmp_path / "in" / name / "flair.nii.gz").write_bytes(whole[: len(whole) // 2] if number == 1 else whole)
    options = {"dataset_dir": tmp_path / "in", "ckpt": trained / "model.pt", "output_dir": tmp_path / "out"}
    ranks = two_processes(*run("inference", "phantom", "multi_gpu_evaluate", **options), check=False)
    assert all(done.returncode != 0 for done in ranks)
    assert all("1 of 3 cases failed" in done.stderr for done in ranks)
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_000", "phantom_002"]


def test_more_processes_than_cases_are_refused(data, trained, tmp_path):
    options = {"dataset_dir": data, "ckpt": trained / "model.pt", "output_dir": tmp_path, "image_pattern": "*_000/f*"}
    ranks = two_processes(*run("inference", "phantom", "multi_gpu_evaluate", **options), check=False)
    assert all(done.returncode != 0 for done in ranks)
    assert "2 processes for 1 case(s): start at most 1" in "".join(done.stderr for done in ranks)


def test_no_process_waits_for_one_that_has_stopped():
    """Rank 1 meets the bad case and the failed reading, rank 0 the failed writing, which another handler follows."""
    ways = ["nothing", "writing", "reading", "bad", "bad writing", "bad reading", "finished abd", "finished abcd"]
    ranks = run_ranks("tests.engines.stopping", *ways)
    assert [done.returncode for done in ranks] == [0, 0], "".join(done.stderr[-3000:] for done in ranks)
    first, second = (dict(line.split(" | ") for line in done.stdout.splitlines()) for done in ranks)
    assert first["nothing"] == second["nothing"] == "['a', 'b', 'c', 'd']"
    assert first["writing"] == "OSError: disk full"
    assert second["writing"] == "RuntimeError: another process failed: OSError: disk full"
    assert first["reading"] == "RuntimeError: another process failed: RuntimeError: a worker was killed"
    assert second["reading"] == "RuntimeError: a worker was killed"
    failed = "RuntimeError: 1 of 4 cases failed: bad: ValueError: cannot be read"
    assert first["bad"] == second["bad"] == failed
    assert first["bad writing"] == f"{failed} and then: OSError: disk full"
    assert second["bad writing"] == f"{failed} and then: {second['writing']}"
    assert second["bad reading"] == f"{failed} and then: {second['reading']}"
    # What is left of a run is shared out anew; a process may get none of it.
    assert first["finished abd"] == second["finished abd"] == "['c']"
    assert first["finished abcd"] == second["finished abcd"] == "[]"
