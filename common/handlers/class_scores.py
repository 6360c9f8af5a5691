"""GP's paper in tables and plots: slices of several classes, raw and cleaned masks, curves with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from ..data import case_label, patient_of
from ..files import atomic_path, rounded, write_csv, write_json
from ..images import as_array, axial, filled_slices
from ..masks import clean, multi_otsu
from ..metrics import bootstrap_by_patient, bootstrap_interval, class_scores, dice, iou
from .base import OF_MEMORY, CaseHandler
from .class_plots import draw_class_scores


class ClassScores(CaseHandler):
    """Handler: score every slice with a true class, and its mask: `class_slices.csv`, `class_scores.json` and `.png`.

    A slice's true class is the datalist's; where a case has one label, it is that of the slices with a finding in their
    mask, and of all where there is no mask. Slices that show nothing are left out.

    Masks are scored where the true mask holds something, in four ways: `mask` is the run's own; `raw` the heatmap above
    its highest multi-Otsu threshold minus the offset; `cleaned` that after `clean`; `fixed` the heatmap above a fixed
    threshold. Where the organ is known, only its heat counts, as in `common.masks.MapsToMaskd`. Intervals of medians
    draw slices, as the paper's do, and patients. After `prepare --split paper` patients are in several sections, and
    a `note` says that scores are of memory, too.

    Args:
        output_dir: where the files go.
        classes: names, class 0 is healthy.
        offset: of the multi-Otsu threshold, in units of the heatmap.
        offsets: candidates; the median Dice of each, raw and cleaned, goes to `offset_sweep.csv`. For validation only.
        section: of the datalist, which these cases are.
        fixed: the fixed threshold.
        clean: keyword arguments of `common.masks.clean`.
        resamples: bootstrap resamples of the curves' intervals.

    Raises:
        ValueError: offsets are to be compared on test patients.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        classes: Sequence[str],
        offset: float = 0.0,
        offsets: Sequence[float] = (),
        section: str | None = None,
        fixed: float = 0.5,
        clean: Mapping[str, Any] | None = None,
        resamples: int = 500,
    ) -> None:
        super().__init__(output_dir)
        if len(offsets) > 0 and "test" in (section or "").split("+"):
            raise ValueError(
                "offsets compares thresholds by the masks of these cases, and they are the test patients': an offset "
                "chosen there flatters itself; say --section validation"
            )
        self.classes = list(classes)
        self.offset = offset
        self.offsets = list(offsets)
        self.fixed = fixed
        self.clean = dict(clean or {})
        self.resamples = resamples

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        probability = as_array(output["slice_probability"])
        heat, pred = axial(output["heatmap"])[0].numpy(), axial(output["pred"])[0].numpy() > 0
        truth = axial(batch["label"])[0].numpy() > 0 if "label" in batch else None
        organ = axial(batch["organ"])[0].numpy() > 0.5 if "organ" in batch else np.ones(heat.shape, dtype=bool)
        depth = probability.shape[1]
        if heat.shape[-1] != depth:
            raise ValueError(f"case {batch['case']}: {heat.shape[-1]} slices in the scan, {depth} scored")
        labels = true_classes(engine.cases.get(batch["case"], {}), truth, depth)
        slices = torch.as_tensor(as_array(batch["image"])).movedim(-1, 0)
        shown = filled_slices(slices, organ_channel=True).tolist()
        shared = {"case": batch["case"], "patient": patient_of(batch)}
        shared |= {"split": "paper"} if batch.get("split") == "paper" else {}
        for z in range(depth):
            if labels[z] is None or not (shown[z] or labels[z]):
                continue
            row = {**shared, "slice": z, "class": labels[z], "called": int(probability[:, z].argmax())}
            row |= {f"probability_{name}": float(p) for name, p in zip(self.classes, probability[:, z], strict=True)}
            row["marked"] = int(pred[..., z].any())
            if truth is not None and truth[..., z].any():
                row |= self._mask_scores(heat[..., z], pred[..., z], truth[..., z], organ[..., z])
            self.rows.append(row)

    def _mask_scores(self, heat: np.ndarray, pred: np.ndarray, truth: np.ndarray, organ: np.ndarray) -> dict[str, Any]:
        highest = multi_otsu(heat, mask=organ)
        masks = {"mask": pred, "fixed": (heat > self.fixed) & organ}
        for suffix, offset in (("", self.offset), *((f"@{offset:g}", offset) for offset in self.offsets)):
            raw = (heat > max(0.0, highest - offset)) & organ  # nothing where nothing stands out
            masks[f"raw{suffix}"] = raw
            masks[f"cleaned{suffix}"] = clean(raw, **self.clean)
        found = {f"dice_{name}": dice(mask, truth) for name, mask in masks.items()}
        return found | {"jaccard_mask": iou(pred, truth), "jaccard_cleaned": iou(masks["cleaned"], truth)}

    def _check(self) -> None:
        if not self.rows:
            raise RuntimeError("no slice has a true class: is the datalist's section right?")

    def _write(self) -> None:
        names = list(dict.fromkeys(key for row in self.rows for key in row if "@" not in key))
        write_csv(self.output_dir / "class_slices.csv", [rounded({k: r.get(k, "") for k in names}) for r in self.rows])
        summary = self.summary()
        write_json(self.output_dir / "class_scores.json", _plain(summary))
        sweep = self.sweep()
        if sweep:
            write_csv(self.output_dir / "offset_sweep.csv", [rounded(row) for row in sweep])
        figure = draw_class_scores(self.rows, summary, sweep, self.classes)
        with atomic_path(self.output_dir / "class_scores.png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")

    def summary(self) -> dict[str, Any]:
        """What `class_scores.json` holds."""
        probabilities = np.array([[row[f"probability_{name}"] for name in self.classes] for row in self.rows])
        patients, labels = ([row[key] for row in self.rows] for key in ("patient", "class"))
        found = class_scores(probabilities, labels, patients, resamples=self.resamples)
        found["classes"] = {self.classes[k]: scores for k, scores in found["classes"].items()}
        healthy = [row["marked"] for row in self.rows if row["class"] == 0]
        found["healthy_marked"] = float(np.mean(healthy)) if healthy else float("nan")
        found["masks"] = self._medians_by_class()
        found["confidence_against_dice"] = self._confidence_against_dice()
        return found | ({"note": OF_MEMORY} if self.of_memory else {})

    def _masked(self) -> list[dict[str, Any]]:
        """Slices whose true mask holds something."""
        return [row for row in self.rows if "dice_mask" in row]

    def _medians_by_class(self) -> dict[str, Any]:
        masked = self._masked()
        groups = {name: [row for row in masked if row["class"] == k] for k, name in enumerate(self.classes)}
        return {name: self._medians(rows) for name, rows in ({"all": masked} | groups).items() if rows}

    def _confidence_against_dice(self) -> float:
        """Rank correlation of the called class's probability with Dice; NaN where either is the same in all slices."""
        confident = [row[f"probability_{self.classes[row['called']]}"] for row in self._masked()]
        scores = [row["dice_mask"] for row in self._masked()]
        varied = len(set(confident)) > 1 and len(set(scores)) > 1
        return float(spearmanr(confident, scores).statistic) if varied else float("nan")

    def _medians(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        patients = [row["patient"] for row in rows]
        found: dict[str, Any] = {"slices": len(rows)}
        for key in ("dice_mask", "dice_raw", "dice_cleaned", "dice_fixed", "jaccard_mask", "jaccard_cleaned"):
            values = np.array([row[key] for row in rows])
            found[key] = {
                "median": float(np.median(values)),
                "interval_slices": list(bootstrap_interval(values, statistic=np.median)),
                "interval_patients": list(bootstrap_by_patient(patients, _median, values, resamples=self.resamples)),
                "mean": float(values.mean()),
            }
        return found

    def sweep(self) -> list[dict[str, Any]]:
        """Median Dice at each offset."""
        masked, kinds = self._masked(), ("dice_raw", "dice_cleaned")
        return [
            {"offset": offset, **{kind: _median([row[f"{kind}@{offset:g}"] for row in masked]) for kind in kinds}}
            for offset in self.offsets
            if masked
        ]


def true_classes(case: dict[str, Any], truth: np.ndarray | None, depth: int) -> list[int | None]:
    """The true class of each slice, inferior to superior; None where it is not known."""
    found: list[bool] | None = None if truth is None else np.any(truth, axis=(0, 1)).tolist()
    if case.get("cls") is None:
        return [None] * depth if found is None else [int(positive) for positive in found]
    label = case_label(case, depth)
    if isinstance(label, int):
        return [label if positive else 0 for positive in found or [True] * depth]
    return list(label)


def _median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values))


def _plain(value: Any) -> Any:
    """Numbers with four decimals, None for NaN, which JSON lacks."""
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
