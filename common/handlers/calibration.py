"""Choose gate, threshold and refinement on validation patients, once, by a command that can be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from tqdm import tqdm

from ..checkpoint import add_beside
from ..files import PathLike, rounded, write_csv, write_json
from ..images import spacing_of
from ..masks import MapsToMaskd, best_threshold, volume_ml
from ..metrics import dice
from .base import CaseHandler, chosen_from_section


class Calibration(CaseHandler):
    """Handler: coordinate ascent of a score over options of `MapsToMaskd`, and of the raw map's threshold.

    The score is the mean 3D Dice of cases with a lesion, minus the volume that is marked in healthy ones, as a share of
    the mean lesion (at most 1): an empty mask gains nothing anywhere.

    Every option's candidates are tried in turn while the others stay, and the best stays; `passes` times. A refinement
    that is no better than the raw map above its threshold is left out (`refine` null). The result goes to
    `calibrated.json`, a config that overrides `inference.json` and `evaluate.json`, and beside the weights (`chosen`),
    every trial to `calibration.csv`. Scores are taken in the model's grid. The evaluator must have no postprocessing,
    and run in one process.

    Args:
        output_dir: where the files go.
        ckpt: the weights.
        start: options to begin with, as `MapsToMaskd` takes them.
        fixed: other options of it, those of inference, that stay and are not written: `evidence`, `min_component_ml` …
        candidates: values to try by option; `refine.dilate_mm` reaches into `refine`, and is left
            out while that is null.
        raw_thresholds: candidates of `raw_threshold`.
        passes: over all options.
        label_gate: gate the slices by their true label in place of the probability. So pseudo-masks are made, whose
            options are what is sought then.
        more: settings that are kept beside the weights with what is chosen here, such as how maps were combined.
        datalist, section: whose cases these are.
    """

    one_process = True

    def __init__(
        self,
        output_dir: str | Path,
        *,
        ckpt: PathLike,
        start: Mapping[str, Any],
        candidates: Mapping[str, Sequence[Any]],
        fixed: Mapping[str, Any] | None = None,
        raw_thresholds: Sequence[float] = (),
        passes: int = 2,
        label_gate: bool = False,
        more: Mapping[str, Any] | None = None,
        datalist: PathLike | None = None,
        section: str | None = None,
    ) -> None:
        super().__init__(output_dir)
        self.ckpt = ckpt
        self.start = dict(start)
        self.candidates = dict(candidates)
        self.fixed = dict(fixed or {})
        self.raw_thresholds = list(raw_thresholds)
        self.passes = passes
        self.label_gate = label_gate
        self.more = dict(more or {})
        self.datalist = datalist
        self.section = section
        self.trials: list[dict[str, Any]] = []

    def _start(self) -> None:
        super()._start()
        self.trials = []

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        image: MetaTensor = batch["image"].cpu()
        if "label" not in batch:
            raise ValueError(f"case {batch['case']} has no mask: calibrate_labels.json needs none")
        truth = ResampleToMatch(mode="nearest")(batch["label"].cpu(), image)[0].numpy() > 0
        pred = torch.as_tensor(output["pred"]).cpu()
        if self.label_gate:
            classes = pred.shape[0] // 2
            pred[classes:] = 0.0
            pred[classes] = torch.as_tensor(~truth.any(axis=(0, 1))).float()
            pred[classes + 1] = 1 - pred[classes]
        self.rows.append({"case": batch["case"], "image": image, "pred": pred, "truth": truth})

    def _check(self) -> None:
        if not any(row["truth"].any() for row in self.rows):
            raise RuntimeError(
                "no case with a lesion in its mask to calibrate on: is the datalist's section right? "
                "calibrate_labels.json needs no masks"
            )

    def _write(self) -> None:
        best, score = dict(self.start), self._score(self.start)
        for _ in range(self.passes):
            for name, values in tqdm(self.candidates.items(), desc="calibrating", unit="option"):
                outer, _, inner = name.partition(".")
                for value in () if inner and best.get(outer) is None else values:
                    trial = _with(best, name, value)
                    if trial != best and (new := self._score(trial)) > score:
                        best, score = trial, new
        raw = self._raw_threshold(best)
        if best.get("refine") is not None and self.raw_thresholds:
            plain = {**best, "refine": None, "threshold": raw}
            if (new := self._score(plain)) >= score:
                best, score = plain, new
        result = {**best, "raw_threshold": raw, **self.more}
        write_csv(self.output_dir / "calibration.csv", self.trials)
        write_json(self.output_dir / "calibrated.json", result)
        masks = f"{len(self.rows)} cases, to choose these settings"
        source = {"masks": masks, "cases": len(self.rows)} | chosen_from_section(self.section, self.datalist)
        add_beside(self.ckpt, chosen=result, chosen_from=source)
        print(f"score {score:.4f} (Dice minus false volume) over {len(self.rows)} cases with {json.dumps(result)}")

    def _score(self, options: Mapping[str, Any]) -> float:
        transform = MapsToMaskd("pred", **{**self.fixed, **options})
        masks = [transform(dict(case))["pred"][0].numpy() > 0 for case in self.rows]
        scores = [dice(m, row["truth"]) for m, row in zip(masks, self.rows, strict=True) if row["truth"].any()]
        lesions, false = (
            [
                volume_ml(mask, spacing_of(row["image"]))
                for mask, row in zip(which, self.rows, strict=True)
                if row["truth"].any() == ill
            ]
            for which, ill in (([row["truth"] for row in self.rows], True), (masks, False))
        )
        share = min(1.0, float(np.mean(false) / np.mean(lesions))) if false else 0.0
        score = float(np.mean(scores)) - share
        row = {"score": score, "dice": float(np.mean(scores)), "median": float(np.median(scores)), "false_share": share}
        self.trials.append(rounded(row) | _flat(options))
        return score

    def _raw_threshold(self, options: Mapping[str, Any]) -> float:
        if not self.raw_thresholds:
            return float(options.get("threshold", 0.0))
        ill = [row for row in self.rows if row["truth"].any()]
        heats = [MapsToMaskd("pred", **self.fixed)(dict(row))["heatmap"][0].numpy() for row in ill]
        truths = [row["truth"] for row in ill]
        best, score = best_threshold(heats, truths, self.raw_thresholds)
        self.trials.append({"dice": round(score, 4), "raw_threshold": best})
        return best


def _with(options: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    outer, _, inner = name.partition(".")
    return {**options, outer: {**options[outer], inner: value} if inner else value}


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in options.items():
        row |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return row
