"""Options of inference that no calibration chooses hold in it: heat and masks are those that inference makes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.handlers import LabelCalibration
from common.masks import otsu
from tests.handlers import test_calibration as with_masks
from tests.handlers.test_label_calibration import SLICES, START, items_of
from tests.pipeline import run_handler


def from_labels(tmp_path, items, cases, **options) -> dict:
    run_handler(LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, **options), items, cases=cases)
    return json.loads((tmp_path / "calibrated.json").read_text())


@pytest.mark.parametrize(("evidence", "threshold"), [("predicted", 0.098), ("own", 0.198)])
def test_heat_is_read_as_inference_reads_it(tmp_path, evidence, threshold):
    items, cases = items_of(SLICES)
    for _, output in items:
        output["pred"][0] = 0.1  # the map of nothing
    chosen = from_labels(tmp_path, items, cases, quantile=0.99, fixed={"evidence": evidence})
    assert chosen["threshold"] == pytest.approx(threshold, abs=0.002)
    assert "evidence" not in chosen


def test_a_mean_over_planes_is_cut_no_higher_than_otsu_cuts_it(tmp_path):
    options = {"quantile": 0.99, "natural": 0.8}
    items, cases = items_of(SLICES)
    assert from_labels(tmp_path, items, cases, **options)["threshold"] == 0.8
    maps = [output["pred"][1].numpy() for _, output in items]
    median = np.median([otsu(one) for one in maps])
    chosen = from_labels(tmp_path, items, cases, **options, below_otsu=True)["threshold"]
    assert chosen == pytest.approx(median, abs=0.001)
    assert chosen < 0.5
    low = from_labels(tmp_path, items, cases, quantile=0.1, below_otsu=True)["threshold"]
    assert low < 0.1  # what the labels choose is not raised


@pytest.mark.parametrize(("dropped", "smallest"), [(0.0, 0.087), (0.06, 0.0)])
def test_components_that_inference_drops_ask_for_no_smallest_volume(tmp_path, dropped, smallest):
    items, cases = items_of({"ill": 1, "well": 0, "odd": 0, "fine": 0})
    items[2][1]["pred"][2] = 0.15  # more suspicious than what is ill: specks of it are marked
    options = {"for_volumes": {"quantile": 0.9, "refine": None}, "fixed": {"min_component_ml": dropped}}
    chosen = from_labels(tmp_path, items, cases, **options)
    assert chosen["min_volume_ml"] == pytest.approx(smallest, abs=0.01)


@pytest.mark.parametrize(("fixed", "threshold"), [({}, 0.6), ({"clean": {"min_size": 1000}}, 0.3)])
def test_masks_choose_among_those_that_inference_makes(tmp_path, fixed, threshold):
    options = {"candidates": {"threshold": [0.6]}, "start": {"gate": 0.5, "threshold": 0.3, "refine": None}}
    chosen = with_masks.calibrate(tmp_path, "even", **options, fixed=fixed)
    assert chosen["threshold"] == threshold  # where no slice is large enough, no candidate is better
    assert "clean" not in chosen


@pytest.mark.parametrize(("evidence", "threshold"), [("predicted", 0.2), ("own", 0.65)])
def test_raw_thresholds_are_of_the_heat_of_inference(tmp_path, evidence, threshold, monkeypatch):
    case = with_masks.a_case

    def shifted(shape: str, seed: int = 0) -> dict:
        made = case(shape, seed)
        made["pred"][0] = 0.5
        return made

    monkeypatch.setattr(with_masks, "a_case", shifted)
    chosen = with_masks.calibrate(tmp_path, "even", fixed={"evidence": evidence})
    assert chosen["raw_threshold"] == pytest.approx(threshold)
