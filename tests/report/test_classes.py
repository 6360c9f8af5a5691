"""Classes that are told from one another: how many slices were called what, on the page as in the run's files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.files import write_json
from common.report.build import build_report
from common.report.classes import class_names, class_table
from common.report.scores import facts, headline
from common.report.supervision import chosen
from common.report.tables import Run, read_run
from tests.report.conftest import write_run

SCORES = {"accuracy": 0.8, "slices": 5, "confusion": [[0, 0, 0], [0, 3, 0], [0, 1, 1]]}


@pytest.fixture
def run(run_dir) -> Run:
    """Of three classes, the first of which nobody has: no mask, no AUC."""
    told = read_run(run_dir)
    predictions = {
        case: {f"probability_{name}": 0.3 for name in ("none", "low", "high")} | {"case": case}
        for case in told.predictions
    }
    return replace(told, predictions=predictions, summary={}, metrics={}, label_summary={}, class_summary=SCORES)


def test_each_class_that_has_slices_has_its_row(run):
    found = class_table(run)
    assert found["classes"] == ["none", "low", "high"]
    assert [(row["name"], row["called"], row["share"]) for row in found["rows"]] == [
        ("low", [0, 3, 0], 1.0),
        ("high", [0, 1, 1], 0.5),
    ]
    assert (found["accuracy"], found["slices"], found["commonest"]) == (0.8, 5, 0.6)
    assert class_table(replace(run, class_summary={})) is None


def test_without_masks_accuracy_is_the_headline_beside_the_most_frequent_class(run):
    head = headline(run)
    assert (head["measure"], head["value"], head["on"]) == ("class accuracy", 0.8, "5 slices")
    assert (head["rival"]["value"], head["rival"]["learned"]) == (0.6, False)
    assert facts(run)[0] == {
        "name": "class accuracy",
        "value": "0.800",
        "on": "5 slices; the most frequent class alone 0.600",
    }


def test_names_are_the_trainings_where_the_table_has_others_and_else_numbers(run):
    weights = {"trained": {"classes": ["a", "b", "c", "d"]}}
    assert class_names(replace(run, record={"weights": weights}), 4) == ["a", "b", "c", "d"]
    assert class_names(run, 2) == ["class 0", "class 1"]


def test_what_was_told_apart_as_the_threshold_was_chosen_is_said():
    source = {"labels": "slices", "cases": 3, "rule": "no label says that nothing is there"}
    assert chosen(source | {"classes_told_apart": 0.8333}) == [
        "No label says that nothing is there.",
        "Of each class, on average 83% of the slices of 3 cases were called so there.",
    ]
    assert len(chosen(source | {"classes_told_apart": None})) == 1


def test_the_report_of_a_folder_has_them(tmp_path):
    folder = write_run(tmp_path / "run", tmp_path / "data", scored=False)
    assert build_report(folder)["classes"] is None
    write_json(folder / "class_scores.json", {"accuracy": 0.5, "confusion": [[1, 1], [0, 0]]})
    found = build_report(folder)["classes"]
    assert (found["classes"], found["rows"]) == (
        ["none", "tumor"],
        [{"name": "none", "called": [1, 1], "share": 0.5}],
    )
