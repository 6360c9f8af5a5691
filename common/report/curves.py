"""Curves of a report, with intervals that draw patients: points that a page draws as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score

from ..metrics import bootstrap_by_patient, roc_auc
from ..metrics.bootstrap import FEW_PATIENTS, few_patients
from .tables import Run, patient_of_row

GRID = np.linspace(0, 1, 51)
RESAMPLES = 200


def label_curves(run: Run) -> dict[str, list[dict[str, Any]]]:
    """ROC and precision-recall curves and the calibration of the probability, of volumes (or slides) and of slices.

    Only of kinds that have both labels; bands need five patients with either.

    Returns:
        `roc`, `precision_recall`, `calibration`: a list with an entry for each kind.
    """
    kinds = ((run.unit, [*run.labels.values()]), ("slices", run.slices))
    found = [_curves_of(kind, rows, run.label_summary.get(kind) or {}) for kind, rows in kinds]
    return {name: [curves[name] for curves in found if curves] for name in ("roc", "precision_recall", "calibration")}


def _curves_of(
    kind: str, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """The three curves of a kind, None where one label alone is there; `scores` are those that the run wrote."""
    rows = [row for row in rows if row.get("positive") is not None and row.get("probability") is not None]
    labels = np.array([row["positive"] for row in rows]) > 0
    if labels.all() or not labels.any():
        return None
    probabilities = np.array([row["probability"] for row in rows], dtype=float)
    patients = np.array([*map(patient_of_row, rows)])
    told = (probabilities, labels, patients)
    shared = {"kind": kind, "positives": int(labels.sum()), "negatives": int((~labels).sum())}
    # Tables hold seven digits, and so ties that the run did not see: its own areas of these labels count.
    own = scores if all(scores.get(key) == shared[key] for key in ("positives", "negatives")) else {}
    return {
        "roc": shared | roc(*told) | _area(own.get("auc")),
        "precision_recall": shared | precision_recall(*told) | _area(own.get("average_precision")),
        "calibration": shared | calibration(*told),
    }


def _area(value: float | None) -> dict[str, float]:
    return {} if value is None else {"area": value}


def roc(probabilities: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """True against false positive rate, `x`, `y`, with a pointwise 95 % band `low`, `high`, and the `area`."""
    return _curve(_roc_at_grid, probabilities, labels, patients) | {"area": _short(roc_auc(probabilities, labels))}


def precision_recall(probabilities: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """Precision against recall, as `roc`, its `area` the average precision; `chance` is the share of positives."""
    areas = {"area": _short(average_precision_score(labels, probabilities)), "chance": _short(labels.mean())}
    return _curve(_precision_at_grid, probabilities, labels, patients) | areas


def _curve(
    at_grid: Callable[[np.ndarray, np.ndarray], np.ndarray],
    probabilities: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    seed: int = 0,
) -> dict[str, Any]:
    """A curve and its band: patients are drawn, each with all that is theirs, as weights in one order of slices.

    There is no band where few patients have either label: it would look narrow, and say nothing.
    """
    few = few_patients(patients, labels)
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)  # of equal probabilities
    labels = labels[order]
    names, member = np.unique(patients[order], return_inverse=True)

    def drawn(weights: np.ndarray) -> np.ndarray | None:
        true, false = np.cumsum(weights * labels)[ends], np.cumsum(weights * ~labels)[ends]
        return at_grid(true, false) if true[-1] and false[-1] else None

    generator = np.random.default_rng(seed)
    size = len(names)
    draws = (np.bincount(generator.integers(size, size=size), minlength=size)[member] for _ in range(RESAMPLES))
    curves = [curve for weights in draws if not few and (curve := drawn(weights)) is not None]
    low, high = np.quantile(curves, [0.025, 0.975], axis=0) if curves else np.full((2, len(GRID)), np.nan)
    whole = drawn(np.ones(len(labels)))
    assert whole is not None
    return {"x": _list(GRID), "y": _list(whole), "low": _list(low), "high": _list(high)}


def _roc_at_grid(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """The true positive rate at each false positive rate of the grid; counts from the strictest threshold on."""
    return np.interp(GRID, np.append(0, false) / false[-1], np.append(0, true) / true[-1])


def _precision_at_grid(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """The best precision at each recall of the grid or above."""
    precision = true / np.maximum(true + false, 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return best[np.minimum(np.searchsorted(true / true[-1], GRID - 1e-9), len(best) - 1)]


def calibration(
    probabilities: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, bins: int = 10
) -> dict[str, Any]:
    """How often what is given a probability is positive: `x` mean probability, `y` share, `low`, `high`, `count`.

    Bins hold equally many; fewer where there are few. Those of few patients have neither `low` nor `high`. `error` is
    the mean distance from the diagonal, weighted by count (expected calibration error), `brier` the mean squared error
    of the probability.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, max(1, min(bins, len(order) // 5))) if len(part)]
    rows: dict[str, list] = {key: [] for key in ("x", "y", "low", "high", "count")}
    for part in parts:
        low = high = np.nan
        if len(np.unique(patients[part])) >= FEW_PATIENTS:
            low, high = bootstrap_by_patient(patients[part], np.mean, labels[part].astype(float), resamples=RESAMPLES)
        values = (probabilities[part].mean(), labels[part].mean(), low, high)
        for key, value in zip(rows, values, strict=False):
            rows[key].append(_short(value))
        rows["count"].append(len(part))
    weights = np.array(rows["count"]) / len(order)
    error = float(np.sum(weights * np.abs(np.array(rows["x"]) - np.array(rows["y"]))))
    return rows | {"error": _short(error), "brier": _short(np.mean((probabilities - labels) ** 2))}


def threshold_curve(
    stops: np.ndarray, scores: Sequence[tuple[str, np.ndarray]], threshold: float | None
) -> dict[str, Any] | None:
    """Mean Dice of the raw map over thresholds, with the pointwise 95 % interval over patients.

    Args:
        stops: `[T]`.
        scores: of each case its patient, and its Dice at each stop, `[T]`.
        threshold: the run's own.
    """
    if not len(scores):
        return None
    table = np.asarray([dice for _, dice in scores])
    patients = np.unique([patient for patient, _ in scores], return_inverse=True)[1]
    own = np.eye(patients.max() + 1)[patients]  # [cases, patients]
    sums, counts = own.T @ table, own.sum(axis=0)
    draws = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1, keepdims=True)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {
        "x": [float(f"{stop:.5g}") for stop in stops],
        "y": _list(table.mean(axis=0)),
        "low": _list(low),
        "high": _list(high),
        "threshold": None if threshold is None or not np.isfinite(threshold) else float(f"{threshold:.5g}"),
        "cases": len(table),
    }


def volume_agreement(cases: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Predicted against true milliliters: a point a case, rank correlation, mean difference and limits of agreement.

    Args:
        cases: rows with `ml` and `truth_ml`; others are left out.
    """
    rows = [row for row in cases if row.get("ml") is not None and row.get("truth_ml") is not None]
    if not rows:
        return None
    predicted, true = (np.array([row[key] for row in rows], dtype=float) for key in ("ml", "truth_ml"))
    gap, spread = predicted - true, float(np.std(predicted - true, ddof=1)) if len(rows) > 1 else np.nan
    varied = len(rows) > 2 and np.ptp(predicted) > 0 and np.ptp(true) > 0
    return {
        "x": [_short(value) for value in true],
        "y": [_short(value) for value in predicted],
        "case": [row["case"] for row in rows],
        "correlation": _short(stats.spearmanr(predicted, true).statistic) if varied else None,
        "difference": _short(gap.mean()),
        "limits": [_short(gap.mean() - 1.96 * spread), _short(gap.mean() + 1.96 * spread)],
    }


def _list(values: np.ndarray) -> list[float | None]:
    return [_short(value) for value in values]


def _short(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
