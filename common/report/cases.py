"""The cases of a report: a row each for the list, curves over thresholds, and volumes of those that are embedded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .levels import (
    components_by_level,
    count_components,
    dice_by_level,
    heat_levels,
    threshold_stops,
    voxels_above,
)
from .tables import Run, patient_of_row
from .volumes import CaseVolumes, embedded, read_case, read_image

SMALL = 2**22  # voxels of a case's volumes on the page


def case_rows(run: Run) -> list[dict[str, Any]]:
    """A row for each case from the tables alone, worst first: by Dice where it is known, then the most suspicious.

    Returns:
        `case`, `probability` (by class), `suspicion` (of not being the first class), `ml`, `pixels` (of pictures),
        `area` (mm², by class, of slides), `dice`, `rivals` (Dice of the baselines), `positive` (its label), `seconds`,
        `warnings`, `threshold`.
    """
    rows = []
    for case, told in run.predictions.items():
        scores, label = run.metrics.get(case, {}), run.labels.get(case, {})
        by_class = {key.removeprefix("probability_"): told[key] for key in told if key.startswith("probability_")}
        nothing = next(iter(by_class.values()), None)
        known = label.get("positive")
        rows.append(
            {
                "case": case,
                "probability": by_class,
                "suspicion": None if nothing is None else round(1 - nothing, 4),
                "ml": told.get("volume_ml"),
                "pixels": told.get("area_pixels"),
                "area": {k.removeprefix("area_mm2_"): told[k] for k in told if k.startswith("area_mm2_")},
                "dice": scores.get("dice"),
                "rivals": {k: v for k, v in scores.items() if k.startswith("dice_") and v is not None},
                "positive": None if known is None else bool(known),
                "threshold": told.get("threshold"),
                "seconds": told.get("seconds"),
                "warnings": told.get("warnings") or "",
            }
        )
    return sorted(rows, key=_worst_first)


def _worst_first(row: Mapping[str, Any]) -> tuple:
    suspicion = -1.0 if row["suspicion"] is None else row["suspicion"]
    return (row["dice"] is None, row["dice"] if row["dice"] is not None else 0.0, -suspicion, row["case"])


def shared_threshold(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The threshold of a run, where all its cases have the same one."""
    found = {row["threshold"] for row in rows}
    return next(iter(found)) if len(found) == 1 and None not in found else None


def add_volumes(
    run: Run,
    rows: Sequence[dict[str, Any]],
    files: Mapping[str, Mapping[str, Any]],
    *,
    max_embedded: int,
    max_bytes: int,
    threshold: float | None,
) -> tuple[np.ndarray | None, list[tuple[str, np.ndarray]]]:
    """Read the cases' volumes one by one, and add to each row what they tell.

    Added are `components` of the mask and `truth_ml`; and to the first `max_embedded` rows whose scan is known, while
    they need no more than `max_bytes` together, `volumes` and `table`: `components`, `ml` and `dice` of the raw map at
    each stop.

    Args:
        run: the run.
        rows: of `case_rows`, in the order of the list.
        files: `image` and `label` by case.
        max_embedded: cases whose volumes are embedded.
        max_bytes: of all volumes.
        threshold: of the raw map, which becomes one of the stops.

    Returns:
        The stops `[255]`, None without any heatmap, and of every case with heat and truth its patient and Dice at each.
    """
    stops = _stops(run.folder, rows[: max(max_embedded, 4)], threshold)
    scores: list[tuple[str, np.ndarray]] = []
    left = max_embedded
    for row, volumes in _read(run.folder, rows, files):
        if volumes.mask is not None:
            row["components"] = count_components(volumes.mask)
        if volumes.truth is not None:
            row["truth_ml"] = round(float(volumes.truth.sum()) * volumes.ml, 3)
        if volumes.heat is None or stops is None:
            continue
        levels = heat_levels(volumes.heat, stops)
        if volumes.truth is not None:
            scores.append((patient_of_row(row), dice_by_level(levels, volumes.truth)))
        if left <= 0 or (image := read_image(files.get(row["case"], {}))) is None:
            continue
        if image.shape != volumes.heat.shape:
            raise ValueError(
                f"case {row['case']}: the scan {list(image.shape)} is not that of the run; name the right one"
            )
        parts = embedded(
            CaseVolumes(volumes.affine, volumes.heat, volumes.mask, volumes.truth, image), stops, most=SMALL
        )
        size = sum(len(text) for text in parts.values() if isinstance(text, str))
        if size > max_bytes:
            left = 0  # the list's order says which cases one looks at: none further down takes the place
            continue
        left, max_bytes = left - 1, max_bytes - size
        row["volumes"] = parts
        row["table"] = level_table(levels, volumes.ml, volumes.truth)
    return stops, scores


def level_table(levels: np.ndarray, ml: float, truth: np.ndarray | None) -> dict[str, list]:
    """What thresholding at each stop gives: `components`, `ml`, and `dice` where there is a truth; `[255]` each.

    Args:
        levels: of the whole heatmap.
        ml: milliliters of a voxel.
        truth: bool, of the same shape.
    """
    table: dict[str, list] = {
        "components": components_by_level(levels),
        "ml": [round(float(n) * ml, 3) for n in voxels_above(levels)],
    }
    if truth is not None:
        table["dice"] = [round(float(value), 4) for value in dice_by_level(levels, truth)]
    return table


def _read(
    folder: Path, rows: Sequence[dict[str, Any]], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[dict[str, Any], CaseVolumes]]:
    for row in rows:
        volumes = read_case(folder, row["case"], files.get(row["case"], {}))
        if volumes is not None:
            yield row, volumes


def _stops(folder: Path, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> np.ndarray | None:
    """Thresholds from the median heat of what is not background to the highest, over some cases."""
    low, high = np.inf, -np.inf
    for row in rows:
        volumes = read_case(folder, row["case"], {})
        if volumes is None or volumes.heat is None:
            continue
        inside = volumes.heat[volumes.heat > np.nanmin(volumes.heat)]
        if len(inside):
            low, high = min(low, float(np.median(inside))), max(high, float(inside.max()))
    return threshold_stops(low, high, threshold) if np.isfinite(high) else None
