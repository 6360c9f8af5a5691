"""From a heatmap to a mask: thresholds (Otsu, multi-Otsu, a grid fitted on known masks) and cleaning.

Everywhere a voxel belongs to the mask if it is *above* the threshold, `heatmap > threshold`, as in scikit-image. A
map in which nothing stands out has the threshold +inf, so its mask is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from skimage.exposure import histogram
from skimage.filters import threshold_multiotsu, threshold_otsu

from ..metrics import dice, dice_from_counts, iou, iou_from_counts

# Values whose spread is below this share of their size are rounding noise of a constant map in float32.
_CONSTANT = 1e-6

NO_EVIDENCE = -10.0  # heat of a class where it cannot be, a probability of 5e-5: thresholds do not count it


def _finite(heatmap: np.ndarray) -> np.ndarray:
    """Return the map as an array, refusing NaN, which compares as false and would silently count as background."""
    heatmap = np.asarray(heatmap)
    if not np.isfinite(heatmap).all():
        count = int((~np.isfinite(heatmap)).sum())
        raise ValueError(f"heatmap of shape {list(heatmap.shape)} holds {count} NaN or infinite values; replace them")
    return heatmap


def _histogram(heatmap: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return counts and centers of 256 bins over the voxels in the mask; None if there are none or all are equal."""
    values = _finite(heatmap)
    if mask is not None:
        inside = np.asarray(mask).astype(bool)
        if inside.shape != values.shape:
            raise ValueError(f"mask must have the heatmap's shape {list(values.shape)}; got {list(inside.shape)}")
        values = values[inside]
    values = values.astype(np.float64).ravel()  # integers too: scikit-image gives them one bin per value instead
    if values.size == 0 or np.ptp(values) <= _CONSTANT * np.abs(values).max():
        return None
    return histogram(values, nbins=256)


def otsu(heatmap: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Otsu's threshold, the one that splits 256 bins with the largest variance between both sides (INSIGHT, Eq. 9).

    Args:
        heatmap: any shape.
        mask: same shape; only its voxels count. Default: all.

    Returns:
        The threshold, in units of the map; +inf for a constant map or an empty mask.

    Raises:
        ValueError: if the map is not finite or the mask has another shape.
    """
    bins = _histogram(heatmap, mask)
    return np.inf if bins is None else float(threshold_otsu(hist=bins))


def multi_otsu(heatmap: np.ndarray, *, classes: int = 3, offset: float = 0.0, mask: np.ndarray | None = None) -> float:
    """The highest multi-Otsu threshold of the map after ReLU, lowered by an offset: `max(0, highest − offset)`.

    It is GP-UNet's rule. Multi-Otsu splits 256 bins into classes with the largest variance between them; the highest
    threshold keeps the hottest class, the offset, tuned per model on validation patients, widens it. At 0 all positive
    heat is kept.

    Args:
        heatmap: any shape; negative heat counts as 0.
        classes: number of classes, 2 or more; the time grows as `256 ** (classes − 1)`.
        offset: in units of the map.
        mask: same shape; only its voxels count. Default: all.

    Returns:
        The threshold, in units of the map. Otsu's where the map fills fewer bins than classes; +inf for a map without
        contrast after ReLU (constant, or nowhere positive) or an empty mask, whatever the offset.

    Raises:
        ValueError: if there are fewer than two classes, the map is not finite, or the mask has another shape.
    """
    if classes < 2:
        raise ValueError(f"classes must be 2 or more; got {classes}")
    bins = _histogram(np.maximum(heatmap, 0), mask)
    if bins is None:
        return np.inf
    if np.count_nonzero(bins[0]) < classes:
        highest = threshold_otsu(hist=bins)
    else:
        highest = threshold_multiotsu(classes=classes, hist=bins)[-1]
    return max(0.0, float(highest) - offset)


# Scores that follow from three voxel counts, which one pass over a map gives for all thresholds at once.
_FROM_COUNTS: dict[Any, Callable[..., np.ndarray]] = {dice: dice_from_counts, iou: iou_from_counts}


def _counts_above(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Count the values above each of the ascending thresholds."""
    passed = np.bincount(np.searchsorted(ascending, values, side="left"), minlength=len(ascending) + 1)
    return passed[::-1].cumsum()[::-1][1:]


def threshold_grid(
    heatmaps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] | np.ndarray,
    *,
    score: Callable[[np.ndarray, np.ndarray], float] = dice,
) -> np.ndarray:
    """Mean score over cases of `heatmap > t`, for each threshold t of a grid.

    Use training or validation patients: a threshold chosen on the patients that it is scored on flatters itself.

    Args:
        heatmaps: one array per case, shapes may differ.
        truths: the masks, same shapes.
        thresholds: the grid `[T]`, any order.
        score: `score(pred, truth)`. `common.metrics.dice` and `common.metrics.iou` take one pass per
            case, any other function one per threshold.

    Returns:
        `[T]`, in the order of the thresholds. NaN scores are left out of the mean; NaN where no case has a score.

    Raises:
        ValueError: if the numbers of cases or two shapes differ, a map is not finite, or the grid is empty.
    """
    grid = np.asarray(thresholds, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0 or np.isnan(grid).any():
        raise ValueError(f"thresholds must be a non-empty list of numbers [T]; got {grid.tolist()}")
    if len(heatmaps) != len(truths) or not len(heatmaps):
        raise ValueError(f"give as many truths as heatmaps, at least one; got {len(truths)} and {len(heatmaps)}")
    order = np.argsort(grid)
    scores = np.empty((len(heatmaps), len(grid)))
    for row, heatmap, truth in zip(scores, heatmaps, truths, strict=True):
        values, positive = _finite(heatmap), np.asarray(truth).astype(bool)
        if values.shape != positive.shape:
            raise ValueError(f"heatmap and truth must have one shape; got {list(values.shape)}, {list(positive.shape)}")
        # In the map's own precision, as `heatmap > 0.1` compares; in double, a float32 of 0.1 would be above 0.1.
        limits = grid.astype(values.dtype) if np.issubdtype(values.dtype, np.floating) else grid
        if score in _FROM_COUNTS:
            ascending = limits[order]
            overlap, pred = _counts_above(values[positive], ascending), _counts_above(values.ravel(), ascending)
            row[order] = _FROM_COUNTS[score](overlap, pred, positive.sum())
        else:
            row[:] = [score(values > t, positive) for t in limits]
    scored = (~np.isnan(scores)).sum(axis=0)
    return np.where(scored > 0, np.nansum(scores, axis=0) / np.maximum(scored, 1), np.nan)


def best_threshold(
    heatmaps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] | np.ndarray,
    *,
    score: Callable[[np.ndarray, np.ndarray], float] = dice,
) -> tuple[float, float]:
    """The threshold of the grid with the highest mean score, and that score; the smallest threshold among ties.

    Args and errors are those of `threshold_grid`.

    Raises:
        ValueError: also if no case has a score at any threshold.
    """
    grid, means = np.asarray(thresholds, dtype=np.float64), threshold_grid(heatmaps, truths, thresholds, score=score)
    if np.isnan(means).all():
        raise ValueError(f"none of the {len(heatmaps)} cases has a score; give cases with a mask")
    best = np.nanmax(means)
    return float(grid[means == best].min()), float(best)
