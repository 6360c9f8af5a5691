"""What `fit` says at its end: from labels, and with masks where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import read_json


def summary(folder: Path, section: str) -> str:
    """What labels say about the masks, and what masks say where there are any."""
    scores = read_json(folder / "labels.json")
    volumes, slices = scores["volumes"], scores.get("slices")
    areas = [_auc(kind, found) for kind, found in (("volume", volumes), ("slice", slices)) if found]
    lines = [f"{section}, from labels: {', '.join(areas)}"]
    marked, empty = (
        f"{round((volumes[share] or 0) * volumes[kind])} of {volumes[kind]}"
        for share, kind in (("positives_marked", "positives"), ("negatives_empty", "negatives"))
    )
    lines.append(
        f"at the gate {scores['gate']:.3f}: {marked} positive volumes marked, {empty} negative ones left empty, "
        f"{_shown(volumes['ml_in_negatives']['mean'])} ml in a negative one"
    )
    masks = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    if dice := masks.get("dice_positive"):  # a run of an earlier version has none
        lines.append(
            f"with masks, which chose nothing: 3D Dice of {int(dice['count'])} volumes with a lesion "
            f"{_shown(dice['mean'])}, median {_shown(dice['median'])}"
        )
    return "\n".join(lines)


def summary_of_classes(folder: Path, section: str, classes: Sequence[str]) -> str:
    """The same where classes are told from one another: how often they are, what is taken for what, and Dice by class.

    Args:
        folder: of `class_scores.json` and `labels.json`.
        section: that was scored.
        classes: names, the negative one first.
    """
    scores, volumes = read_json(folder / "class_scores.json"), read_json(folder / "labels.json")["volumes"]
    lines = [f"{section}, from labels: class accuracy {_shown(scores['accuracy'])} of {scores['slices']} slices"]
    for name, row in zip(classes, scores["confusion"], strict=True):
        if sum(row):
            called = ", ".join(f"{count} {other}" for other, count in zip(classes, row, strict=True) if count)
            lines.append(f"  {name} is called: {called}")
    marked = round((volumes["positives_marked"] or 0) * volumes["positives"])
    lines.append(f"{marked} of {volumes['positives']} cases marked")
    if scores["masks"]:
        medians = (f"{name} {_shown(found['dice_mask']['median'])}" for name, found in scores["masks"].items())
        lines.append(f"with masks, which chose nothing: median Dice of slices: {', '.join(medians)}")
    return "\n".join(lines)


def _auc(kind: str, scores: Mapping[str, Any]) -> str:
    interval = scores.get("auc_interval") or [None]
    said = f" ({scores['note']})" if "note" in scores and scores["auc"] is not None else ""
    return f"{kind} AUC {_shown(scores['auc'])}" + (said if None in interval else f" {interval}")


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
