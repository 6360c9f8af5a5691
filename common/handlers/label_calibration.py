"""Choose gate, threshold and smallest volume from yes/no labels alone: no mask is opened."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import add_beside
from ..data.splits import tells_classes_apart
from ..files import PathLike, file_digest, read_json, write_csv, write_json
from ..masks import (
    OF_LUNGS,
    choose_gate,
    healthy_intensity,
    heat_threshold,
    in_multiples,
    otsu,
    reached_level,
    smallest_volume,
    volume_gate,
)
from ..metrics import balanced_accuracy
from .base import CaseHandler, chosen_from_section
from .labeled_case import LabeledCase

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
        start: the options of `MapsToMaskd` that stay, and are written with what is chosen: `refine`, `binarize` …
        fixed: other options of it, those of inference, that are not written: `evidence`, `min_component_ml` …
        quantile: of the heat in negatives that is the threshold.
        quantiles: others to report.
        natural: threshold that maps have by themselves, such as 0 of logits trained against (pseudo-)masks; it
            counts where the quantile is lower, but for maps that have not learned to reach it: then the level that
            `common.masks.reached_level` finds in positive slices, or in positive volumes.
        below_otsu: the threshold is at most the median over cases of Otsu's: for maps that are the mean of what planes
            of many angles say, of which thin lesions fill few.
        natural_gate: gate of a network whose probability is read off its map, trained against (pseudo-)masks; it counts
            where three quarters of the positives reach it, and else what they reach.
        organ: `lung` takes `common.masks.OF_LUNGS` in place of entries of `start` and the quantile.
        normalize: mode of `common.preprocessing.NormalizeByOrgand`. In lungs, and where images are not in multiples of
            the organ's intensity, the refinement's `intensity` is that of `common.masks.healthy_intensity`.
        sensitivity: of the gate, a natural one or not; by default Youden's J chooses, or `common.masks.volume_gate`.
        for_volumes: what takes the place of `quantile` and of entries of `start` where volumes have one label.
        without_negatives: what takes the place of entries of `start` where no label of training and validation says
            that nothing is there, and several classes are told from one another: `binarize` (`otsu`), `refine` …;
            None: that is an error.
        more: settings that are kept beside the weights with what is chosen here, such as how maps were combined.
        most: so many cases, evenly drawn, are looked at.
        datalist: whose content identifies the labels, and says whether there are negatives at all.
        section: of the datalist, which these cases are.
    """

    one_process = True

    def __init__(
        self,
        output_dir: str | Path,
        *,
        ckpt: PathLike,
        start: Mapping[str, Any],
        fixed: Mapping[str, Any] | None = None,
        quantile: float = 0.999,
        quantiles: Sequence[float] = (),
        natural: float | None = None,
        below_otsu: bool = False,
        natural_gate: float | None = None,
        organ: str | None = None,
        normalize: str = "organ_median",
        sensitivity: float | None = None,
        for_volumes: Mapping[str, Any] | None = None,
        without_negatives: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
        most: int = 64,
        datalist: PathLike | None = None,
        section: str | None = None,
    ) -> None:
        super().__init__(output_dir)
        self.ckpt = ckpt
        self.start = dict(start)
        self.fixed = dict(fixed or {})
        self.quantile = quantile
        self.quantiles = list(quantiles)
        self.natural = natural
        self.below_otsu = below_otsu
        self.natural_gate = natural_gate
        self.lungs = organ == "lung"
        self.relative = not self.lungs and in_multiples(normalize)
        self.sensitivity = sensitivity
        self.for_volumes = dict(for_volumes or {})
        self.without_negatives = dict(without_negatives) if without_negatives else None
        self.more = dict(more or {})
        self.most = most
        self.datalist = datalist
        self.section = section

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        case = engine.cases[batch["case"]]
        places = np.linspace(0, len(engine.cases) - 1, min(self.most, len(engine.cases))).round().astype(int)
        if list(engine.cases).index(batch["case"]) in places:
            pred = torch.as_tensor(output["pred"]).cpu().float()
            labeled = LabeledCase.of({**case, "case": batch["case"]}, batch["image"].cpu(), pred, self.fixed)
            self.rows.append({"case": batch["case"], "labeled": labeled})

    @property
    def cases(self) -> list[LabeledCase]:
        """Those that were looked at."""
        return [row["labeled"] for row in self.rows]

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no case to calibrate on: is the datalist's section right?")

    def _write(self) -> None:
        of_slices = any(case.labels is not None for case in self.cases)
        probabilities, labels = self._labeled()
        source: dict[str, Any] = {
            "labels": "slices" if of_slices else "volumes",
            "masks": "none",
            "cases": len(self.cases),
            "patients": len({case.patient for case in self.cases}),
            "positives": int(labels.sum()),
            "negatives": int((~labels).sum()),
            "datalist_sha256": file_digest(self.datalist) if self.datalist else None,
            **chosen_from_section(self.section, self.datalist),
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
        print(f"chosen from labels of {len(self.cases)} cases, no mask: {json.dumps(chosen)}")

    def _labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and labels of slices, or, where there are none, of volumes.

        Beside labels of slices, a no of a whole volume is one of each of its slices; a yes does not say of which.
        """
        if any(case.labels is not None for case in self.cases):
            told = [case for case in self.cases if case.labels is not None or not case.positive]
            probabilities = [case.probability[case.seen] for case in told]
            return np.concatenate(probabilities), np.concatenate([case.full[case.seen] for case in told])
        suspicious = [case.probability[case.seen].max(initial=0.0) for case in self.cases]
        return np.array(suspicious), np.array([case.positive for case in self.cases])

    def _from_negatives(self, of_slices: bool, probabilities: np.ndarray, labels: np.ndarray) -> tuple[dict, list]:
        """Options of `MapsToMaskd` by probabilities and heat where the label is no, and others, each with its name."""
        self._warn_of_few(of_slices, labels)
        gate = self._gate(of_slices, probabilities, labels)
        quantile, rule = self._rule(of_slices)
        heats = [case.heat_of_nothing(gate) for case in (self._unseen() if self.lungs else self.cases)]
        threshold = max(heat_threshold(heats, quantile), self._natural(of_slices))
        median_otsu = self._median_otsu()
        threshold = min(threshold, median_otsu) if self.below_otsu else threshold
        best = {**rule, "gate": gate, "threshold": threshold}
        whole = [case for case in self.cases if not case.half]  # what a healthy half has may reach over the middle
        sizes = [case.ml(case.mask(best)) for case in whole]
        best["min_volume_ml"] = smallest_volume(sizes, [case.positive for case in whole])
        others = [("natural zero", 0.0), *((f"quantile {q:g}", heat_threshold(heats, q)) for q in self.quantiles)]
        others.append(("Otsu", median_otsu))
        return best, [(name, {**best, "threshold": other}) for name, other in others]

    def _gate(self, of_slices: bool, probabilities: np.ndarray, labels: np.ndarray) -> float:
        """What the labels choose; of a network that has a natural gate that one, or what positives reach."""
        asked = {} if self.sensitivity is None else {"sensitivity": self.sensitivity}
        if asked or self.natural_gate is None:
            return (choose_gate if of_slices else volume_gate)(probabilities, labels, **asked)
        choose_gate(probabilities, labels)  # which refuses labels that probabilities do not rise with
        return min(self.natural_gate, reached_level(probabilities[labels]))

    def _rule(self, of_slices: bool) -> tuple[float, dict[str, Any]]:
        """The quantile, and the options of `MapsToMaskd` that stay; of these the brightness is the data's own."""
        rule = {"quantile": self.quantile, **self.start}
        rule |= {} if of_slices else self.for_volumes
        rule |= OF_LUNGS if self.lungs else {}
        if not self.relative and rule.get("refine"):
            rule["refine"] = {**rule["refine"], "adaptive": 0.0, "intensity": self._intensity(rule["refine"])}
        return rule.pop("quantile"), rule

    def _median_otsu(self) -> float:
        """Of the cases whose heat has one; +∞ where none has."""
        cuts = np.array([otsu(case.heat, mask=case.organ) for case in self.cases])
        return float(np.median(cuts[np.isfinite(cuts)])) if np.isfinite(cuts).any() else np.inf

    @staticmethod
    def _warn_of_few(of_slices: bool, labels: np.ndarray) -> None:
        fewest = int(min(np.sum(labels), len(labels) - np.sum(labels)))
        if 0 < fewest < FEW:  # none is an error
            kind = "positive" if 2 * np.sum(labels) < len(labels) else "negative"
            what = f"{fewest} {kind} {'slices' if of_slices else 'volumes'}"
            logger.warning("gate and threshold hang on %s; let more decide: --section training+validation", what)

    def _intensity(self, refine: Mapping[str, Any]) -> float:
        """Brightness that lesions exceed."""
        values: dict[str, list[np.ndarray]] = {}
        for case in self.cases:
            values.setdefault(case.patient, []).append(case.brightness_of_nothing(refine.get("smooth_mm", 1.0)))
        return round(healthy_intensity([np.concatenate(some) for some in values.values()]), 4)

    def _unseen(self) -> list[LabeledCase]:
        """Cases that did not teach the network: where it was told that nothing is, it has less heat than elsewhere."""
        taught = {case["case"] for case in read_json(self.datalist).get("training", [])} if self.datalist else set()
        unseen = [case for case in self.cases if case.name not in taught]
        return unseen if any(case.empty.any() for case in unseen) else self.cases

    def _natural(self, of_slices: bool) -> float:
        """The natural threshold, or what positives reach; −∞ if there is none."""
        if self.natural is None:
            return -np.inf
        peaks = np.concatenate([case.peaks() for case in self.cases if not of_slices or case.labels is not None])
        level = reached_level(peaks) if len(peaks) else np.inf
        if level < self.natural:
            what = "maps stay low: three quarters of %d positives reach %.4g and not the natural threshold %.4g"
            logger.warning(f"{what}; a longer training may help", len(peaks), level, self.natural)
        return min(self.natural, level)

    def _told_apart(self) -> float | None:
        """Mean over classes of the share of slices that are called by their class; None of a single class.

        That it is no better than chance is no error: with few slices a good network may be so unlucky.
        """
        truth = np.concatenate([np.broadcast_to(case.cls, case.seen.shape)[case.seen] for case in self.cases])
        called = np.concatenate([1 + case.classes[1:, case.seen].argmax(axis=0) for case in self.cases])
        share = balanced_accuracy(truth, called)
        if share <= 1 / len(np.unique(truth)):
            what = "classes are told apart no better than by chance (%.3g of each class called so); train longer"
            logger.warning(f"{what}, or look at labels and images", share)
        return None if np.isnan(share) else round(share, 4)

    def _told_by_labels(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Threshold, and how often positives get a mask and negatives none, slice by slice and by volume."""
        told: dict[str, list] = {
            "positive_volumes_marked": [],
            "negative_volumes_empty": [],
            "positive_slices_marked": [],
            "negative_slices_empty": [],
            "ml_in_negative_volumes": [],
        }
        for case in self.cases:
            mask = case.mask(options)
            if case.positive:
                told["positive_volumes_marked"].append(mask.any())
            else:
                told["negative_volumes_empty"].append(not mask.any())
                told["ml_in_negative_volumes"].append(case.ml(mask))
            if case.labels is not None:
                marked: np.ndarray = np.any(mask, axis=(0, 1))
                told["positive_slices_marked"] += list(marked[case.full])
                told["negative_slices_empty"] += list(~marked[case.empty])
        means = {name: round(float(np.mean(values)), 4) if values else None for name, values in told.items()}
        return {"threshold": round(float(options["threshold"]), 6), "gate": round(float(options["gate"]), 6)} | means
