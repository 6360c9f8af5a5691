"""Scores of cases with a ground-truth mask, and the summary that a report quotes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data import patient_of
from ..engines import gathered, gathered_rows
from ..files import rounded, write_csv, write_json
from ..images import axial
from ..metrics import (
    bootstrap_by_patient,
    classification_scores,
    dice,
    healthy_false_positive_rate,
    iou,
    miou_from_counts,
    paper_dsc,
    roc_auc,
    slice_dice,
    summarize,
    voxel_counts,
)
from .base import OF_MEMORY, CaseHandler

logger = logging.getLogger(__name__)


class CaseScores(CaseHandler):
    """Handler: score every case that has a `label` and summarize: `metrics.csv`, `summary.json`, `slices.csv`.

    Voxel metrics are computed on the image's own grid, where the label lies as it was read. A label is positive
    where it is > 0. A healthy case has a Dice of 1 where nothing is marked, else 0; `dice_positive` is of the cases
    alone that have a lesion, so that empty masks gain nothing. Cases without a label are left out, and from the
    slices' scores slices without organ. Masks that a postprocessing put under `baseline_<name>` are scored beside the
    method's.

    Args:
        output_dir: where the files go.
        raw_threshold: the heatmap above it is the raw mask (no gate, no refinement).
        sweep: thresholds of the raw map; their mean Dice goes to `threshold_sweep.csv`. For validation patients only.
        position_prior: `[bins]` share of positive slices by slice position, from the training labels; its AUC says
            how far position alone goes.
        resamples: bootstrap resamples of the intervals.
        pooled_within: `scan`, or `organ`: voxels that the figures under `pooled` count, e.g. a paper's crop.

    Raises:
        ValueError: another `pooled_within`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        raw_threshold: float = 0.0,
        sweep: Sequence[float] = (),
        position_prior: Sequence[float] | None = None,
        resamples: int = 1000,
        pooled_within: Literal["scan", "organ"] = "scan",
    ) -> None:
        super().__init__(output_dir)
        if pooled_within not in ("scan", "organ"):
            raise ValueError(f"pooled_within must be 'scan' or 'organ', got {pooled_within!r}")
        self.pooled_within = pooled_within
        self.raw_threshold = raw_threshold
        self.sweep = list(sweep)
        self.position_prior = position_prior
        self.resamples = resamples
        self.slices: list[dict[str, Any]] = []
        self.swept: list[np.ndarray] = []
        self.voxels: dict[str, np.ndarray] = {}

    def _start(self) -> None:
        super()._start()
        self.slices, self.swept, self.voxels = [], [], {}

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        if "label" not in batch:
            return
        truth = axial(batch["label"])[0].numpy() > 0
        pred = axial(output["pred"])[0].numpy() > 0
        probability = _at_slices(np.asarray(output["slice_probability"]), truth.shape[-1])
        heat = axial(output["heatmap"])[0].numpy()
        raw, empty = heat > self.raw_threshold, np.zeros_like(truth)
        shared = {"case": batch["case"], "patient": patient_of(batch)}
        row: dict[str, Any] = {
            **shared,
            "dice": dice(pred, truth),
            "dice_positive": dice(pred, truth) if truth.any() else float("nan"),
            "iou": iou(pred, truth),
            "dice_raw": dice(raw, truth),
            "slice_dice": _mean_slice_dice(pred, truth),
            "slice_dice_raw": _mean_slice_dice(raw, truth),
            "healthy_fpr": healthy_false_positive_rate(pred, truth),
            "heat_outside": float(output["heat_outside"]),
            "dice_empty": dice(empty, truth),
        }
        baselines = {k: axial(output[k])[0].numpy() > 0 for k in output if str(k).startswith("baseline_")}
        for name, mask in baselines.items():
            row |= {f"dice_{name}": dice(mask, truth), f"slice_dice_{name}": _mean_slice_dice(mask, truth)}
        organ = np.ones_like(truth)
        if "organ" in batch:  # of the input, so that MONAI leaves it there when it is brought back to the scan's grid
            organ = axial(batch["organ"])[0].numpy() > 0.5
        counted = organ if self.pooled_within == "organ" else np.ones_like(truth)
        for name, mask in {"method": pred, "empty": empty, **baselines}.items():
            self.voxels[name] = self.voxels.get(name, 0) + voxel_counts(mask[counted], truth[counted])
        self.rows.append(row)
        if self.sweep:
            self.swept.append(np.array([dice(heat > t, truth) for t in self.sweep]))
        self.slices += [shared | found for found in _scored_slices(1 - probability[0], truth, organ)]

    def _gather(self, cases: Sequence[str]) -> None:
        super()._gather(cases)
        self.slices = gathered_rows(self.slices, cases)
        self.swept = [scores for part in gathered(self.swept) for scores in part]
        parts = gathered(self.voxels)
        self.voxels = {name: sum(part.get(name, 0) for part in parts) for part in parts for name in part}

    def _write(self) -> None:
        if not self.rows:
            logger.warning(
                "no case has a mask: scored from labels (masks are the datalist's, else what label_pattern finds)"
            )
            return
        write_csv(self.output_dir / "metrics.csv", [rounded(row) for row in self.rows])
        write_csv(self.output_dir / "slices.csv", [rounded(row) for row in self.slices])
        write_json(self.output_dir / "summary.json", self.summary())
        if self.sweep:
            means = np.mean(self.swept, axis=0)
            rows = [{"threshold": t, "dice_raw": round(float(m), 4)} for t, m in zip(self.sweep, means, strict=True)]
            write_csv(self.output_dir / "threshold_sweep.csv", rows)

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation, median and 95 % interval over patients of each metric, and the slices' scores.

        `pooled` holds the mIoU over the voxels of all cases and the "DSC" made of it: flattering figures that some
        papers report, see `common.metrics.pooled_miou`. A `note` says where `prepare --split paper` drew the slices.
        """
        result: dict[str, Any] = {"cases": len(self.rows)}
        patients = [row["patient"] for row in self.rows]
        for name in (key for key in self.rows[0] if key not in ("case", "patient")):
            found = summarize([row.get(name, np.nan) for row in self.rows], patients=patients)
            result[name] = {k: _round(v) for k, v in found.items()}
        result["slices"] = self._slice_scores() if self.slices else {}  # none shows organ or a finding
        pooled = {name: float(miou_from_counts(*counts)) for name, counts in self.voxels.items()}
        result["pooled"] = {n: {"miou": _round(m), "paper_dsc": _round(paper_dsc(m))} for n, m in pooled.items()}
        return result | ({"note": OF_MEMORY} if self.of_memory else {})

    def _slice_scores(self) -> dict[str, Any]:
        """How well slices with and without a finding are told apart, by the network and by position alone."""
        columns = ("patient", "probability", "positive", "position")
        patients, probabilities, labels, positions = (np.array([row[key] for row in self.slices]) for key in columns)
        scores: dict[str, Any] = {k: _round(v) for k, v in classification_scores(probabilities, labels).items()}
        drawn: dict[str, Any] = {"labels": labels, "resamples": self.resamples}
        interval = bootstrap_by_patient(patients, roc_auc, probabilities, labels, **drawn)
        scores["auc_interval"] = [_round(bound) for bound in interval]
        if self.position_prior is not None:
            prior = np.asarray(self.position_prior)
            scores["auc_position_alone"] = _round(roc_auc(prior[_bins(positions, len(prior))], labels))
        return scores


def _mean_slice_dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Of the slices that hold a finding; NaN where none does."""
    scores = slice_dice(mask, truth)
    return float(scores.mean()) if len(scores) else float("nan")


def _scored_slices(probability: np.ndarray, truth: np.ndarray, organ: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the slices with organ or a finding: of the others, what needs no network would be scored."""
    positive, shown = (np.any(mask, axis=(0, 1)) for mask in (truth, organ))
    last = max(len(positive) - 1, 1)
    return [
        {"slice": z, "position": z / last, "probability": float(probability[z]), "positive": int(positive[z])}
        for z in np.flatnonzero(positive | shown).tolist()
    ]


def _at_slices(probability: np.ndarray, depth: int) -> np.ndarray:
    """The class probabilities `[C, depth]` of a scan's slices, from those `[C, D]` of slices resampled along it."""
    return probability[:, ((np.arange(depth) + 0.5) * probability.shape[1] / depth).astype(int)]


def position_prior(cases: Sequence[dict], *, bins: int = 20) -> list[float]:
    """Share of positive slices by slice position, from the `cls` lists of training cases.

    Args:
        cases: with `cls` as a list of one label per slice; others are ignored.
        bins: of the position `z / (Z − 1)`.

    Returns:
        `[bins]`, in [0, 1]; an empty bin holds 0.
    """
    positive, total = np.zeros(bins), np.zeros(bins)
    for case in cases:
        if isinstance(case.get("cls"), list):
            labels = np.asarray(case["cls"]) > 0
            index = _bins(np.arange(len(labels)) / max(len(labels) - 1, 1), bins)
            np.add.at(positive, index, labels)
            np.add.at(total, index, 1)
    return (positive / np.maximum(total, 1)).tolist()


def _bins(positions: np.ndarray, bins: int) -> np.ndarray:
    """Index of the equal bin of [0, 1] that each position falls into."""
    return np.minimum((positions * bins).astype(int), bins - 1)


def _round(value: float, digits: int = 4) -> float:
    return round(float(value), digits)
