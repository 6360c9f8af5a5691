"""Ground truth of slides: polygons drawn in ASAP (CAMELYON16's XML), and how well cells agree with them."""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon

from common.data.matches import some
from common.files import rounded, write_csv, write_json
from common.handlers import CaseHandler
from common.metrics import bootstrap_by_patient, component_scores, dice, iou, roc_auc, summarize

logger = logging.getLogger(__name__)

EXCLUDED = ("_2", "Exclusion")
OFF_TISSUE = 0.5  # share of what is outlined; outlines of its tissue run a little over the edge, or across fat
POINTS = ("Dot", "PointSet")  # types of annotations that outline nothing
DOUBTS = {
    "disagreeing": "labels contradict outlines in %d of %d slides (%s): one says yes where the other says no. Are "
    "labels inverted, or outlines of another slide?",
    "off_tissue": "most of what is outlined holds no tissue in %d of %d slides (%s): are outlines of another slide, or "
    "not in pixels of its finest level?",
}


def read_polygons(path: str | os.PathLike[str]) -> list[tuple[str, np.ndarray]]:
    """Polygons of an ASAP annotation file, each with the name of its group.

    Returns:
        `(group, [M, 2])`, x and y in pixels of the slide's finest level. Points (however many) and lines (M < 3) are
        left out.

    Raises:
        ValueError: no such XML, that of another program, or a coordinate is missing.
    """
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag != "ASAP_Annotations" and next(root.iter("Coordinate"), None) is None:
            raise ValueError(f"<{root.tag}> without a <Coordinate>")
        found = []
        for annotation in root.iter("Annotation"):
            if annotation.get("Type") in POINTS:
                continue
            points = annotation.iter("Coordinate")
            corners = sorted((float(p.attrib["Order"]), float(p.attrib["X"]), float(p.attrib["Y"])) for p in points)
            found.append((annotation.get("PartOfGroup", ""), np.array([corner[1:] for corner in corners])))
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: no annotation as ASAP writes it ({type(error).__name__}: {error}); expected "
            '<Annotation PartOfGroup="..."> with <Coordinate Order="0" X="..." Y="...">.'
        ) from None
    return [(group, corners) for group, corners in found if len(corners) >= 3]


def polygons_to_cells(
    polygons: Sequence[tuple[str, np.ndarray]],
    *,
    shape: tuple[int, int],
    cell_px: tuple[float, float],
    excluded: Sequence[str] = EXCLUDED,
) -> np.ndarray:
    """Cells whose center lies in a polygon, and in none of those that cut holes.

    A polygon too small to hold a cell's center marks the cell of its own center, so that no finding is lost.

    Args:
        polygons: as `read_polygons` gives them.
        shape: rows and columns of cells.
        cell_px: `(x, y)` extent of a cell in the polygons' pixels.
        excluded: groups that cut holes. CAMELYON16: `Tumor`, `_0` and `_1` are tumor, `_2` is normal tissue within.

    Returns:
        `shape` bool.

    Raises:
        ValueError: there are polygons, and all lie beyond the cells.
    """
    cells = np.zeros(shape, bool)
    outlines = [corners for group, corners in polygons if group not in excluded]
    for value in (True, False):
        for group, corners in polygons:
            if (group not in excluded) == value:
                x, y = (corners / cell_px).T
                rows, columns = polygon(y - 0.5, x - 0.5, shape)
                if value and not len(rows):
                    rows, columns = np.floor([[y.mean()], [x.mean()]]).astype(int)
                    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
                    rows, columns = rows[inside], columns[inside]
                cells[rows, columns] = value
        if value and outlines and not cells.any():
            x, y = np.concatenate(outlines).min(axis=0)
            raise ValueError(
                f"all polygons lie beyond the slide, from x {x:.0f}, y {y:.0f} on: they are of another slide, or not "
                "in pixels of its finest level"
            )
    return cells


def label_scores(rows: Sequence[Mapping[str, Any]], name: str, *, resamples: int = 1000) -> dict[str, Any]:
    """What the labels of slides say of one finding, without any outline.

    Args:
        rows: of slides, each with `patient`, `label_<name>`, `probability_<name>` and `share_<name>`, the share of its
            tissue that is marked.
        name: of the finding.
        resamples: of the interval.

    Returns:
        `positives` and `negatives`, how many there are, and how many of either are marked; `tissue_in_negatives`, the
        mean share of tissue marked there; `auc` and `auc_interval`, its 95 % interval by patient, None where fewer than
        5 patients have a slide with it, or without. None where there is no such slide.
    """
    label, probability, share = (
        np.array([row[f"{key}_{name}"] for row in rows]) for key in ("label", "probability", "share")
    )
    ill, result = label == 1, dict.fromkeys(("auc", "auc_interval"))
    if ill.any() and not ill.all():
        patients = [row["patient"] for row in rows]
        interval = bootstrap_by_patient(patients, roc_auc, probability, label, labels=label, resamples=resamples)
        interval = [round(float(v), 4) for v in interval] if np.isfinite(interval).all() else None
        result = {"auc": round(float(roc_auc(probability, label)), 4), "auc_interval": interval}
    for key, chosen in (("positives", ill), ("negatives", ~ill)):
        result |= {key: int(chosen.sum()), f"{key}_marked": int((share[chosen] > 0).sum())}
    return result | {"tissue_in_negatives": None if ill.all() else round(float(share[~ill].mean()), 5)}


class SlideScores(CaseHandler):
    """Handler: Dice and components of slides with ground truth, AUC of all with a label.

    Writes `metrics.csv` (a row for each slide) and `summary.json`. Masks are compared in cells, any label against any
    finding, beside two trivial baselines: the empty mask and all tissue; of several labels each is also compared by
    itself with the polygons of a group of its name. Where labels and outlines contradict each other, `disagreeing`
    counts these slides and names them, and so does a warning; so does `off_tissue` with outlines most of which lie
    where no tissue is. A slide whose label says that nothing is there has an empty truth: its row tells the false
    area, and Dice is averaged over slides with a finding only.

    Args:
        output_dir: where the files go.
        classes: names, the negative one first.
        resamples: of the intervals of AUC.
    """

    def __init__(self, output_dir: str | Path, *, classes: Sequence[str], resamples: int = 1000) -> None:
        super().__init__(output_dir)
        self.names = list(classes)[1:]
        self.resamples = resamples

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        result = output["pred"]
        row: dict[str, Any] = {"case": result.case["case"], "patient": result.case["patient"]}
        row |= {f"probability_{k}": float(p) for k, p in zip(self.names, result.probability, strict=True)}
        if "labels" in result.case:
            row |= {f"label_{k}": int(v) for k, v in zip(self.names, result.case["labels"], strict=True)}
            tissue = max(1, int(result.inside.sum()))
            row |= {f"share_{k}": float((result.mask == i).sum() / tissue) for i, k in enumerate(self.names, 1)}
        truth = result.truth
        if truth is not None and "label" in result.case:
            row |= self._by_label(result)
        if truth is not None:
            mm2 = (result.tiled.grid.cell_um / 1000) ** 2
            pred = result.mask > 0
            row |= {
                "truth_mm2": truth.sum() * mm2,
                "mask_mm2": pred.sum() * mm2,
                "false_mm2": (pred & ~truth).sum() * mm2,
            }
            if truth.any():
                tissue = np.zeros_like(truth)
                tissue[: result.inside.shape[0], : result.inside.shape[1]] = result.inside
                row |= {"dice": dice(pred, truth), "iou": iou(pred, truth), **component_scores(pred, truth)}
                row |= {"dice_empty": 0.0, "dice_tissue": dice(tissue, truth)}
                row |= {"truth_off_tissue": float((truth & ~tissue).sum() / truth.sum())}
        self.rows.append(row)

    def _by_label(self, result: Any) -> dict[str, float]:
        """Dice of each label whose name a group of polygons has, on a slide that has it."""
        polygons = read_polygons(result.case["label"]) if len(self.names) > 1 else []
        found = {}
        for k, name in enumerate(self.names, 1):
            own = [(group, corners) for group, corners in polygons if group in (name, *EXCLUDED)]
            truth = polygons_to_cells(own, shape=result.mask.shape, cell_px=result.tiled.grid.cell_px)
            if truth.any():
                found[f"{name}_dice"] = dice(result.mask == k, truth)
        return found

    def _check(self) -> None:
        if not any("dice" in row or f"label_{self.names[0]}" in row for row in self.rows):
            raise RuntimeError("no slide has a label or ground truth: nothing to score (is the datalist right?)")

    def _write(self) -> None:
        write_csv(self.output_dir / "metrics.csv", [rounded(row) for row in self.rows])
        summary = self.summary()
        write_json(self.output_dir / "summary.json", summary)
        for name, text in DOUBTS.items():
            if found := summary.get(name):
                logger.warning(text, found["count"], found["of"], some(found["cases"], 3))

    def summary(self) -> dict[str, Any]:
        """AUC by label and their mean (macro), and mean, spread and interval of Dice and components over slides."""
        result = {"slides": len(self.rows)} | self._summary_of_labels() | self._disagreeing() | self._off_tissue()
        for name in ("dice", "iou", "precision", "recall", "f1", "dice_empty", "dice_tissue"):
            if spread := _spread(self.rows, name):
                result[name] = spread
        return result

    def _disagreeing(self) -> dict[str, Any]:
        """Slides whose label and truth say otherwise, of how many that have both; empty if there is none."""
        both = [row for row in self.rows if "truth_mm2" in row and f"label_{self.names[0]}" in row]
        cases = [
            row["case"] for row in both if any(row[f"label_{k}"] for k in self.names) != bool(row["truth_mm2"] > 0)
        ]
        return {"disagreeing": {"count": len(cases), "of": len(both), "cases": cases}} if cases else {}

    def _off_tissue(self) -> dict[str, Any]:
        """Slides whose outlines mark bare glass for the most part, of how many have any; empty if there is none."""
        outlined = [row for row in self.rows if "truth_off_tissue" in row]
        cases = [row["case"] for row in outlined if row["truth_off_tissue"] > OFF_TISSUE]
        return {"off_tissue": {"count": len(cases), "of": len(outlined), "cases": cases}} if cases else {}

    def _summary_of_labels(self) -> dict[str, Any]:
        labeled = [row for row in self.rows if f"label_{self.names[0]}" in row]
        if not labeled:
            return {}
        labels = {name: label_scores(labeled, name, resamples=self.resamples) for name in self.names}
        for name, scores in labels.items():
            if spread := _spread(self.rows, f"{name}_dice"):
                scores["dice"] = spread
        areas = {name: scores["auc"] for name, scores in labels.items() if scores["auc"] is not None}
        macro = {"auc": areas, "auc_macro": round(float(np.mean(list(areas.values()))), 4)} if areas else {}
        return {"labels": labels} | macro


def _spread(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Mean, spread and interval, by patient, over the slides that have a value; empty where none has."""
    known = [row for row in rows if np.isfinite(row.get(column, np.nan))]
    if not known:
        return {}
    found = summarize([row[column] for row in known], patients=[row["patient"] for row in known])
    return {key: round(float(value), 4) for key, value in found.items()}
