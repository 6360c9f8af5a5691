"""Scores of a classifier of several classes, one of which may be healthy, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, jaccard_score

from .bootstrap import bootstrap_by_patient
from .functional import roc_auc


def class_scores(
    probabilities: ArrayLike, labels: ArrayLike, patients: Sequence[str], *, resamples: int = 1000
) -> dict[str, Any]:
    """What GP's paper reports of its classifiers.

    Args:
        probabilities: `[N, C]` of slices, class 0 is healthy.
        labels: `[N]`, the true classes.
        patients: `[N]`, whose slices they are; intervals draw patients.
        resamples: bootstrap resamples.

    Returns:
        `accuracy`, `f1_weighted`, `f1_macro`, `jaccard_weighted` and `confusion` (rows are true classes);
        `tumor_only_accuracy` of slices that hold a tumor, and `tumor_only_accuracy_forced` where healthy is no answer;
        for each class that is there beside others `classes`: `auc` and `average_precision` against the rest, each with
        `_interval` (NaN where few patients have, or lack, the class, see `common.metrics.bootstrap.few_patients`), and
        its `prevalence`; `patient_accuracy` of patients by the mean probability of their slices that are not called
        healthy. NaN where undefined.
    """
    probability, label = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    called, tumor = probability.argmax(axis=1), label > 0
    found: dict[str, Any] = {
        "slices": len(label),
        "accuracy": float((called == label).mean()),
        "f1_weighted": float(f1_score(label, called, average="weighted", zero_division=0)),
        "f1_macro": float(f1_score(label, called, average="macro", zero_division=0)),
        "jaccard_weighted": float(jaccard_score(label, called, average="weighted", zero_division=0)),
        "confusion": confusion_matrix(label, called, labels=range(probability.shape[1])).tolist(),
        "tumor_only_accuracy": _mean(called[tumor] == label[tumor]),
        "tumor_only_accuracy_forced": _mean(1 + probability[tumor, 1:].argmax(axis=1) == label[tumor]),
        "patient_accuracy": patient_accuracy(probability, label, patients),
        "classes": {},
    }
    ids = np.asarray(patients)
    for k in range(probability.shape[1]):
        own = label == k
        if not own.any() or own.all():
            continue
        scores: dict[str, Any] = {"prevalence": float(own.mean())}
        for name, score in (("auc", roc_auc), ("average_precision", _average_precision)):
            scores[name] = score(probability[:, k], own)
            interval = bootstrap_by_patient(ids, score, probability[:, k], own, labels=own, resamples=resamples)
            scores[f"{name}_interval"] = list(interval)
        found["classes"][k] = scores
    return found


def patient_accuracy(probabilities: np.ndarray, labels: np.ndarray, patients: Sequence[str]) -> float:
    """Share of patients whose class, the highest of their slices, is the likeliest one of their slices together.

    Args:
        probabilities: `[N, C]`.
        labels: `[N]`.
        patients: `[N]`.
    """
    ids = np.asarray(patients)
    right = []
    for patient in np.unique(ids):
        own = probabilities[ids == patient]
        ill = own[own.argmax(axis=1) > 0]
        called = 1 + int(ill[:, 1:].mean(axis=0).argmax()) if len(ill) else 0
        right.append(called == labels[ids == patient].max())
    return _mean(np.array(right))


def _average_precision(probability: np.ndarray, own: np.ndarray) -> float:
    """NaN where a resample holds one class alone."""
    return float(average_precision_score(own, probability)) if 0 < own.sum() < len(own) else np.nan


def _mean(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else float("nan")
