"""Gates and thresholds of slides from their yes/no labels alone: no outline is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import add_beside
from common.files import PathLike, file_digest, rounded, write_csv, write_json
from common.handlers import CaseHandler
from common.handlers.base import chosen_from_section
from common.masks import choose_gate, heat_threshold

MOST_CELLS = 100_000  # of a slide, evenly drawn: enough for a quantile of .999


class SlideCalibration(CaseHandler):
    """Handler: for each label, a gate for the probability and a threshold for the heat, written beside the weights.

    Gate: `common.masks.choose_gate` on the slides' probabilities. Threshold: a quantile of the heat in the tissue of
    slides without the label. Both go to `calibrated.json` and, as `chosen`, to the `.json` beside the weights;
    `calibration.csv` tells for each quantile how much tissue it marks in slides with and without the label, behind the
    gate.

    Args:
        output_dir: where the files go.
        ckpt: the weights.
        classes: names, the negative one first.
        sensitivity: share of positive slides that pass the gate; None: Youden's J chooses. The quantile alone bounds
            what is marked in negatives, so the gate may be low.
        quantile: of the heat in negatives that becomes the threshold.
        quantiles: others to report.
        more: settings that are kept beside the weights with what is chosen here.
        datalist: whose content identifies the labels.
        section: of the datalist, which these slides are.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        ckpt: PathLike,
        classes: Sequence[str],
        sensitivity: float | None = None,
        quantile: float = 0.99,
        quantiles: Sequence[float] = (),
        more: Mapping[str, Any] | None = None,
        datalist: PathLike | None = None,
        section: str | None = None,
    ) -> None:
        super().__init__(output_dir)
        self.ckpt = ckpt
        self.names = list(classes)[1:]
        self.sensitivity = sensitivity
        self.quantile = quantile
        self.quantiles = list(quantiles)
        self.more = dict(more or {})
        self.datalist = datalist
        self.section = section

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        result = output["pred"]
        if "labels" not in result.case:
            return
        rows, columns = np.nonzero(result.inside)
        step = max(1, len(rows) // MOST_CELLS)
        heat = np.asarray(result.heat[:, rows[::step], columns[::step]], np.float32)
        labels = np.asarray(result.case["labels"]).astype(bool)
        row = {"case": result.case["case"], "patient": result.case["patient"], "labels": labels}
        self.rows.append(row | {"probability": np.asarray(result.probability), "heat": heat})

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no slide has a label: is the datalist's section right?")

    def _write(self) -> None:
        labels, probability = (np.stack([row[key] for row in self.rows]) for key in ("labels", "probability"))
        pairs = zip(probability.T, labels.T, strict=True)
        gates = [choose_gate(scores, truth, sensitivity=self.sensitivity) for scores, truth in pairs]
        told = {q: self._told(q, gates) for q in sorted({self.quantile, *self.quantiles})}
        thresholds = [row["threshold"] for row in told[self.quantile]]
        write_csv(self.output_dir / "calibration.csv", [rounded(row) for rows in told.values() for row in rows])
        chosen = {"gate": gates, "binarize": "fixed", "threshold": thresholds, **self.more}
        source = {
            "labels": "slides",
            "masks": "none",
            "cases": len(self.rows),
            "patients": len({row["patient"] for row in self.rows}),
            "positives": labels.sum(axis=0).tolist(),
            "negatives": (~labels).sum(axis=0).tolist(),
            "sensitivity": self.sensitivity,
            "heat_quantile": self.quantile,
            "datalist_sha256": file_digest(self.datalist) if self.datalist else None,
            **chosen_from_section(self.section, self.datalist),
        }
        add_beside(self.ckpt, chosen=chosen, chosen_from=source)
        write_json(self.output_dir / "calibrated.json", chosen)
        print(f"chosen from labels of {len(self.rows)} slides, no mask: {json.dumps(chosen)}")

    def _told(self, quantile: float, gates: Sequence[float]) -> list[dict[str, Any]]:
        """For each label the threshold of a quantile, and what share of tissue it marks behind the gate."""
        rows = []
        for k, (name, gate) in enumerate(zip(self.names, gates, strict=True)):
            threshold = heat_threshold([row["heat"][k] for row in self.rows if not row["labels"][k]], quantile)
            told: dict[str, Any] = {"label": name, "quantile": quantile, "gate": gate, "threshold": threshold}
            for word, kind in (("positive", True), ("negative", False)):
                rows_of = [row for row in self.rows if row["labels"][k] == kind]
                shares = [(row["heat"][k] > threshold).mean() * (row["probability"][k] >= gate) for row in rows_of]
                told |= {f"{word}_slides_marked": np.mean(np.array(shares) > 0), f"{word}_share": np.mean(shares)}
            rows.append(told)
        return rows
