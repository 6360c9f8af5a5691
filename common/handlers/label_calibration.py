"""Choose gate, threshold and smallest volume from yes/no labels alone: no mask is opened."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.distributed import get_world_size
from monai.data import MetaTensor

from ..checkpoint import add_beside
from ..data import labels_of
from ..data.splits import tells_classes_apart
from ..files import PathLike, file_digest, read_json, write_csv, write_json
from ..images import as_array, spacing_of
from ..masks import (
    OF_LUNGS,
    MapsToMaskd,
    choose_gate,
    healthy_intensity,
    heat_threshold,
    in_multiples,
    otsu,
    reached_level,
    smallest_volume,
    smooth_in_plane,
    volume_gate,
    volume_ml,
)
from ..metrics import balanced_accuracy
from .base import CaseHandler

logger = logging.getLogger(__name__)
FEW = 4  # labels of a kind: with fewer, chance decides


def rule_without_negatives(binarize: str) -> str:
    """What is done where no label is negative, in words; `binarize` is that of `common.masks.MapsToMaskd`."""
    how = binarize.replace("_", "-").replace("otsu", "Otsu")
    return f"no label says that nothing is there: every case is marked, cut by {how}"


class LabelCalibration(CaseHandler):
    """Handler: settings of `MapsToMaskd` from the labels of slices or volumes, written beside the weights.

    Gate: `common.masks.choose_gate` on the probabilities of slices with organ; `common.masks.volume_gate` where volumes
    have one label. Threshold: a quantile of the heat inside the organ where the label says that nothing is: in negative
    slices that the gate shuts, or in all slices of negative volumes. Smallest volume:
    `common.masks.smallest_volume`. Where the datalist has nothing but classes that are told from one another, no label
    says what heat means nothing: with `without_negatives` every slice passes, and each case's own heat is cut. The
    result goes to `calibrated.json` and beside the weights (`chosen`), every candidate to `calibration.csv`, with what
    labels tell about it. The evaluator must have no postprocessing, and run in one process.

    Args:
        output_dir: where the files go.
        ckpt: the weights.
        start: the options of `MapsToMaskd` that stay: `refine`, `binarize` …
        quantile: of the heat in negatives that is the threshold.
        quantiles: others to report.
        natural: threshold that maps have by themselves, such as 0 of logits trained against (pseudo-)masks; it
            counts where the quantile is lower, but for maps that have not learned to reach it: then the level that
            `common.masks.reached_level` finds in positive slices, or in positive volumes.
        natural_gate: gate of a network whose probability is read off its map, trained against (pseudo-)masks; it counts
            where three quarters of the positives reach it, and else what they reach.
        organ: `lung` takes `common.masks.OF_LUNGS` in place of entries of `start` and the quantile.
        normalize: mode of `common.preprocessing.NormalizeByOrgand`. In lungs, and where images are not in multiples of
            the organ's intensity, the refinement's `intensity` is that of `common.masks.healthy_intensity`.
        sensitivity: of the gate; by default Youden's J chooses.
        for_volumes: what takes the place of `quantile` and of entries of `start` where volumes have one label.
        without_negatives: what takes the place of entries of `start` where no label of training and validation says
            that nothing is there, and several classes are told from one another: `binarize` (`otsu`), `refine` …;
            None: that is an error.
        more: settings that are kept beside the weights with what is chosen here, such as how maps were combined.
        most: so many cases, evenly drawn, are looked at.
        datalist: whose content identifies the labels, and says whether there are negatives at all.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        ckpt: PathLike,
        start: Mapping[str, Any],
        quantile: float = 0.999,
        quantiles: Sequence[float] = (),
        natural: float | None = None,
        natural_gate: float | None = None,
        organ: str | None = None,
        normalize: str = "organ_median",
        sensitivity: float | None = None,
        for_volumes: Mapping[str, Any] | None = None,
        without_negatives: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
        most: int = 64,
        datalist: PathLike | None = None,
    ) -> None:
        super().__init__(output_dir)
        self.ckpt = ckpt
        self.start = dict(start)
        self.quantile = quantile
        self.quantiles = list(quantiles)
        self.natural = natural
        self.natural_gate = natural_gate
        self.lungs = organ == "lung"
        self.relative = not self.lungs and in_multiples(normalize)
        self.sensitivity = sensitivity
        self.for_volumes = dict(for_volumes or {})
        self.without_negatives = dict(without_negatives) if without_negatives else None
        self.more = dict(more or {})
        self.most = most
        self.datalist = datalist

    def _start(self) -> None:
        if get_world_size() > 1:
            raise RuntimeError("calibration looks at all cases in one process: run it without torchrun")
        super()._start()

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        case = engine.cases[batch["case"]]
        places = np.linspace(0, len(engine.cases) - 1, min(self.most, len(engine.cases))).round().astype(int)
        if list(engine.cases).index(batch["case"]) not in places:
            return
        image: MetaTensor = batch["image"].cpu()
        pred = torch.as_tensor(output["pred"]).cpu().float()
        organ = as_array(image)[-1] > 0.5
        positive, labels = labels_of(case, pred.shape[-1])
        seen = MapsToMaskd("pred", gate=None)({"image": image, "pred": pred})
        heat, seen_slices = as_array(seen["heatmap"])[0], organ.any(axis=(0, 1))
        empty = seen_slices & (~labels if labels is not None else not positive)
        self.rows.append(
            {
                "case": batch["case"],
                "patient": str(case.get("patient", batch["case"])),
                "image": image[[0, -1]].half(),
                "maps": pred[: len(pred) // 2].half(),
                "slices": pred[len(pred) // 2 :, 0, 0, :],
                "positive": positive,
                "cls": case.get("cls"),
                "called": 1 + as_array(seen["slice_probability"])[1:, seen_slices].argmax(axis=0),
                "labels": None if labels is None else labels[seen_slices],
                "probability": 1 - as_array(seen["slice_probability"])[0][seen_slices],
                "seen": seen_slices,
                "empty": empty,
                "heat": heat.astype(np.float16),
                "organ": organ,
                "otsu": otsu(heat, mask=organ),
            }
        )

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no case to calibrate on: is the datalist's section right?")

    def _write(self) -> None:
        of_slices = any(row["labels"] is not None for row in self.rows)
        probabilities, labels = self._labeled()
        source: dict[str, Any] = {
            "labels": "slices" if of_slices else "volumes",
            "masks": "none",
            "cases": len(self.rows),
            "patients": len({row["patient"] for row in self.rows}),
            "positives": int(labels.sum()),
            "negatives": int((~labels).sum()),
            "datalist_sha256": file_digest(self.datalist) if self.datalist else None,
        }
        if labels.all() and self.without_negatives and self.datalist and tells_classes_apart(read_json(self.datalist)):
            best = {**self.start, "gate": 0.0, "threshold": 0.0, "min_volume_ml": 0.0, **self.without_negatives}
            others = [("multi-Otsu", {**best, "binarize": "multi_otsu"})]
            source |= {"rule": rule_without_negatives(best["binarize"]), "classes_told_apart": self._told_apart()}
            print(source["rule"])
        else:
            best, others = self._from_negatives(of_slices, probabilities, labels)
        candidates = [("chosen", best), *others, ("no refinement", {**best, "refine": None})]
        rows = [{"candidate": name} | self._told_by_labels(options) for name, options in candidates]
        write_csv(self.output_dir / "calibration.csv", rows)
        chosen = {**best, "raw_threshold": best["threshold"], **self.more}
        add_beside(self.ckpt, chosen=chosen, chosen_from=source)
        write_json(self.output_dir / "calibrated.json", chosen)
        print(f"chosen from labels of {len(self.rows)} cases, no mask: {json.dumps(chosen)}")

    def _from_negatives(self, of_slices: bool, probabilities: np.ndarray, labels: np.ndarray) -> tuple[dict, list]:
        """Options of `MapsToMaskd` by probabilities and heat where the label is no, and others, each with its name."""
        fewest = int(min(np.sum(labels), len(labels) - np.sum(labels)))
        if 0 < fewest < FEW:  # none is an error
            kind = "positive" if 2 * np.sum(labels) < len(labels) else "negative"
            what = f"{fewest} {kind} {'slices' if of_slices else 'volumes'}"
            logger.warning("gate and threshold hang on %s; let more decide: --section training+validation", what)
        gate = choose_gate(probabilities, labels, sensitivity=self.sensitivity)
        start, quantile = dict(self.start), self.quantile
        if not of_slices:
            start |= self.for_volumes
            gate, quantile = volume_gate(probabilities, labels), start.pop("quantile", quantile)
        if self.natural_gate is not None:
            gate = min(self.natural_gate, reached_level(probabilities[labels]))
        if self.lungs:
            start |= OF_LUNGS
            quantile = start.pop("quantile")
        if not self.relative and start.get("refine"):
            start["refine"] = {**start["refine"], "adaptive": 0.0, "intensity": self._intensity(start["refine"])}
        heats = [self._heat_of_nothing(row, gate) for row in (self._unseen() if self.lungs else self.rows)]
        threshold = max(heat_threshold(heats, quantile), self._natural(of_slices))
        best = {**start, "gate": gate, "threshold": threshold}
        best["min_volume_ml"] = self._smallest(best)
        others = [("natural zero", {**best, "threshold": 0.0})]
        others += [(f"quantile {q:g}", {**best, "threshold": heat_threshold(heats, q)}) for q in self.quantiles]
        median_otsu = float(np.median([row["otsu"] for row in self.rows if np.isfinite(row["otsu"])] or [np.inf]))
        return best, [*others, ("Otsu", {**best, "threshold": median_otsu})]

    def _intensity(self, refine: Mapping[str, Any]) -> float:
        """Brightness that lesions exceed, smoothed as the refinement does before it compares."""
        values: dict[str, list[np.ndarray]] = {}
        for row in self.rows:
            image, spacing = as_array(row["image"])[0], spacing_of(row["image"])
            bright = smooth_in_plane(image, smooth_mm=refine.get("smooth_mm", 1.0), spacing=spacing)
            values.setdefault(row["patient"], []).append(bright[..., row["empty"]][row["organ"][..., row["empty"]]])
        return round(healthy_intensity([np.concatenate(some) for some in values.values()]), 4)

    def _unseen(self) -> list[dict[str, Any]]:
        """Cases that did not teach the network: where it was told that nothing is, it has less heat than elsewhere."""
        taught = {case["case"] for case in read_json(self.datalist).get("training", [])} if self.datalist else set()
        unseen = [row for row in self.rows if row["case"] not in taught]
        return unseen if any(row["empty"].any() for row in unseen) else self.rows

    def _told_apart(self) -> float | None:
        """Mean over classes of the share of slices that are called by their class; None of a single class.

        That it is no better than chance is no error: with few slices a good network may be so unlucky.
        """
        cls = [np.broadcast_to(np.asarray(row["cls"]), row["seen"].shape)[row["seen"]] for row in self.rows]
        truth = np.concatenate(cls)
        share = balanced_accuracy(truth, np.concatenate([row["called"] for row in self.rows]))
        if share <= 1 / len(np.unique(truth)):
            what = "classes are told apart no better than by chance (%.3g of each class called so); train longer"
            logger.warning(f"{what}, or look at labels and images", share)
        return None if np.isnan(share) else round(share, 4)

    def _natural(self, of_slices: bool) -> float:
        """The natural threshold, or what positives reach; −∞ if there is none."""
        if self.natural is None:
            return -np.inf
        peaks = np.concatenate([self._peaks(row) for row in self.rows if not of_slices or row["labels"] is not None])
        level = reached_level(peaks) if len(peaks) else np.inf
        if level < self.natural:
            what = "maps stay low: three quarters of %d positives reach %.4g and not the natural threshold %.4g"
            logger.warning(f"{what}; a longer training may help", len(peaks), level, self.natural)
        return min(self.natural, level)

    def _labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and labels of slices, or, where there are none, of volumes.

        Beside labels of slices, a no of a whole volume is one of each of its slices; a yes does not say of which.
        """
        if any(row["labels"] is not None for row in self.rows):
            told = [row for row in self.rows if row["labels"] is not None or not row["positive"]]
            nothing = [np.zeros(len(row["probability"]), dtype=bool) for row in told]
            labels = [none if row["labels"] is None else row["labels"] for row, none in zip(told, nothing, strict=True)]
            return np.concatenate([row["probability"] for row in told]), np.concatenate(labels)
        suspicious = np.array([row["probability"].max(initial=0.0) for row in self.rows])
        return suspicious, np.array([row["positive"] for row in self.rows])

    @staticmethod
    def _heat_of_nothing(row: Mapping[str, Any], gate: float) -> np.ndarray:
        """Heat inside the organ of slices labeled empty; those that the gate mistakes are hot, and left out."""
        quiet = row["empty"].copy()
        if row["labels"] is not None:
            quiet[row["seen"]] &= row["probability"] <= gate
        return row["heat"][..., quiet][row["organ"][..., quiet]]

    @staticmethod
    def _peaks(row: Mapping[str, Any]) -> np.ndarray:
        """Highest heat inside the organ of each slice labeled positive; with one label, of a positive volume."""
        positive = row["seen"].copy()
        if row["labels"] is not None:
            positive[row["seen"]] = row["labels"]
        if not row["positive"] or not positive.any():
            return np.empty(0)
        peaks = row["heat"][..., positive].max(axis=(0, 1))  # outside the organ heat has its minimum
        return peaks if row["labels"] is not None else peaks.max(keepdims=True)

    def _smallest(self, options: Mapping[str, Any]) -> float:
        """Milliliters that tell masks in negative volumes from those in positive ones; 0 if none are needed."""
        sizes = [volume_ml(self._mask(row, options), spacing_of(row["image"])) for row in self.rows]
        return smallest_volume(sizes, [row["positive"] for row in self.rows])

    @staticmethod
    def _mask(row: Mapping[str, Any], options: Mapping[str, Any]) -> np.ndarray:
        maps = row["maps"].float()
        pred = torch.cat([maps, row["slices"][:, None, None, :].expand(-1, *maps.shape[1:3], -1)])
        data: dict[Hashable, Any] = {"image": row["image"].float(), "pred": pred}
        return np.asarray(MapsToMaskd("pred", **options)(data)["pred"])[0] > 0

    def _told_by_labels(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Threshold, and how often positives get a mask and negatives none, slice by slice and by volume."""
        hit: list[bool] = []
        spared: list[bool] = []
        slices: list[tuple[bool, bool]] = []
        false_ml: list[float] = []
        for row in self.rows:
            mask = self._mask(row, options)
            (hit if row["positive"] else spared).append(mask.any() == row["positive"])
            if not row["positive"]:
                false_ml.append(volume_ml(mask, spacing_of(row["image"])))
            if row["labels"] is not None:
                slices += list(zip(np.asarray(mask.any(axis=(0, 1)))[row["seen"]], row["labels"], strict=True))
        table = np.array(slices, dtype=bool).reshape(-1, 2)
        marked, labels = table[:, 0], table[:, 1]
        shares = {
            "positive_volumes_marked": hit,
            "negative_volumes_empty": spared,
            "positive_slices_marked": marked[labels],
            "negative_slices_empty": ~marked[~labels],
            "ml_in_negative_volumes": false_ml,
        }
        means = {name: round(float(np.mean(values)), 4) if len(values) else None for name, values in shares.items()}
        return {"threshold": round(float(options["threshold"]), 6), "gate": round(float(options["gate"]), 6)} | means
