"""What a run leaves in its folder, read back: tables, scores, and the record of what was run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import PathLike

RECORD = "run.json"
TABLES = ("metrics.csv", "labels.csv", "label_slices.csv", "slices.csv")
SUMMARIES = ("summary.json", "labels.json", "class_scores.json")


@dataclass(frozen=True)
class Run:
    """A run's folder as plain data; what the run did not write is empty.

    Attributes:
        folder: where it lies.
        predictions: rows of `predictions.csv`, in its order, by case.
        metrics: rows of `metrics.csv` by case: scores against ground-truth masks.
        labels: rows of `labels.csv` by case: yes/no labels of volumes.
        slices: rows of `label_slices.csv`, or of `slices.csv`, whose labels are those of masks: labels of slices.
        summary: `summary.json`.
        label_summary: `labels.json`.
        class_summary: `class_scores.json`: classes that are told from one another.
        record: `run.json`, see `common.report.record`.
    """

    folder: Path
    predictions: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    label_summary: Mapping[str, Any] = field(default_factory=dict)
    class_summary: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What a case is: `volumes`, or `slides`, whose masks are measured in mm²."""
        slides = any(key.startswith("area_mm2_") for row in self.predictions.values() for key in row)
        return "slides" if slides else "volumes"


def read_run(folder: PathLike) -> Run:
    """Read a run's folder, without scores that its record does not name: an earlier run has left them.

    Raises:
        FileNotFoundError: it holds no `predictions.csv`.
        ValueError: a file is damaged; the message names it.
    """
    folder = Path(folder)
    if not (folder / "predictions.csv").is_file():
        raise FileNotFoundError(
            f"{folder} holds no predictions.csv: give the output_dir of an inference or evaluation, or of a training"
        )
    record = read_json(folder / RECORD)
    own = record.get("scores", (*TABLES, *SUMMARIES))  # records of earlier versions name none
    rows = {name: read_rows(folder / name) if name in own else [] for name in TABLES}
    content = {name: read_json(folder / name) if name in own else {} for name in SUMMARIES}
    metrics = _by_case(rows["metrics.csv"])
    return Run(
        folder=folder,
        predictions=_by_case(read_rows(folder / "predictions.csv")),
        metrics=metrics,
        labels=_by_case(rows["labels.csv"]) or _labels_of_slides(metrics),
        slices=rows["label_slices.csv"] or rows["slices.csv"],
        summary=content["summary.json"],
        label_summary=content["labels.json"],
        class_summary=content["class_scores.json"],
        record=record,
    )


def _labels_of_slides(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Labels that the scores of slides hold: whether any label is positive, and the highest probability of one."""
    found = {}
    for case, row in metrics.items():
        labels = [value for key, value in row.items() if key.startswith("label_") and value is not None]
        probabilities = [value for key, value in row.items() if key.startswith("probability_") and value is not None]
        if labels and probabilities:
            shared = {"case": case, "patient": row.get("patient")}
            found[case] = shared | {"positive": max(labels), "probability": max(probabilities)}
    return found


def read_rows(path: PathLike) -> list[dict[str, Any]]:
    """Rows of a table that `common.files.write_csv` wrote; numbers as numbers, what is empty or undefined as None.

    Names stay texts, whatever they look like. No file gives no row.

    Raises:
        ValueError: it is no table of text.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: _value(key, text) for key, text in row.items() if key} for row in csv.DictReader(file)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table ({error}); run the bundle again") from error


def _value(key: str, text: str | None) -> Any:
    if text is None or text == "":
        return None
    if key in ("case", "patient", "warnings"):
        return text.removeprefix("'")
    try:
        number = float(text)
    except ValueError:
        return text
    return None if math.isnan(number) else number


def patient_of_row(row: Mapping[str, Any]) -> str:
    """Whose case a row is of; one without a patient is a patient of its own."""
    return str(row.get("patient") or row["case"])


def _by_case(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in rows}


def read_json(path: Path) -> dict[str, Any]:
    """What a run wrote as JSON; empty where it wrote none.

    Raises:
        ValueError: it is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); run the bundle again") from error
    return content if isinstance(content, dict) else {}
