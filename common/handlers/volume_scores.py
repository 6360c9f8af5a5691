"""Scores by volume: components, Dice, boxes, and how well the volumes themselves are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data import patient_of
from ..files import write_csv, write_json
from ..images import as_array, spacing_of
from ..masks import volume_ml
from ..metrics import balanced_accuracy, component_scores, dice, max_iou, roc_auc, summarize
from .base import CaseHandler

Rows = list[dict[str, Any]]


class VolumeScores(CaseHandler):
    """Handler: precision, recall and F1 of 3D components, Dice, MaxIoU, balanced accuracy and AUC (ToNNO, Section 4.4).

    Writes `volumes.csv` and their means, `volumes.json`. A volume is positive when its `cls` or, without that, its mask
    says so, and predicted positive when any voxel of its mask is left; AUC ranks volumes by their `probability` of not
    being class 0. A case without a mask counts for balanced accuracy and AUC, one with a `box` for MaxIoU. Masks under
    `baseline_<name>` are scored beside the method's.

    Dice is of volumes whose mask holds a lesion, `with_lesion` of them: a healthy volume would count as 1 for a mask
    that marks nothing anywhere. What is marked in negative volumes is said by `negatives_empty`, the share in which it
    is nothing, and `ml_in_negatives`, as in `labels.json`.

    Args:
        output_dir: where the files go.
        iou_threshold: IoU above which a predicted and a true component match; 0: they touch.
    """

    def __init__(self, output_dir: str | Path, *, iou_threshold: float = 0.0) -> None:
        super().__init__(output_dir)
        self.iou_threshold = iou_threshold

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        masks = {"": output["pred"]}
        masks |= {str(k).removeprefix("baseline_"): m for k, m in output.items() if str(k).startswith("baseline_")}
        for name, mask in masks.items():
            row = self._row(batch, np.asarray(mask)[0] > 0)
            if not name and "probability" in output:
                row["probability"] = round(1 - float(output["probability"][0]), 6)
            ml = volume_ml(as_array(mask)[0] > 0, spacing_of(output["pred"]))
            shared = {"case": batch["case"], "patient": patient_of(batch), "mask": name or "method"}
            self.rows.append({**shared, **row, "ml": round(ml, 4)})

    def _row(self, batch: dict, pred: np.ndarray) -> dict[str, Any]:
        row: dict[str, Any] = {"predicted": int(pred.any())}
        truth = np.asarray(batch["label"])[0] > 0 if "label" in batch else None
        if "cls" in batch or truth is not None:
            row["positive"] = int(int(batch["cls"]) > 0 if "cls" in batch else truth.any())  # type: ignore[union-attr]
        if truth is not None:
            scores = component_scores(pred, truth, iou_threshold=self.iou_threshold)
            row |= {"dice": dice(pred, truth) if truth.any() else float("nan"), **scores}
        if "box" in batch:
            row["max_iou"] = max_iou(pred, np.asarray(batch["box"], dtype=float).ravel())
        return row

    def _write(self) -> None:
        write_csv(self.output_dir / "volumes.csv", self.rows)
        write_json(self.output_dir / "volumes.json", self.summary())

    def summary(self) -> dict[str, Any]:
        """For each mask: mean, spread and interval by patient of each score of volumes, balanced accuracy and AUC.

        Also the number of volumes that Dice is averaged over, and how much is marked in negative volumes.
        """
        result = {}
        for name in dict.fromkeys(row["mask"] for row in self.rows):
            rows = [row for row in self.rows if row["mask"] == name]
            counts = {"volumes": len(rows), "with_lesion": len(_known(rows, "dice"))}
            result[name] = counts | _means(rows) | _in_negatives(rows) | _told_apart(rows)
        return result


def _known(rows: Rows, key: str) -> Rows:
    """The volumes that have a score; Dice of healthy ones is NaN."""
    return [row for row in rows if np.isfinite(row.get(key, np.nan))]


def _summary(rows: Rows, key: str) -> dict[str, float]:
    found = summarize([row[key] for row in rows], patients=[row["patient"] for row in rows])
    return {name: round(float(value), 4) for name, value in found.items()}


def _means(rows: Rows) -> dict[str, Any]:
    found = {key: _known(rows, key) for key in ("dice", "precision", "recall", "f1", "max_iou")}
    return {key: _summary(known, key) for key, known in found.items() if known}


def _in_negatives(rows: Rows) -> dict[str, Any]:
    """How often nothing is marked where nothing is, and how much is."""
    negatives = [row for row in rows if row.get("positive") == 0]
    if not negatives:
        return {}
    empty = float(np.mean([not row["predicted"] for row in negatives]))
    return {"negatives_empty": round(empty, 4), "ml_in_negatives": _summary(negatives, "ml")}


def _told_apart(rows: Rows) -> dict[str, Any]:
    """Balanced accuracy by the mask and AUC by the probability, where volumes have both labels."""
    labeled = [(row["positive"], row["predicted"]) for row in rows if "positive" in row]
    if len({positive for positive, _ in labeled}) < 2:
        return {}
    found = {"balanced_accuracy": round(balanced_accuracy(*zip(*labeled, strict=True)), 4)}
    ranked = [(row["probability"], row["positive"]) for row in rows if {"probability", "positive"} <= set(row)]
    return found | ({"auc": round(roc_auc(*zip(*ranked, strict=True)), 4)} if ranked else {})
