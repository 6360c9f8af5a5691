"""Percentile bootstrap intervals by patient, and summaries of one value per scan. NaN is never counted as 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

FEW_PATIENTS = 5  # with either label: of fewer, draws say next to nothing, and where none overlap [1, 1]
TOO_FEW = f"no interval: fewer than {FEW_PATIENTS} patients have a positive label, or fewer a negative one"


def _defined(values: ArrayLike) -> np.ndarray:
    """The values that are not NaN, flat."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[~np.isnan(flat)]


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Callable[..., Any] = np.mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one value per patient (through SciPy).

    Args:
        values: one number per patient; NaN is dropped.
        statistic: takes values, returns a number; much faster if it takes `axis`, as NumPy's do.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the random generator.

    Returns:
        Lower and upper bound; both NaN with fewer than two values.
    """
    kept = _defined(values)
    if kept.size < 2:
        return np.nan, np.nan
    interval = stats.bootstrap(
        (kept,),
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def bootstrap_by_patient(
    patients: ArrayLike,
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    labels: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval that draws patients, each with all of its slices.

    Slices of one patient resemble each other; drawing slices one by one would make the interval far too narrow.

    Args:
        patients: patient of every slice, `[N]`.
        statistic: called as `statistic(*arrays)` on the drawn slices, e.g. `common.metrics.roc_auc`; NaN
            results are dropped.
        *arrays: arrays with first axis N.
        labels: `[N]` of 0 and 1, of statistics that compare the two, as an AUC does: there is no interval where
            `few_patients`.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the random generator.

    Returns:
        Lower and upper bound; both NaN with fewer than two patients, with too few of either label, or without any
        defined result.

    Raises:
        ValueError: if an array's first axis is not N.
    """
    ids = np.asarray(patients)
    data = [np.asarray(a) for a in arrays]
    if ids.ndim != 1 or any(a.shape[:1] != ids.shape for a in data):
        raise ValueError(
            f"patients must be [N] and every array [N, ...]; got {list(ids.shape)} and {[list(a.shape) for a in data]}"
        )
    names, member = np.unique(ids, return_inverse=True)
    if len(names) < 2 or (labels is not None and few_patients(ids, labels)):
        return np.nan, np.nan
    rows = [np.flatnonzero(member == p) for p in range(len(names))]
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(resamples):
        drawn = np.concatenate([rows[p] for p in generator.integers(len(names), size=len(names))])
        results.append(statistic(*(a[drawn] for a in data)))
    kept = _defined(results)
    if not kept.size:
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def few_patients(patients: ArrayLike, labels: ArrayLike) -> bool:
    """Whether fewer than `FEW_PATIENTS` have a positive label, or fewer than that a negative one.

    A patient with slices of both counts on both sides. An interval of so few is misleading: with two healthy patients
    whose probabilities are below all others, every draw has an AUC of 1.

    Args:
        patients: patient of every slice, `[N]`.
        labels: `[N]`, of 0 and 1.
    """
    ids, positive = np.asarray(patients), np.asarray(labels).astype(bool)
    return min(len(np.unique(ids[positive])), len(np.unique(ids[~positive]))) < FEW_PATIENTS


def summarize(
    values: ArrayLike, *, patients: ArrayLike | None = None, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Summary of one value per scan: mean, standard deviation and median, with bootstrap intervals by patient.

    Args:
        values: one number per scan; NaN is dropped.
        patients: of each scan; a patient is drawn with all of his. None: each scan is of another.
        resamples: number of bootstrap samples.
        seed: of the random generator.

    Returns:
        `mean` with `low` and `high`, `std` (of the sample, n − 1; NaN below two values), `median` with `median_low` and
        `median_high`, `count` (values that are not NaN). Without any value all but the count are NaN.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    known = ~np.isnan(flat)
    kept, ids = flat[known], np.asarray(np.arange(flat.size) if patients is None else patients)[known]

    def interval(statistic: Callable[..., Any]) -> tuple[float, float]:
        if len(np.unique(ids)) == kept.size:  # SciPy draws one value a patient all at once
            return bootstrap_interval(kept, statistic=statistic, resamples=resamples, seed=seed)
        return bootstrap_by_patient(ids, statistic, kept, resamples=resamples, seed=seed)

    (low, high), (median_low, median_high) = interval(np.mean), interval(np.median)
    return {
        "mean": float(kept.mean()) if kept.size else np.nan,
        "std": float(kept.std(ddof=1)) if kept.size > 1 else np.nan,
        "median": float(np.median(kept)) if kept.size else np.nan,
        "low": low,
        "high": high,
        "median_low": median_low,
        "median_high": median_high,
        "count": int(kept.size),
    }
