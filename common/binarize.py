"""From a heatmap to a mask: thresholds (Otsu, multi-Otsu, a grid fitted on known masks) and cleaning.

Everywhere a voxel belongs to the mask if it is *above* the threshold, ``heatmap > threshold``, as in scikit-image. A
map in which nothing stands out has the threshold +inf, so its mask is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.exposure import histogram
from skimage.filters import threshold_multiotsu, threshold_otsu
from skimage.morphology import ball, disk

from .metrics import dice, dice_from_counts, iou, iou_from_counts

# Values whose spread is below this share of their size are rounding noise of a constant map in float32.
_CONSTANT = 1e-6


def _finite(heatmap: np.ndarray) -> np.ndarray:
    """Return the map as an array, refusing NaN, which compares as false and would silently count as background."""
    heatmap = np.asarray(heatmap)
    if not np.isfinite(heatmap).all():
        count = int((~np.isfinite(heatmap)).sum())
        raise ValueError(f"heatmap of shape {list(heatmap.shape)} holds {count} NaN or infinite values; replace them")
    return heatmap


def _histogram(heatmap: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return counts and centres of 256 bins over the voxels in the mask; None if there are none or all are equal."""
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
    """The highest multi-Otsu threshold of the map after ReLU, lowered by an offset: ``max(0, highest − offset)``.

    It is GP-UNet's rule. Multi-Otsu splits 256 bins into classes with the largest variance between them; the highest
    threshold keeps the hottest class, the offset, tuned per model on validation patients, widens it. At 0 all positive
    heat is kept.

    Args:
        heatmap: any shape; negative heat counts as 0.
        classes: number of classes, 2 or more; the time grows as ``256 ** (classes − 1)``.
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
    """Mean score over cases of ``heatmap > t``, for each threshold t of a grid.

    Use training or validation patients: a threshold chosen on the patients that it is scored on flatters itself.

    Args:
        heatmaps: one array per case, shapes may differ.
        truths: the masks, same shapes.
        thresholds: the grid ``[T]``, any order.
        score: ``score(pred, truth)``. :func:`~common.metrics.dice` and :func:`~common.metrics.iou` take one pass per
            case, any other function one per threshold.

    Returns:
        ``[T]``, in the order of the thresholds. NaN scores are left out of the mean; NaN where no case has a score.

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

    Args and errors are those of :func:`threshold_grid`.

    Raises:
        ValueError: also if no case has a score at any threshold.
    """
    grid, means = np.asarray(thresholds, dtype=np.float64), threshold_grid(heatmaps, truths, thresholds, score=score)
    if np.isnan(means).all():
        raise ValueError(f"none of the {len(heatmaps)} cases has a score; give cases with a mask")
    best = np.nanmax(means)
    return float(grid[means == best].min()), float(best)


def _label(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return component labels and the size of each, the background's (label 0) set to 0."""
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def largest_component(mask: np.ndarray, *, connectivity: int | None = None) -> np.ndarray:
    """The largest connected component; the first in array order among equals; an empty mask stays empty.

    Args:
        mask: any rank, non-zero is foreground.
        connectivity: 1 connects through faces only; the mask's rank, the default, through edges and corners too.

    Returns:
        bool mask of the same shape.
    """
    mask = np.asarray(mask).astype(bool)
    if not mask.any():
        return mask
    labels, sizes = _label(mask, connectivity or mask.ndim)
    return labels == sizes.argmax()


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close with a disk or ball, as if the image went on with background: at the border nothing is lost or added."""
    footprint = {2: disk, 3: ball}[mask.ndim](radius)
    # A closing stays within the mask's bounding box, usually a small part of the volume.
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    padded = np.pad(mask[box], radius)
    closed = mask.copy()
    closed[box] = ndimage.binary_closing(padded, footprint)[(slice(radius, -radius),) * mask.ndim]
    return closed


def clean(
    mask: np.ndarray,
    *,
    min_size: int = 0,
    max_hole: int = 0,
    closing_radius: int = 0,
    largest_only: bool = False,
    axis: int | None = None,
    connectivity: int | None = None,
) -> np.ndarray:
    """Clean a mask: drop small objects, fill small holes, close, keep the largest component, in this order.

    GP-UNet's code does so slice by slice with ``min_size=64, max_hole=128, closing_radius=2, largest_only=True``.
    By default nothing is changed. An empty mask stays empty.

    Args:
        mask: any rank (2 or 3 for closing), non-zero is foreground.
        min_size: objects with fewer pixels (voxels) are dropped.
        max_hole: background components, connected through faces, of up to so many pixels (voxels) are filled; one cut
            off by the image border counts, too.
        closing_radius: of the disk or ball, in pixels (voxels).
        largest_only: keep the largest component only; wrong for diseases with several lesions.
        axis: clean each slice along this axis by itself. Default: the mask as a whole.
        connectivity: of objects, see :func:`largest_component`.

    Returns:
        bool mask of the same shape.

    Raises:
        ValueError: if an option is negative, the axis does not exist, or a mask of another rank is to be closed.
    """
    mask = np.asarray(mask).astype(bool)
    sizes = {"min_size": min_size, "max_hole": max_hole, "closing_radius": closing_radius}
    if min(sizes.values()) < 0:
        raise ValueError(f"sizes must not be negative; got {sizes}")
    if axis is not None:
        if not -mask.ndim <= axis < mask.ndim:
            raise ValueError(f"axis {axis} does not exist in a mask of shape {list(mask.shape)}")
        cleaned = mask.copy()
        for plane in np.moveaxis(cleaned, axis, 0):  # views, written in place
            if plane.any():
                plane[...] = clean(plane, **sizes, largest_only=largest_only, connectivity=connectivity)
        return cleaned
    if closing_radius and mask.ndim not in (2, 3):
        raise ValueError(f"closing needs a mask of rank 2 or 3; got shape {list(mask.shape)}")
    # scipy.ndimage rather than skimage's remove_small_*: their options were renamed with other bounds in 0.26.
    if min_size and mask.any():
        labels, count = _label(mask, connectivity or mask.ndim)
        mask = (count >= min_size)[labels]
    if max_hole and mask.any():
        labels, count = _label(~mask, 1)
        mask = mask | ((count > 0) & (count <= max_hole))[labels]
    if closing_radius and mask.any():
        mask = _close(mask, closing_radius)
    return largest_component(mask, connectivity=connectivity) if largest_only else mask
