"""Whole slides have areas in place of volumes, overlays in place of montages, and labels among their scores."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from common.files import write_csv, write_json
from common.report import build_report


@pytest.fixture
def folder(tmp_path):
    found = [("s1", 0.9, 1, 2.5), ("s2", 0.2, 0, 0.1), ("s3", 0.6, 1, 0.0), ("s4", 0.4, 0, 0.0)]
    predictions, metrics = [], []
    for case, p, label, area in found:
        predictions.append({"case": case, "probability_none": 1 - p, "probability_tumor": p, "threshold_tumor": 0.5})
        predictions[-1] |= {"area_mm2_tumor": area, "tissue_mm2": 9.0, "tiles": 7, "seconds": 1.5}
        metrics.append({"case": case, "patient": case, "probability_tumor": p, "label_tumor": label})
        Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / f"{case}_overlay.png")
    write_csv(tmp_path / "predictions.csv", predictions)
    write_csv(tmp_path / "metrics.csv", metrics)
    write_json(tmp_path / "summary.json", {"slides": 4, "auc": {"tumor": 1.0}, "auc_macro": 1.0})
    return tmp_path


def test_slides_are_listed_by_suspicion_with_their_areas_and_overlays(folder):
    report = build_report(folder)
    assert [row["case"] for row in report["cases"]] == ["s1", "s3", "s4", "s2"]
    assert report["cases"][0]["area"] == {"tumor": 2.5}
    assert all(row["picture"] and row["thumbnail"] for row in report["cases"])
    assert [row["positive"] for row in report["cases"]] == [True, True, False, False]
    assert report["run"]["unit"] == "slide"


def test_without_outlines_the_headline_is_the_auc_of_slides(folder):
    report = build_report(folder)
    assert (report["headline"]["measure"], report["headline"]["value"]) == ("AUC of slides", 1.0)
    assert report["headline"]["on"].startswith("4 slides")
    assert [curve["kind"] for curve in report["curves"]["roc"]] == ["slides"]
    assert report["curves"]["roc"][0]["area"] == 1.0
    assert any(line == "No ground-truth mask was opened here." for line in report["supervision"])


def test_with_outlines_it_is_their_dice_beside_all_tissue(folder):
    scores = {"mean": 0.6, "low": 0.5, "high": 0.7, "median": 0.6, "count": 2}
    summary = {"dice": scores, "dice_empty": scores | {"mean": 0.0}, "dice_tissue": scores | {"mean": 0.2}}
    write_json(folder / "summary.json", summary)
    head = build_report(folder)["headline"]
    assert (head["value"], head["on"], head["rival"]["name"]) == (
        0.6,
        "2 slides with a ground-truth mask",
        "all tissue",
    )
