"""A figure of cases from best to worst: scan, truth, heatmap and every mask that competes, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from ..files import atomic_path
from ..images import axial
from ..metrics import dice
from .base import CaseHandler
from .montage import MASK_COLOR, TRUTH_COLOR


class Panel(CaseHandler):
    """Handler: writes `panel.png`, one row a case, at the axial slice that holds most of the truth.

    Args:
        output_dir: where the file goes.
        columns: masks to show, `pred` or keys `baseline_<name>`; None for `pred` and all that there are.
        quantiles: which cases to show, by their rank in the Dice of `pred`: 1 is the best, 0 the worst.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        columns: Sequence[str] | None = None,
        quantiles: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.0),
    ) -> None:
        super().__init__(output_dir)
        self.columns = columns
        self.quantiles = list(quantiles)

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        if "label" not in batch or not bool((batch["label"] > 0).any()):
            return
        truth = axial(batch["label"])[0].numpy() > 0
        z = int(truth.sum(axis=(0, 1)).argmax())
        shown = self.columns or ["pred", *(k for k in output if str(k).startswith("baseline_"))]
        volumes = {key: axial(output[key])[0].numpy() > 0 for key in shown}
        self.rows.append(
            {
                "case": batch["case"],
                "dice": dice(axial(output["pred"])[0].numpy() > 0, truth),
                "scan": axial(batch["scan"])[0].numpy()[..., z],
                "heat": axial(output["heatmap"])[0].numpy()[..., z],
                "truth": truth[..., z],
                "masks": {key: volume[..., z] for key, volume in volumes.items()},
                "scores": {key: dice(volume, truth) for key, volume in volumes.items()},
            }
        )

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError(
                "no case with a lesion in its ground truth: is evaluate.json, which reads masks, among the configs?"
            )

    def _write(self) -> None:
        ranked = sorted(self.rows, key=lambda row: row["dice"])
        chosen = [ranked[round(q * (len(ranked) - 1))] for q in self.quantiles]
        columns = list(chosen[0]["masks"])
        size = (1.7 * (2 + len(columns)), 1.9 * len(chosen))
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(chosen), 2 + len(columns), squeeze=False)
        for line, row in zip(axes, chosen, strict=True):
            for axis in line:
                axis.imshow(row["scan"].T, cmap="gray")
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(f"{row['case'][:18]}\nDice {row['dice']:.2f}", fontsize=6)
            _outline(line[0], row["truth"], TRUTH_COLOR)
            reach = max(float(np.abs(row["heat"]).max()), 1e-6)
            line[1].imshow(row["heat"].T, cmap="RdBu_r", vmin=-reach, vmax=reach, alpha=0.6)
            for axis, key in zip(line[2:], columns, strict=True):
                _outline(axis, row["truth"], TRUTH_COLOR)
                _outline(axis, row["masks"][key], MASK_COLOR)
                axis.set_xlabel(f"{row['scores'][key]:.2f}", fontsize=6)
        titles = ["truth", "heatmap", *(key.removeprefix("baseline_") for key in columns)]
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=7)
        with atomic_path(self.output_dir / "panel.png") as path:
            figure.savefig(path, dpi=110)


def _outline(axis: Any, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    if mask.any():
        axis.contour(mask.T, levels=[0.5], colors=[np.divide(color, 255)], linewidths=0.8)
