from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from common.metrics import bootstrap_by_patient, bootstrap_interval, roc_auc, summarize


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_bootstrap_is_scipys_and_near_normal_theory():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = bootstrap_interval(values, seed=3)
    scipys = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(3)
    )
    assert (low, high) == pytest.approx(tuple(scipys.confidence_interval))
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_options_and_degenerate_values():
    values = np.random.default_rng(0).exponential(size=50)
    assert bootstrap_interval([*values, np.nan]) == bootstrap_interval(values)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert bootstrap_interval(values, statistic=np.median, resamples=200)[1] < bootstrap_interval(values)[1]
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    for few in ([], [1.0], [1.0, np.nan]):
        assert np.isnan(bootstrap_interval(few)).all()


def test_patient_bootstrap_is_wider_when_slices_are_copies():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=25), 16)  # 16 identical slices for each of 25 patients
    low, high = bootstrap_by_patient(np.repeat(np.arange(25), 16), np.mean, values)
    naive_low, naive_high = bootstrap_by_patient(np.arange(400), np.mean, values)
    assert (high - low) / (naive_high - naive_low) == pytest.approx(4.0, rel=0.15)  # the square root of 16


def test_patient_bootstrap_of_one_slice_each_is_the_plain_one():
    values = np.random.default_rng(0).normal(size=80)
    by_patient = bootstrap_by_patient([f"p{i}" for i in range(80)], np.mean, values, resamples=2000)
    plain = bootstrap_interval(values)
    assert by_patient == pytest.approx(plain, abs=0.1 * (plain[1] - plain[0]))


def test_patient_bootstrap_draws_all_slices_together_and_drops_nan():
    patients, labels = np.array(["a", "b", "a", "b", "b"]), np.array([0, 1, 0, 1, 1])
    seen = []

    def auc(drawn, truth, scores):
        seen.append(sorted(drawn))
        return roc_auc(scores, truth)

    assert bootstrap_by_patient(patients, auc, patients, labels, labels * 0.5, resamples=40) == (1.0, 1.0)
    assert {tuple(s) for s in seen} == {tuple("aabbb"), tuple("aaaa"), tuple("bbbbbb")}
    assert np.isnan(bootstrap_by_patient(patients, roc_auc, labels, np.zeros(5), resamples=5)).all()
    assert np.isnan(bootstrap_by_patient(["a", "a"], np.mean, [1, 2])).all()
    with pytest.raises(ValueError, match=r"got \[5\] and \[\[4\]\]"):
        bootstrap_by_patient(patients, np.mean, labels[:4])


def test_of_few_patients_with_either_label_there_is_no_interval():
    patients = np.repeat([f"p{i}" for i in range(10)], 2)
    labels = np.repeat([0, 1], 10)
    drawn = {"labels": labels, "resamples": 20}
    assert bootstrap_by_patient(patients, roc_auc, labels * 0.5, labels, **drawn) == (1.0, 1.0)
    labels[8:10] = 1  # the fifth healthy patient
    assert np.isnan(bootstrap_by_patient(patients, roc_auc, labels * 0.5, labels, **drawn)).all()
    labels[8] = 0  # who has a slice of either
    assert np.isfinite(bootstrap_by_patient(patients, roc_auc, labels * 0.5, labels, **drawn)).all()


def test_summary():
    summary = summarize([1.0, 2.0, 6.0, np.nan])
    assert {k: summary[k] for k in ("mean", "std", "median", "count")} == pytest.approx(
        {"mean": 3.0, "std": np.sqrt(7), "median": 2.0, "count": 3}
    )
    assert (summary["low"], summary["high"]) == bootstrap_interval([1.0, 2.0, 6.0])
    of_median = bootstrap_interval([1.0, 2.0, 6.0], statistic=np.median)
    assert (summary["median_low"], summary["median_high"]) == of_median
    empty = summarize([np.nan])
    assert empty["count"] == 0
    assert all(np.isnan(v) for k, v in empty.items() if k != "count")


def test_a_summary_draws_patients_with_all_of_their_scans():
    values, patients = np.repeat([0.1, 0.5, 0.9], 20), np.repeat(list("abc"), 20)
    summary = summarize([*values, np.nan], patients=[*patients, "d"])
    assert (summary["low"], summary["high"]) == pytest.approx((0.1, 0.9))
    assert (summary["median_low"], summary["median_high"]) == pytest.approx((0.1, 0.9))
    assert summary["count"] == 60
    each_his_own = summarize(values, patients=range(60))
    assert each_his_own == summarize(values)
    assert each_his_own["low"] > 0.4


def test_a_summary_knows_whose_the_values_are_that_it_drops():
    values, patients = [0.1, 0.1, 0.9, 0.9, 0.9], list("aabbb")
    dropped = summarize([np.nan, *values], patients=["b", *patients])
    assert dropped == summarize(values, patients=patients)
    assert dropped["low"] == pytest.approx(0.1)  # b was never drawn


def test_the_interval_of_a_median_is_not_that_of_the_mean():
    values = np.random.default_rng(0).exponential(size=50)
    summary = summarize(values)
    assert (summary["median_low"], summary["median_high"]) == bootstrap_interval(values, statistic=np.median)
    assert summary["median_high"] < summary["high"]
