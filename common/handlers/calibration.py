"""Choose gate, threshold and refinement on validation patients, once, by a command that can be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.distributed import get_world_size
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from tqdm import tqdm

from ..files import write_csv, write_json
from ..masks import MapsToMaskd, best_threshold
from ..metrics import dice
from .base import CaseHandler


class Calibration(CaseHandler):
    """Handler: coordinate ascent of the mean 3D Dice over options of `MapsToMaskd`, and of the raw map's threshold.

    Every option's candidates are tried in turn while the others stay, and the best stays; `passes` times. A refinement
    that is no better than the raw map above its threshold is left out (`refine` null). The result goes to
    `calibrated.json`, a config that overrides `inference.json` and `evaluate.json`, and every trial to
    `calibration.csv`. Scores are taken in the model's grid. The evaluator must have no postprocessing, and run in one
    process.

    Args:
        output_dir: where the files go.
        start: options to begin with, as `MapsToMaskd` takes them.
        candidates: values to try by option; `refine.dilate_mm` reaches into `refine`.
        raw_thresholds: candidates of `raw_threshold`.
        passes: over all options.
        label_gate: gate the slices by their true label in place of the probability. So pseudo-masks are made, whose
            options are what is sought then.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        start: Mapping[str, Any],
        candidates: Mapping[str, Sequence[Any]],
        raw_thresholds: Sequence[float] = (),
        passes: int = 2,
        label_gate: bool = False,
    ) -> None:
        super().__init__(output_dir)
        self.start = dict(start)
        self.candidates = dict(candidates)
        self.raw_thresholds = list(raw_thresholds)
        self.passes = passes
        self.label_gate = label_gate
        self.trials: list[dict[str, Any]] = []

    def _start(self) -> None:
        if get_world_size() > 1:
            raise RuntimeError(
                f"calibration looks at all cases in one process, but {get_world_size()} were started: run it without "
                "torchrun"
            )
        super()._start()
        self.trials = []

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        image: MetaTensor = batch["image"].cpu()
        truth = ResampleToMatch(mode="nearest")(batch["label"].cpu(), image)[0].numpy() > 0
        pred = torch.as_tensor(output["pred"]).cpu()
        if self.label_gate:
            classes = pred.shape[0] // 2
            pred[classes:] = 0.0
            pred[classes] = torch.as_tensor(~truth.any(axis=(0, 1))).float()
            pred[classes + 1] = 1 - pred[classes]
        self.rows.append({"case": batch["case"], "image": image, "pred": pred, "truth": truth})

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no case with a mask to calibrate on: is the datalist's section right?")

    def _write(self) -> None:
        best, score = dict(self.start), self._score(self.start)
        for _ in range(self.passes):
            for name, values in tqdm(self.candidates.items(), desc="calibrating", unit="option"):
                for value in values:
                    trial = _with(best, name, value)
                    if trial != best and (new := self._score(trial)) > score:
                        best, score = trial, new
        raw = self._raw_threshold(best)
        if best.get("refine") is not None and self.raw_thresholds:
            plain = {**best, "refine": None, "threshold": raw}
            if (new := self._score(plain)) >= score:
                best, score = plain, new
        result = {**best, "raw_threshold": raw}
        write_csv(self.output_dir / "calibration.csv", self.trials)
        write_json(self.output_dir / "calibrated.json", result)
        print(f"mean Dice {score:.4f} over {len(self.rows)} cases with {json.dumps(result)}")

    def _score(self, options: Mapping[str, Any]) -> float:
        transform = MapsToMaskd("pred", **options)
        scores = [dice(transform(dict(case))["pred"][0].numpy() > 0, case["truth"]) for case in self.rows]
        score = float(np.mean(scores))
        self.trials.append({"dice": round(score, 4), "median": round(float(np.median(scores)), 4)} | _flat(options))
        return score

    def _raw_threshold(self, options: Mapping[str, Any]) -> float:
        if not self.raw_thresholds:
            return float(options.get("threshold", 0.0))
        heats = [MapsToMaskd("pred")(dict(case))["heatmap"][0].numpy() for case in self.rows]
        truths = [case["truth"] for case in self.rows]
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
