"""The plots beside `class_scores.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve


def draw_class_scores(
    rows: Sequence[dict[str, Any]], summary: dict[str, Any], sweep: Sequence[dict[str, Any]], classes: Sequence[str]
) -> matplotlib.figure.Figure:
    """ROC and precision-recall curves by class, confusion, Dice by class, Dice by offset, confidence against Dice.

    Args:
        rows: slices, see `ClassScores`.
        summary: what `class_scores.json` holds.
        sweep: rows of `offset_sweep.csv`; may be empty.
        classes: names.
    """
    figure = matplotlib.figure.Figure(figsize=(12, 7), layout="constrained")
    (roc, precision, confusion), (dice, offsets, confidence) = figure.subplots(2, 3)
    masked = [row for row in rows if "dice_mask" in row]
    _roc_and_precision(roc, precision, rows, summary["classes"], classes)
    _confusion(confusion, np.array(summary["confusion"]), classes)
    _dice_by_class(dice, masked, classes)
    _dice_by_offset(offsets, sweep)
    _confidence(confidence, masked, classes)
    return figure


def _roc_and_precision(
    roc: Any, precision: Any, rows: Sequence[dict[str, Any]], scored: dict[str, Any], classes: Sequence[str]
) -> None:
    labels = np.array([row["class"] for row in rows])
    for name, scores in scored.items():
        own = labels == list(classes).index(name)
        probability = np.array([row[f"probability_{name}"] for row in rows])
        false, true, _ = roc_curve(own, probability)
        roc.plot(false, true, label=f"{name} {_with_interval(scores, 'auc')}")
        right, found, _ = precision_recall_curve(own, probability)
        precision.plot(found, right, label=f"{name} {_with_interval(scores, 'average_precision')}")
    roc.set(title="ROC, class against the rest", xlabel="false positive rate", ylabel="sensitivity")
    precision.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    if scored:
        roc.legend(fontsize=6)
        precision.legend(fontsize=6)


def _confusion(axis: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    axis.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (true, called), count in np.ndenumerate(counts):
        axis.text(called, true, str(count), ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(classes)), classes, fontsize=6)
    axis.set_yticks(range(len(classes)), classes, fontsize=6)
    axis.set(title="Slices", xlabel="called", ylabel="true")


def _dice_by_class(axis: Any, masked: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    boxes = {
        f"{name}\n{kind}": [row[f"dice_{kind}"] for row in masked if row["class"] == k]
        for k, name in enumerate(classes)
        for kind in ("raw", "cleaned", "fixed")
    }
    boxes = {name: values for name, values in boxes.items() if values}
    if boxes:
        axis.boxplot([*boxes.values()], showfliers=False)
        axis.set_xticks(range(1, len(boxes) + 1), [*boxes], fontsize=5)
    axis.set(title="Dice of slices with a finding", ylim=(0, 1))


def _dice_by_offset(axis: Any, sweep: Sequence[dict[str, Any]]) -> None:
    if sweep:
        for key in ("dice_raw", "dice_cleaned"):
            axis.plot([row["offset"] for row in sweep], [row[key] for row in sweep], marker="o", label=key)
        axis.legend(fontsize=6)
    axis.set(title="Median Dice by offset", xlabel="offset", ylim=(0, 1))


def _confidence(axis: Any, masked: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    if masked:
        confident = [row[f"probability_{classes[row['called']]}"] for row in masked]
        axis.scatter(confident, [row["dice_mask"] for row in masked], s=4, alpha=0.5)
    axis.set(title="Confidence against Dice", xlabel="probability of the called class", ylabel="Dice of the mask")


def _with_interval(scores: dict[str, Any], name: str) -> str:
    """A score with its interval, which few patients do not have."""
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "")
