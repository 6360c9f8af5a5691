from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import LESIONS, run_slides, slide_case
from tests.bundles.insight_ct.slides.test_run import rows_of

calibration = load_script("insight_ct", "slides.calibration")
PALE, DARK = (230, 150, 200), (230, 140, 200)  # tissue a little warmer than the network's zero


def calibrated(cases: list[dict], folder: Path, classes: tuple[str, ...] = ("none", "tumor"), **options: Any) -> dict:
    """What is chosen for `folder / "model.pt"`."""
    ckpt = folder / "model.pt"
    handler = calibration.SlideCalibration(folder, ckpt=ckpt, classes=classes, **options)
    run_slides(cases, folder, classes=classes, handlers=[handler], tiler={"mpp": 2.0}, gate=0.0, truth=False)
    return json.loads(ckpt.with_suffix(".json").read_text())


def test_gate_and_threshold_lie_above_what_slides_without_the_label_show_and_no_outline_is_read(tmp_path):
    cases = [
        slide_case(tmp_path, name, cls=cls, colors=((244, 243, 245), tissue, (90, 40, 140)))
        for name, cls, tissue in (("a", 0, PALE), ("b", 1, PALE), ("c", 0, DARK), ("d", 1, DARK))
    ]
    cases[1]["label"] = str(tmp_path / "no_such_file.xml")
    more = {"smooth_um": 0.0}
    beside = calibrated(cases, tmp_path / "out", quantile=0.9, quantiles=[0.2], more=more)
    chosen, source = beside["chosen"], beside["chosen_from"]
    (gate,), (threshold,) = chosen["gate"], chosen["threshold"]
    warmest = (160 - 140) / (160 - 40)
    assert warmest < gate < 1
    assert threshold == pytest.approx(warmest, abs=0.01)
    assert (source["labels"], source["masks"], source["positives"], source["negatives"]) == ("slides", "none", [2], [2])
    low, high = rows_of(tmp_path / "out" / "calibration.csv")
    assert (low["quantile"], high["quantile"], high["negative_slides_marked"]) == ("0.2", "0.9", "0.0")
    assert float(low["threshold"]) < float(high["threshold"])
    settings = {key: chosen[key] for key in ("gate", "threshold", "binarize", "smooth_um")}
    del cases[1]["label"]
    run_slides(cases[2:], tmp_path / "again", tiler={"mpp": 2.0}, **settings)
    areas = [float(row["area_mm2_tumor"]) for row in rows_of(tmp_path / "again" / "predictions.csv")]
    planted = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in LESIONS) * 0.25e-6
    assert areas[0] == 0
    assert planted < areas[1] < 2 * planted  # cells that a lesion cuts count in full


def test_slides_of_the_test_section_that_choose_are_warned_of(tmp_path, caplog):
    (tmp_path / "datalist.json").write_text("{}")
    cases = [slide_case(tmp_path, name, cls=cls) for name, cls in (("a", 0), ("b", 1))]
    beside = calibrated(cases, tmp_path / "out", section="test", datalist=tmp_path / "datalist.json")
    assert beside["chosen_from"]["section"] == "test"
    assert "chosen from the section 'test': scores of these test cases flatter them" in caplog.text


def test_a_network_that_tells_nothing_apart_is_refused(tmp_path):
    cases = [slide_case(tmp_path, "a", cls=1, lesions=()), slide_case(tmp_path, "b", cls=0)]
    with pytest.raises(ValueError, match="has not learned"):
        calibrated(cases, tmp_path / "out")


def test_labels_have_a_gate_and_a_threshold_each(tmp_path):
    results = [
        {"labels": [1, 0], "probability": [0.9, 0.2], "heat": [0.8, 0.1]},
        {"labels": [0, 1], "probability": [0.3, 0.4], "heat": [0.6, 0.3]},
    ]
    handler = calibration.SlideCalibration(tmp_path, ckpt=tmp_path / "m.pt", classes=("none", "a", "b"))
    for number, one in enumerate(results):
        row = {"case": str(number), "patient": str(number), "labels": np.array(one["labels"], bool)}
        row |= {"probability": np.array(one["probability"]), "heat": np.array(one["heat"])[:, None]}
        handler.rows.append(row)
    handler._write()
    chosen = json.loads((tmp_path / "m.json").read_text())["chosen"]
    assert 0.3 < chosen["gate"][0] < 0.9
    assert 0.2 < chosen["gate"][1] < 0.4
    assert chosen["threshold"] == pytest.approx([0.6, 0.1])
