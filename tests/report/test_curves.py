from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score

from common.report.curves import calibration, label_curves, precision_recall, roc, threshold_curve, volume_agreement
from common.report.tables import read_run


@pytest.fixture(scope="module")
def told() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and patients of 400 slices of 20 patients; calibrated by construction."""
    generator = np.random.default_rng(0)
    probabilities = generator.random(400)
    return probabilities, generator.random(400) < probabilities, np.repeat(np.arange(20), 20)


def test_the_roc_curve_has_the_area_of_scikit_learn(told):
    curve = roc(*told)
    assert curve["area"] == pytest.approx(roc_auc_score(told[1], told[0]), abs=1e-4)
    assert auc(curve["x"], curve["y"]) == pytest.approx(curve["area"], abs=0.01)


@pytest.mark.parametrize("curve", [roc, precision_recall])
def test_bands_lie_around_their_curve(curve, told):
    drawn = curve(*told)
    y, low, high = (np.array(drawn[key]) for key in ("y", "low", "high"))
    assert (low <= high).all()
    assert ((low <= y + 0.02) & (y <= high + 0.02)).mean() > 0.95
    assert (high - low).max() > 0.02


def test_bands_of_few_patients_with_either_label_are_unknown(told):
    assert set(roc(told[0], told[1], np.zeros(400))["low"]) == {None}
    of_four = np.where(told[1], 0, np.arange(400) % 4)  # negatives are of four, positives of one of them
    assert set(precision_recall(told[0], told[1], of_four)["low"]) == {None}
    assert None not in roc(told[0], told[1], np.arange(400) % 5)["low"]


def test_precision_at_a_recall_is_the_best_that_reaches_it():
    probabilities, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True])
    curve = precision_recall(probabilities, labels, np.arange(4))
    at = dict(zip(curve["x"], curve["y"], strict=True))
    assert (at[0.2], at[0.5], at[1.0]) == (1.0, 0.75, 0.75)
    assert curve["chance"] == 0.75


def test_a_calibrated_probability_lies_on_the_diagonal(told):
    curve = calibration(*told)
    assert np.abs(np.array(curve["x"]) - curve["y"]).max() < 0.2
    assert sum(curve["count"]) == 400
    assert curve["error"] < 0.08
    assert calibration(told[0] ** 4, told[1], told[2])["error"] > 0.15


def test_the_interval_of_a_bin_of_few_patients_is_unknown(told):
    probabilities, labels, _ = told
    last = np.argsort(probabilities)[360:]  # a tenth of all, the last bin
    for count in (1, 4, 5):
        patients = np.arange(400) % 20
        patients[last] = np.arange(40) % count
        curve = calibration(probabilities, labels, patients)
        assert (curve["low"][-1] is None, curve["high"][-1] is None) == (count < 5,) * 2
        assert None not in curve["low"][:-1]
        assert None not in curve["y"]


def test_areas_are_those_of_the_run_whose_probabilities_were_not_rounded(run_dir):
    run = read_run(run_dir)
    volumes = dict(run.label_summary["volumes"]) | {"auc": 0.9876, "average_precision": 0.8765}
    curves = label_curves(replace(run, label_summary={"volumes": volumes, "slices": {"auc": 0.1, "positives": 99}}))
    assert [curve["area"] for curve in curves["roc"]] == [0.9876, label_curves(run)["roc"][1]["area"]]
    assert curves["precision_recall"][0]["area"] == 0.8765


def test_curves_need_both_labels(run_dir):
    run = read_run(run_dir)
    assert [curve["kind"] for curve in label_curves(run)["roc"]] == ["volumes", "slices"]
    for row in run.labels.values():
        row["positive"] = 1.0
    assert [curve["kind"] for curve in label_curves(run)["roc"]] == ["slices"]


def test_dice_over_thresholds_is_the_mean_over_cases_and_its_interval_draws_patients():
    dice = np.array([0.2, 0.8]), np.array([0.4, 0.4])
    curve = threshold_curve(np.array([0.0, 1.0]), [("a", dice[0]), ("b", dice[1])], 0.5)
    assert curve is not None
    assert (curve["y"], curve["cases"], curve["threshold"]) == ([0.3, 0.6], 2, 0.5)
    assert curve["low"] == [0.2, 0.4]
    one = threshold_curve(np.array([0.0, 1.0]), [("a", dice[0]), ("a", dice[1])], 0.5)
    assert one is not None
    assert one["low"] == one["high"] == one["y"]
    again = threshold_curve(np.array([0.0, 1.0]), [("a", dice[0]), *[("b", dice[1])] * 20], 0.5)
    assert again is not None
    assert again["low"] == [0.2, 0.4]  # twenty scans of one patient tell no more than one
    assert threshold_curve(np.array([0.0]), [], None) is None


def test_volumes_agree_where_they_are_equal():
    rows = [{"case": str(i), "ml": 10.0 * i + 5, "truth_ml": 10.0 * i} for i in range(1, 6)]
    agreement = volume_agreement([*rows, {"case": "x", "ml": 3.0}])
    assert agreement is not None
    assert (agreement["difference"], agreement["limits"], agreement["correlation"]) == (5.0, [5.0, 5.0], 1.0)
    assert "x" not in agreement["case"]
    assert volume_agreement([{"case": "x", "ml": 3.0}]) is None
