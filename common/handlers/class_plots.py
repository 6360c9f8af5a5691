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
    axes = figure.subplots(2, 3)
    labels = np.array([row["class"] for row in rows])
    for name, scores in summary["classes"].items():
        own = labels == list(classes).index(name)
        probability = np.array([row[f"probability_{name}"] for row in rows])
        false, true, _ = roc_curve(own, probability)
        axes[0, 0].plot(false, true, label=f"{name} {_with_interval(scores, 'auc')}")
        precision, recall, _ = precision_recall_curve(own, probability)
        axes[0, 1].plot(recall, precision, label=f"{name} {_with_interval(scores, 'average_precision')}")
    axes[0, 0].set(title="ROC, class against the rest", xlabel="false positive rate", ylabel="sensitivity")
    axes[0, 1].set(title="Precision and recall", xlabel="recall", ylabel="precision")
    for axis in axes[0, :2]:
        if axis.lines:
            axis.legend(fontsize=6)
    _confusion(axes[0, 2], np.array(summary["confusion"]), classes)
    masked = [row for row in rows if "dice_mask" in row]
    groups = {name: [r for r in masked if r["class"] == k] for k, name in enumerate(classes)}
    groups = {name: own for name, own in groups.items() if own}
    if groups:
        shown = [(f"{name}\n{kind}", [r[f"dice_{kind}"] for r in g]) for name, g in groups.items() for kind in _KINDS]
        axes[1, 0].boxplot([values for _, values in shown], showfliers=False)
        axes[1, 0].set_xticks(range(1, len(shown) + 1), [name for name, _ in shown], fontsize=5)
        confident = [row[f"probability_{classes[row['called']]}"] for row in masked]
        axes[1, 2].scatter(confident, [row["dice_mask"] for row in masked], s=4, alpha=0.5)
    axes[1, 0].set(title="Dice of slices with a finding", ylim=(0, 1))
    for key in ("dice_raw", "dice_cleaned") if sweep else ():
        axes[1, 1].plot([row["offset"] for row in sweep], [row[key] for row in sweep], marker="o", label=key)
        axes[1, 1].legend(fontsize=6)
    axes[1, 1].set(title="Median Dice by offset", xlabel="offset", ylim=(0, 1))
    axes[1, 2].set(title="Confidence against Dice", xlabel="probability of the called class", ylabel="Dice of the mask")
    return figure


_KINDS = ("raw", "cleaned", "fixed")


def _confusion(axis: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    axis.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (true, called), count in np.ndenumerate(counts):
        axis.text(called, true, str(count), ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(classes)), classes, fontsize=6)
    axis.set_yticks(range(len(classes)), classes, fontsize=6)
    axis.set(title="Slices", xlabel="called", ylabel="true")


def _with_interval(scores: dict[str, Any], name: str) -> str:
    """A score with its interval, which few patients do not have."""
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "")
