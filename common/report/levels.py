"""A heatmap in 256 levels, and what thresholding it at each of them gives: components, milliliters, Dice.

The levels are those that a viewer with 8 bits shows, the figures those of the heatmap as it was written: voxel by
voxel, `levels > k` and `heatmap > thresholds[k]` are one mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi

from ..metrics import dice_from_counts

STOPS = 255  # thresholds between 256 levels
CONNECTED = np.ones((3, 3, 3), dtype=bool)  # through faces, edges and corners, as in `common.metrics.component_scores`


def threshold_stops(low: float, high: float, threshold: float | None = None) -> np.ndarray:
    """255 evenly spaced thresholds from `low` to `high`, of which the nearest one is the run's own.

    Args:
        low, high: of the heat that is of interest.
        threshold: that a run used; one that is not finite, or None, leaves the stops as they are.

    Returns:
        `[255]`, ascending.
    """
    if threshold is not None and np.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    stops = np.linspace(low, high if high > low else low + 1.0, STOPS)
    if threshold is not None and np.isfinite(threshold):
        stops[np.abs(stops - threshold).argmin()] = threshold
    return stops


def heat_levels(heatmap: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """How many thresholds each voxel exceeds: uint8, 0 to 255.

    Args:
        heatmap: any shape; NaN exceeds none.
        stops: `[255]`, ascending, compared in the heatmap's own precision, as `heatmap > stop` is.
    """
    limits = stops.astype(heatmap.dtype) if np.issubdtype(heatmap.dtype, np.floating) else stops
    levels = np.searchsorted(limits, heatmap.ravel(), side="left").astype(np.uint8)
    levels[np.isnan(heatmap.ravel())] = 0
    return levels.reshape(heatmap.shape)


def bounding_box(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    """Slices around what is not zero, with a margin inside the array; all of an empty mask."""
    found = ndi.find_objects(np.asarray(mask).astype(bool).view(np.uint8))
    if not found:
        return tuple(slice(0, n) for n in mask.shape)
    sides = zip(found[0], margin, mask.shape, strict=True)
    return tuple(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in sides)


def count_components(mask: np.ndarray) -> int:
    """Components of a 3D mask, connected through faces, edges and corners."""
    if not mask.any():
        return 0
    return int(ndi.label(mask[bounding_box(mask)], CONNECTED)[1])


def components_by_level(levels: np.ndarray) -> list[int]:
    """Components of `levels > k` for k = 0 to 254, see `count_components`."""
    counts = []
    for k in range(STOPS):
        mask = levels > k
        counts.append(count_components(mask))
        if not counts[-1]:
            return counts + [0] * (STOPS - len(counts))
        if k % 8 == 0:  # what is hot lies ever closer together
            levels = levels[bounding_box(mask)]
    return counts


def voxels_above(levels: np.ndarray) -> np.ndarray:
    """Voxels of `levels > k` for k = 0 to 254, `[255]`."""
    return levels.size - np.cumsum(np.bincount(levels.ravel(), minlength=STOPS + 1))[:STOPS]


def dice_by_level(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of `levels > k` with a mask of the same shape for k = 0 to 254, `[255]`; 1 where both are empty."""
    truth = np.asarray(truth).astype(bool)
    return dice_from_counts(voxels_above(levels[truth]), voxels_above(levels), truth.sum())
