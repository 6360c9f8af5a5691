from __future__ import annotations

import pytest

from common.files import write_csv
from common.report.cases import case_rows
from common.report.tables import Run, read_rows, read_run


def test_tables_come_back_as_they_were_written(tmp_path):
    rows = [
        {"case": "=p1", "dice": 0.5, "warnings": "a; b"},
        {"case": "007", "dice": float("nan"), "warnings": ""},
    ]
    write_csv(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == [
        {"case": "=p1", "dice": 0.5, "warnings": "a; b"},
        {"case": "007", "dice": None, "warnings": None},
    ]


def test_a_folder_without_a_run_is_refused_and_says_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match="output_dir of an inference or evaluation"):
        read_run(tmp_path)


def test_a_damaged_file_is_named(run_dir, tmp_path):
    write_csv(tmp_path / "predictions.csv", [{"case": "p1"}])
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not a JSON file"):
        read_run(tmp_path)


def test_labels_of_slices_need_no_mask_and_those_that_were_scored_go_before_those_of_masks(tmp_path):
    write_csv(tmp_path / "predictions.csv", [{"case": "p1"}])
    for name, positive in (("slices", 0), ("label_slices", 1)):
        write_csv(tmp_path / f"{name}.csv", [{"case": "p1", "slice": 0, "positive": positive}])
        assert [row["positive"] for row in read_run(tmp_path).slices] == [positive]


def run_of(predictions: dict, metrics: dict) -> Run:
    return Run(folder=None, predictions=predictions, metrics=metrics)  # type: ignore[arg-type]


def test_the_worst_case_comes_first_then_the_most_suspicious():
    probabilities = {"a": 0.1, "b": 0.9, "c": 0.2, "d": 0.05}
    predictions = {case: {"case": case, "probability_none": p} for case, p in probabilities.items()}
    rows = case_rows(run_of(predictions, {"a": {"dice": 0.8}, "b": {"dice": 0.1}}))
    assert [row["case"] for row in rows] == ["b", "a", "d", "c"]
    assert [row["suspicion"] for row in rows] == [0.1, 0.9, 0.95, 0.8]
