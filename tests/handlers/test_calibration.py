from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.handlers import Calibration
from tests.pipeline import run_handler

REFINE = {"dilate_mm": 0.0, "intensity": 0.0, "adaptive": 0.0, "opening_mm": 0.0, "smooth_mm": 0.0, "largest": False}


def a_case(shape: str, seed: int = 0) -> dict:
    """Heat marks the lesion (`tall`: in all slices); what is bright is the lesion (`bright`), or not even that."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((20, 20, 5), dtype=bool)
    x, y = rng.integers(3, 9, 2)
    truth[x : x + 7, y : y + 7, 1:4] = True
    wide = np.zeros_like(truth)
    wide[x - 2 : x + 9, y - 2 : y + 9, 1:4] = True
    heat = np.where(truth, 0.8, np.where(wide, 0.5, 0.1)) if shape == "even" else np.where(wide, 0.8, 0.1)
    if shape == "tall":
        heat = np.repeat(np.where(truth, 0.8, 0.1)[..., 2:3], 5, axis=-1)
    image = np.where(truth, 1.6, 1.0) if shape == "bright" else np.ones(truth.shape)
    pred = np.stack([np.zeros(heat.shape), heat, np.zeros(heat.shape), np.ones(heat.shape)])
    scan = np.stack([image, np.ones(heat.shape)])
    return {"image": torch.as_tensor(scan), "truth": truth, "pred": torch.as_tensor(pred, dtype=torch.float32)}


def calibrate(tmp_path, shape: str, **options) -> dict:
    settings = {
        "start": {"gate": 0.5, "threshold": 0.3, "refine": REFINE},
        "candidates": {"refine.intensity": [0.0, 1.3]},
        "raw_thresholds": [0.2, 0.65, 0.9],
        "passes": 1,
    } | options
    items = []
    for seed in range(2):
        case = a_case(shape, seed)
        label = MetaTensor(torch.as_tensor(case["truth"][None].astype(np.uint8)))
        batch = {"case": str(seed), "image": MetaTensor(case["image"].float()), "label": label}
        items.append((batch, {"pred": case["pred"]}))
    run_handler(Calibration(tmp_path, ckpt=tmp_path / "model.pt", **settings), items)
    return json.loads((tmp_path / "calibrated.json").read_text())


def test_options_with_the_best_mean_dice_are_chosen_and_every_trial_listed(tmp_path):
    chosen = calibrate(tmp_path, "bright")
    assert chosen == {
        "gate": 0.5,
        "threshold": 0.3,
        "refine": REFINE | {"intensity": 1.3},
        "raw_threshold": pytest.approx(0.2),
    }
    with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["dice"]) for row in rows]
    assert max(scores) == 1.0
    assert [row["refine.intensity"] for row in rows] == ["0.0", "1.3", "", ""]  # start, trial, raw map, no refinement


def test_a_refinement_no_better_than_the_raw_map_is_left_out(tmp_path):
    chosen = calibrate(tmp_path, "even")
    assert chosen["refine"] is None
    assert chosen["threshold"] == chosen["raw_threshold"] == 0.65


def test_without_thresholds_of_the_raw_map_the_refinement_stays(tmp_path):
    chosen = calibrate(tmp_path, "even", raw_thresholds=[])
    assert chosen["refine"] == REFINE
    assert chosen["raw_threshold"] == chosen["threshold"] == 0.3


@pytest.mark.parametrize("start", [{"gate": 0.5, "threshold": 0.3, "refine": None}, {"gate": 0.5, "threshold": 0.3}])
def test_where_nothing_is_refined_the_other_options_are_tried(tmp_path, start):
    candidates = {"refine.intensity": [0.0, 1.3], "threshold": [0.3, 0.65]}
    chosen = calibrate(tmp_path, "even", start=start, candidates=candidates)
    assert chosen == start | {"threshold": 0.65, "raw_threshold": 0.65}


def test_options_of_a_refinement_are_tried_once_it_is_chosen(tmp_path):
    better = REFINE | {"intensity": 1.2}
    candidates = {"refine": [better], "refine.intensity": [1.3]}
    chosen = calibrate(tmp_path, "bright", start={"gate": 0.5, "threshold": 0.3, "refine": None}, candidates=candidates)
    assert chosen["refine"] == better
    with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
        assert [row["refine.intensity"] for row in csv.DictReader(file)] == ["", "1.2", "1.3", "", ""]


@pytest.mark.parametrize("label_gate", [True, False])
def test_the_label_gate_keeps_the_slices_that_truly_hold_a_lesion(tmp_path, label_gate):
    calibrate(tmp_path, "tall", label_gate=label_gate)
    with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
        best = max(float(row["dice"]) for row in csv.DictReader(file))
    assert best == pytest.approx(1.0 if label_gate else 2 * 3 / (3 + 5), abs=1e-4)  # three slices of five


def test_what_is_chosen_lies_beside_the_weights_and_says_that_masks_chose_it(tmp_path):
    chosen = calibrate(tmp_path, "bright", more={"combine": "mean"})
    beside = json.loads((tmp_path / "model.json").read_text())
    assert beside["chosen"] == chosen
    assert chosen["combine"] == "mean"
    assert beside["chosen_from"] == {"masks": "2 cases, to choose these settings", "cases": 2}


@pytest.mark.parametrize("datalist", [None, "datalist.json"])
def test_a_section_is_told_with_what_it_chose_and_test_cases_are_warned_of(tmp_path, caplog, datalist):
    calibrate(tmp_path, "bright", section="validation+test", datalist=datalist)
    source = json.loads((tmp_path / "model.json").read_text())["chosen_from"]
    assert source.get("section") == ("validation+test" if datalist else None)
    assert ("scores of these test cases flatter them" in caplog.text) == bool(datalist)


def test_an_empty_mask_gains_nothing_in_healthy_volumes(tmp_path):
    ill, healthy = a_case("bright", 0), a_case("bright", 1)
    healthy["truth"][:] = False
    items = []
    for name, case in (("ill", ill), ("healthy", healthy)):
        label = MetaTensor(torch.as_tensor(case["truth"][None].astype(np.uint8)))
        image = MetaTensor(case["image"].float())
        items.append(({"case": name, "image": image, "label": label}, {"pred": case["pred"]}))
    start = {"gate": 0.5, "threshold": 0.3, "refine": None}
    handler = Calibration(tmp_path, ckpt=tmp_path / "model.pt", start=start, candidates={"threshold": [0.3, 2.0]})
    run_handler(handler, items)
    empty = next(trial for trial in handler.trials if trial.get("threshold") == 2.0)
    marked = next(trial for trial in handler.trials if trial.get("threshold") == 0.3)
    assert empty["score"] == 0.0
    assert marked["dice"] > 0.5
    assert marked["score"] == pytest.approx(marked["dice"] - 1.0, abs=1e-3)  # as much is marked where nothing is


def test_no_case_with_a_mask_is_explained(tmp_path):
    with pytest.raises(RuntimeError, match="no case with a lesion"):
        Calibration(tmp_path, ckpt="model.pt", start={}, candidates={})._check()


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("common.handlers.base.get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="Calibration looks at all cases in one process, but 2 were started"):
        calibrate(tmp_path, "even")


def test_a_refinement_as_good_as_the_raw_map_is_left_out(tmp_path):
    chosen = calibrate(tmp_path, "even", start={"gate": 0.5, "threshold": 0.65, "refine": REFINE}, candidates={})
    assert (chosen["refine"], chosen["threshold"]) == (None, 0.65)
