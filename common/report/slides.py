"""A slide for the page: its view, the heat of each label in 256 levels, and what thresholding at each of them gives."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from .levels import dice_by_level, heat_levels, threshold_stops, voxels_above
from .tables import Run
from .volumes import outlined, reduction

SMALL = 2**20  # cells of a map on the page


def add_slides(run: Run, rows: Sequence[dict[str, Any]], *, max_embedded: int, max_bytes: int) -> None:
    """Add `slide` to the first `max_embedded` rows, while they need no more than `max_bytes` together.

    It holds `view` (base64 of a JPEG) and `labels`: for each, what `label_levels` gives.

    Args:
        run: of slides, each with `<case>_cells.npz`, which runs of earlier versions did not write.
        rows: of `common.report.cases.case_rows`, in the order of the list.
        max_embedded, max_bytes: see `common.report.cases.add_volumes`.

    Raises:
        ValueError: a file is damaged.
    """
    left = max_embedded
    for row in rows:
        parts = embedded_slide(run.folder, row["case"]) if left > 0 else None
        if parts is None:
            continue
        size = len(parts["view"]) + sum(len(label["picture"]) for label in parts["labels"])
        if size > max_bytes:
            return  # none further down takes the place
        left, max_bytes = left - 1, max_bytes - size
        row["slide"] = parts


def embedded_slide(folder: Path, case: str) -> dict[str, Any] | None:
    """View and labels of a slide; None where the run has not written its cells, its heat or its mask."""
    paths = [folder / f"{case}_{end}" for end in ("cells.npz", "heatmap.ome.tif", "seg.tif")]
    if not all(path.is_file() for path in paths):
        return None
    try:
        with np.load(paths[0]) as file:
            cells = dict(file)
        heat, mask = (tifffile.imread(path, series=0, level=0) for path in paths[1:])
        names = [str(name) for name in cells["names"]]
        heat = heat.reshape(len(names), *mask.shape)
        thresholds, extent = cells["thresholds"].tolist(), cells["extent"].tolist()
    except (OSError, ValueError, KeyError, tifffile.TiffFileError) as error:
        raise ValueError(
            f"{folder}: files of slide {case} do not fit each other ({error}); run the bundle again"
        ) from error
    tissue = _as_large(cells["tissue"], mask.shape)
    truth = _as_large(cells["truth"], mask.shape) if "truth" in cells and len(names) == 1 else None
    labels = [
        label_levels(heat[k], tissue, mask == k + 1, truth, threshold=thresholds[k], cell_um=float(cells["cell_um"]))
        | {"name": name, "extent": extent}
        for k, name in enumerate(names)
    ]
    return {"view": base64.b64encode(cells["view"].tobytes()).decode(), "labels": labels}


def label_levels(
    heat: np.ndarray,
    tissue: np.ndarray,
    mask: np.ndarray,
    truth: np.ndarray | None,
    *,
    threshold: float,
    cell_um: float,
) -> dict[str, Any]:
    """One label of a slide for the page; figures are of all its cells, the picture is coarser where these are many.

    Args:
        heat: `[rows, columns]` float.
        tissue, mask, truth: bool, of the same shape; cells without tissue are never marked.
        threshold: the run's; not finite where the gate was closed.
        cell_um: side of a cell in micrometers.

    Returns:
        `picture`: base64 of a PNG whose red is the level, green the edge of the run's mask and blue that of the truth;
        `stops` `[255]` and `stop`, the run's own among them, or None; `mm2` and `share` of the tissue that is marked at
        each stop, and `dice` where there is a truth that is not empty; `truth`: whether there is one; `coarser`, by how
        much the picture is, and `cells`: rows and columns.
    """
    known = heat[tissue]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    own = threshold if np.isfinite(threshold) else None
    stops = threshold_stops(low, high, own)
    levels = np.where(tissue, heat_levels(heat, stops), 0).astype(np.uint8)
    marked = voxels_above(levels)
    factors = reduction((*heat.shape, 1), (1.0, 1.0, 1e9), SMALL)[:2]
    edges = [_edge(_coarser(part, factors)) for part in (mask, np.zeros_like(mask) if truth is None else truth)]
    result = {
        "picture": _png(np.stack([_coarser(levels, factors), *edges], axis=-1)),
        "stops": [float(f"{stop:.5g}") for stop in stops],
        "stop": None if own is None else int(np.abs(stops - own).argmin()),
        "mm2": [round(float(count) * (cell_um / 1000) ** 2, 4) for count in marked],
        "share": [round(float(count) / max(1, int(tissue.sum())), 4) for count in marked],
        "dice": None,
        "truth": truth is not None,
        "coarser": max(factors),
        "cells": list(heat.shape),
    }
    if truth is not None and truth.any():
        result["dice"] = [round(float(value), 4) for value in dice_by_level(levels, truth)]
    return result


def _as_large(cells: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Bool cells in an array that reaches further."""
    wide = np.zeros(shape, bool)
    rows, columns = (min(a, b) for a, b in zip(cells.shape, shape, strict=True))
    wide[:rows, :columns] = cells[:rows, :columns]
    return wide


def _coarser(array: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    if max(factors) == 1:
        return array
    from skimage.measure import block_reduce  # slow to import, and for large slides only

    return block_reduce(array, tuple(factors), np.max)


def _edge(mask: np.ndarray) -> np.ndarray:
    """255 at the edge of a mask `[rows, columns]`, else 0."""
    return 255 * outlined(mask[..., None].astype(bool), 2)[..., 0].astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
