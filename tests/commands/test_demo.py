from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import common.commands.fit
from common.commands.demo import demo, table
from tests.bundles.conftest import run_bundle

SCORE = {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A demo's folder, and what it printed; its runs are forked."""
    home = tmp_path_factory.mktemp("demo")
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.commands.fit, "run_bundle", run_bundle)
        patch.setattr("builtins.print", lambda *lines: printed.extend(lines))
        demo(str(home), cases=8, epochs=8)
    return home, "\n".join(printed)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_demo_trains_as_many_epochs_as_asked(finished):
    assert [row["epoch"] for row in rows(finished[0] / "training" / "training_log.csv")] == [
        str(n) for n in range(1, 9)
    ]


def test_demo_scores_the_test_cases_alone_and_marks_all(finished):
    home, _ = finished
    datalist = json.loads((home / "data" / "datalist.json").read_text())
    tested = {case["case"] for case in datalist["test"]}
    assert {row["case"] for row in rows(home / "evaluation" / "metrics.csv")} == tested
    assert 0 < len(tested) < 8
    assert len(rows(home / "masks" / "predictions.csv")) == 8
    assert len(list((home / "masks").glob("*_heatmap.nii.gz"))) == 8
    assert len(list((home / "masks").glob("*_seg.nii.gz"))) == 8


def test_evaluation_and_inference_give_a_case_the_same_probability_by_the_trained_weights(finished):
    home, _ = finished
    inferred = {row["case"]: row["probability_tumor"] for row in rows(home / "masks" / "predictions.csv")}
    scored = {row["case"]: row["probability_tumor"] for row in rows(home / "evaluation" / "predictions.csv")}
    assert scored
    assert scored.items() <= inferred.items()


def test_demo_prints_the_scores_that_it_found_and_where_the_files_are(finished):
    home, printed = finished
    assert table(json.loads((home / "evaluation" / "summary.json").read_text())) in printed
    for name in ("evaluation", "masks"):
        assert str(home / name) in printed


def test_table_shows_each_score_with_its_interval_and_the_auc_of_what_has_one():
    summary = {"dice": SCORE, "dice_empty": SCORE | {"mean": 0.0}, "dice_baseline_gated": SCORE}
    lines = table(summary | {"slices": {"auc": 0.875, "auc_position_alone": 0.625}}).splitlines()
    assert [line[:32].strip() for line in lines[1:]] == [
        *("method (mask)", "empty mask", "threshold, gated by the method", "slice position alone")
    ]
    assert [line[32:].split() for line in lines[1:]] == [
        ["0.500", "0.250", "-", "0.750", "0.875"],
        ["0.000", "0.250", "-", "0.750", "0.500"],
        ["0.500", "0.250", "-", "0.750", "0.875"],
        ["-", "-", "0.625"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_says_what_is_undefined():
    shown = table({"dice": {"mean": None, "low": None, "high": None}, "slices": {"auc": None}})
    assert shown.splitlines()[1].split()[2:] == ["n/a", "n/a", "-", "n/a", "n/a"]
    assert "position" not in shown
