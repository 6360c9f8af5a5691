"""Scores that need no mask: how well labels are told apart, and what is marked where nothing is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import labels_of, labels_slices, multi_hot, patient_of
from ..data.matches import some
from ..engines import gathered_rows
from ..files import rounded, write_csv, write_json
from ..images import as_array, axial, spacing_of
from ..masks import volume_ml
from ..metrics import bootstrap_by_patient, classification_scores, roc_auc, summarize
from ..metrics.bootstrap import TOO_FEW, few_patients
from .base import OF_MEMORY, CaseHandler

logger = logging.getLogger(__name__)


class LabelScores(CaseHandler):
    """Handler: score every case by its yes/no label, of the volume or of its slices: `labels.csv`, `labels.json`.

    `label_slices.csv` holds the slices, where any have labels: what an interval over several runs is made from.

    A volume's probability is that of its most suspicious slice. Slices count where they hold organ, or a finding, which
    is missed then. Where the datalist has no label, any voxel of a mask is one. Cases without either are left out.

    Where a case has label and mask, and one says yes and the other no, of the volume or of a slice, a warning and
    `disagreeing` in `labels.json` count them and name the cases; scores are what they are.

    Args:
        output_dir: where the files go.
        gate: probability above which a slice, or a volume, counts as positive.
        classes: names, the negative one first. With more than one positive, volumes are also told apart by each: its
            AUC against all others, and the mean over classes.
        resamples: bootstrap resamples of the intervals, by patient.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        gate: float | None = 0.5,
        classes: Sequence[str] = (),
        resamples: int = 1000,
    ) -> None:
        super().__init__(output_dir)
        self.gate = 0.5 if gate is None else gate
        self.classes = list(classes)
        self.resamples = resamples
        self.slices: list[dict[str, Any]] = []
        self.compared: list[dict[str, Any]] = []  # of each case with label and mask: how often they disagree

    def _start(self) -> None:
        super()._start()
        self.slices, self.compared = [], []

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        probability = 1 - as_array(output["slice_probability"])[0]
        case = engine.cases.get(batch["case"], {})
        found = self._labels(batch, case, len(probability))
        if found is None:
            return
        positive, labels = found
        if "label" in batch and case.get("cls") is not None:
            truth = _marked(batch["label"])
            self.compared.append({"case": batch["case"], **disagreement(positive, labels, truth)})
        pred = axial(output["pred"])
        mask = as_array(pred)[0] > 0
        shared = {"case": batch["case"], "patient": patient_of(batch)}
        ml = volume_ml(mask, spacing_of(pred))
        row = {"positive": int(positive), "probability": float(1 - output["probability"][0]), "ml": ml}
        row |= self._by_class(case, as_array(output["probability"]))
        self.rows.append({**shared, **row})
        organ = as_array(batch["image"])[-1] > 0.5
        if labels is None:
            return
        for z in np.flatnonzero(organ.any(axis=(0, 1)) | labels):
            marked = int(mask[..., z].any()) if mask.shape[-1] == len(probability) else None
            slice_ = {"slice": int(z), "positive": int(labels[z]), "probability": float(probability[z])}
            self.slices.append({**shared, **slice_, "marked": marked})

    def _by_class(self, case: dict, probability: np.ndarray) -> dict[str, Any]:
        """Label and probability of each class, where there are several and the volume has one label, or names."""
        if len(self.classes) < 3 or case.get("cls") is None or labels_slices(case):
            return {}
        found = zip(self.classes[1:], multi_hot(case["cls"], self.classes), probability[1:], strict=True)
        return {k: v for name, y, p in found for k, v in ((f"positive {name}", y), (f"probability {name}", float(p)))}

    @staticmethod
    def _labels(batch: dict, case: dict, depth: int) -> tuple[bool, np.ndarray | None] | None:
        if case.get("cls") is not None:
            return labels_of(case, depth)
        if "label" not in batch:
            return None
        truth = _marked(batch["label"])
        return bool(truth.any()), truth if len(truth) == depth else None

    def _gather(self, cases: Any) -> None:
        super()._gather(cases)
        self.slices, self.compared = (gathered_rows(rows, cases) for rows in (self.slices, self.compared))

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no case has a label or a mask: nothing to score (is the datalist's section right?)")

    def _write(self) -> None:
        write_csv(self.output_dir / "labels.csv", [rounded(row) for row in self.rows])
        if self.slices:
            write_csv(self.output_dir / "label_slices.csv", [rounded(row) for row in self.slices])
        summary = self.summary()
        write_json(self.output_dir / "labels.json", summary)
        if said := disagreement_in_words(summary.get("disagreeing", {})):
            logger.warning(said)

    def summary(self) -> dict[str, Any]:
        """AUC with intervals, sensitivity and specificity at the gate, and the mask where the label is no.

        `auc_interval` draws patients, and is `[None, None]` where too few have either label, which the `note` of the
        volumes, or of the slices, says then. That of all says where `prepare --split paper` drew the slices.
        `disagreeing` is there where labels and masks contradict each other, see the function of that name.
        """
        volumes = self._scores(self.rows) | _marked_by_label(self.rows)
        parts: dict[str, Any] = {"gate": self.gate, "volumes": volumes}
        if self.slices:
            negative = [not row["marked"] for row in self.slices if not row["positive"] and row["marked"] is not None]
            parts["slices"] = self._scores(self.slices) | {"negatives_empty": _mean(negative)}
        if self.of_memory:
            parts["note"] = OF_MEMORY
        if found := disagreeing(self.compared):
            parts["disagreeing"] = found
        return parts | self._told_apart()

    def _told_apart(self) -> dict[str, Any]:
        """The AUC of each of several classes, and the mean of those that are defined; see `_by_class`."""
        rows = [row for row in self.rows if any(key.startswith("positive ") for key in row)]
        if not rows:
            return {}
        aucs = {}
        for name in self.classes[1:]:
            probabilities, labels = ([row[f"{what} {name}"] for row in rows] for what in ("probability", "positive"))
            aucs[name] = roc_auc(probabilities, labels)
        defined = [auc for auc in aucs.values() if not np.isnan(auc)]
        macro = _number(float(np.mean(defined))) if defined else None
        return {"classes": {name: {"auc": _number(auc)} for name, auc in aucs.items()}, "macro": {"auc": macro}}

    def _scores(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = np.array([row["positive"] for row in rows])
        probabilities = np.array([row["probability"] for row in rows])
        patients = np.array([row["patient"] for row in rows])
        scores = classification_scores(probabilities, labels, threshold=np.nextafter(self.gate, 2.0))
        drawn: dict[str, Any] = {"labels": labels, "resamples": self.resamples}
        interval = bootstrap_by_patient(patients, roc_auc, probabilities, labels, **drawn)
        kept = ("auc", "average_precision", "sensitivity", "specificity", "balanced_accuracy")
        counts = {"positives": int(labels.sum()), "negatives": int((1 - labels).sum())}
        found = counts | {k: _number(scores[k]) for k in kept} | {"auc_interval": [_number(v) for v in interval]}
        return found | ({"note": TOO_FEW} if few_patients(patients, labels) else {})


def disagreement(positive: bool, labels: np.ndarray | None, truth: np.ndarray) -> dict[str, int]:
    """How often labels of a case and its mask contradict each other.

    Args:
        positive: label of the volume, of any finding.
        labels: bool `[D]` of its slices, where they have some.
        truth: bool, the slices that the mask marks anything in; of another number than labels, slices are not held
            against each other.

    Returns:
        `volumes` and `slices`, with `of_slices`, how many were compared. A volume whose slices have labels of their
        own contradicts its mask where no slice, or any, is positive.
    """
    compared = labels is not None and len(labels) == len(truth)
    slices = int((np.asarray(labels) != truth).sum()) if compared else 0
    volumes = int(bool(positive) != bool(truth.any()))
    return {"volumes": volumes, "slices": slices, "of_slices": len(truth) if compared else 0}


def disagreeing(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Volumes and slices whose label and mask contradict each other, of how many, and the cases; empty if none do.

    Args:
        compared: of each case that has both, `case` beside what `disagreement` says.
    """
    found: dict[str, Any] = {}
    for kind, count in (("volumes", len(compared)), ("slices", sum(row["of_slices"] for row in compared))):
        if cases := [row["case"] for row in compared if row[kind]]:
            found[kind] = {"count": sum(row[kind] for row in compared), "of": count, "cases": cases}
    return found


def disagreement_in_words(found: dict[str, Any]) -> str:
    """One line for the console; empty where nothing disagrees."""
    parts = [f"{one['count']} of {one['of']} {kind} ({some(one['cases'], 3)})" for kind, one in found.items()]
    if not parts:
        return ""
    hint = "" if "volumes" in found else ", counted from the other end (prepare table --slices_from top)"
    return (
        f"labels contradict masks in {' and in '.join(parts)}: one says yes where the other says no, so labels.json "
        f"and summary.json are of different truths. Are labels inverted, or of another scan{hint}?"
    )


def _marked_by_label(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often anything is marked in volumes with a finding, and nothing, or how much, in those without."""
    negatives = [row for row in rows if not row["positive"]]
    healthy, patients = [row["ml"] for row in negatives], [row["patient"] for row in negatives]
    return {
        "positives_marked": _mean([row["ml"] > 0 for row in rows if row["positive"]]),
        "negatives_empty": _mean([ml == 0 for ml in healthy]),
        "ml_in_negatives": {k: _number(v) for k, v in summarize(healthy, patients=patients).items()},
    }


def _marked(label: Any) -> np.ndarray:
    """Bool `[D]`, the axial slices of a mask that mark anything."""
    return np.asarray(as_array(axial(label))[0].any(axis=(0, 1)))


def _mean(values: list[bool]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _number(value: float) -> float:
    return round(float(value), 4)
