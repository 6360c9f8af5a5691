"""Slices of a stack against each other: copies, gaps, another order, strangers, other brightness."""

from __future__ import annotations

import numpy as np
from skimage.filters import threshold_otsu

FEWEST = 8  # slices that show something; of fewer, nothing can be told
ACROSS = 32  # pixels of the coarse slices that are compared
# Of 177 heads and chests: at most .04 of the slices out of order, and their like at the same distance .0; strangers
# .14; a slice 1.24 times as bright as both neighbors; rows twice 0; first and last slice alike .78.
OUT_OF_ORDER, SAME_DISTANCE, STRANGE, BRIGHTER, TWICE, ALIKE = 0.15, 0.6, 0.3, 1.4, 0.3, 0.85
MOST_STRANGERS = 8


def doubts_about_slices(image: np.ndarray) -> list[str]:
    """Why a volume cannot be a stack of neighboring slices of one scan; empty where nothing speaks against it.

    In a scan each slice looks like its neighbors, and less so like what lies farther away. Brightness, noise at either
    end and extreme values do not matter for that: slices are compared by correlation, on a coarse grid.

    Args:
        image: `[H, W, D]`, one channel, axial slices along the last axis.

    Returns:
        Texts, none with the file's name.
    """
    coarse = _coarse(image)
    levels = coarse.reshape(-1, coarse.shape[2])
    # A slice of one value shows nothing, nor does one of next to nothing, as above a head.
    shown = np.flatnonzero((levels.std(axis=0) > 0.02 * levels.std()) & (np.ptp(levels, axis=0) > 0))
    if len(shown) < FEWEST:
        return []
    return [
        *_copies(image, levels, shown),
        *_gaps(image, shown),
        *_twice(image[..., shown[len(shown) // 2]]),
        *_order(levels[:, shown], shown),
        *_brightness(levels, shown),
    ]


def _coarse(image: np.ndarray) -> np.ndarray:
    """Means of blocks, `[h, w, D]` of about `ACROSS` pixels, without the extremes of the volume."""
    steps = [max(1, n // ACROSS) for n in image.shape[:2]]
    h, w = (n // step for n, step in zip(image.shape, steps, strict=False))
    blocks = image[: h * steps[0], : w * steps[1]].reshape(h, steps[0], w, steps[1], -1)
    coarse = blocks.mean(axis=(1, 3), dtype=np.float32)
    return coarse.clip(*np.percentile(coarse, (1, 99)))


def _copies(image: np.ndarray, levels: np.ndarray, shown: np.ndarray) -> list[str]:
    found = 0
    seen: dict[bytes, list[int]] = {}
    for z in shown:
        same = seen.setdefault(levels[:, z].tobytes(), [])
        found += any(np.array_equal(image[..., z], image[..., other]) for other in same)
        same.append(int(z))
    if not found:
        return []
    return [f"{found} of {len(shown)} slices are copies of others: doubled, or one stack twice? Volumes count them"]


def _gaps(image: np.ndarray, shown: np.ndarray) -> list[str]:
    between = np.setdiff1d(np.arange(shown[0], shown[-1]), shown)
    empty = [int(z) + 1 for z in between if image[..., z].min() == image[..., z].max()]
    return [f"{len(empty)} empty slice(s) between others ({_some(empty)}): have slices been lost?"] if empty else []


def _twice(middle: np.ndarray) -> list[str]:
    """Of the slice in the middle: rows, or columns, that are the same as the one before, but for plain ones."""
    for plane in (middle, middle.T):
        plain = np.ptp(plane, axis=1) == 0
        same = (plane[1:] == plane[:-1]).all(axis=1) & ~plain[1:]
        if same.sum() > TWICE * max((~plain).sum(), FEWEST):
            return [f"{same.sum() / (~plain).sum():.0%} of the rows of a slice are those before: enlarged pixels?"]
    return []


def _order(levels: np.ndarray, shown: np.ndarray) -> list[str]:
    centered = levels - levels.mean(axis=0)
    like = centered / np.linalg.norm(centered, axis=0)
    like = like.T @ like
    beside, count = np.diag(like, 1), len(like)
    rest = np.where(np.eye(count, dtype=bool), -2.0, like)
    if np.median(rest.max(axis=1)) < 0.5:
        return []  # noise alone
    others = rest.argmax(axis=1)
    apart = abs(others - np.arange(count))
    together = (abs(apart - np.median(apart)) <= 1) & (apart > 2)
    mirror = others + np.arange(count)
    if (abs(mirror - np.median(mirror)) <= 1).mean() > SAME_DISTANCE:
        return []  # a body whose top is like its bottom: a phantom, of which nothing can be told
    jumps = np.diag(like, 2) > np.maximum(beside[:-1], beside[1:]) + 0.02
    if together.mean() > SAME_DISTANCE or jumps.mean() > OUT_OF_ORDER:
        return ["slices do not resemble their neighbors most: are they out of order, shifted, or of two series?"]
    for length in range(1, min(MOST_STRANGERS, count - 2) + 1):
        around = np.diag(like, length + 1) - np.maximum(beside[: count - 1 - length], beside[length:])
        start = int(around.argmax())
        if around[start] > STRANGE:
            where = _some([int(z) + 1 for z in shown[start + 1 : start + 1 + length]])
            return [f"slice(s) {where} resemble none around, which resemble each other: of another series?"]
    area = (levels > threshold_otsu(levels)).sum(axis=0)
    if like[0, -1] > max(ALIKE, beside.min() + 0.1) and min(area[0], area[-1]) > 0.3 * area.max():
        after = int(shown[beside.argmin()]) + 1
        return [f"the first and the last slice are alike, those after slice {after} are not: is that the end?"]
    return []


def _brightness(levels: np.ndarray, shown: np.ndarray) -> list[str]:
    low, level = float(np.percentile(levels, 1)), threshold_otsu(levels)
    area = (levels > level).sum(axis=0)
    ratios = np.zeros(levels.shape[1] - 1)
    for z in shown[:-1]:
        if max(area[z : z + 2]) > 0.4 * area.max():
            bright = levels[:, z : z + 2].max(axis=1) > level
            own, after = np.median(levels[bright, z : z + 2], axis=0) - low
            ratios[z] = np.log(max(after, 1e-3) / max(own, 1e-3))
    before, behind = ratios[:-1], -ratios[1:]
    both = np.where(before * behind > 0, np.minimum(abs(before), abs(behind)), 0.0)
    found = [int(z) + 2 for z in np.flatnonzero(both > np.log(BRIGHTER)) if z + 1 in shown]
    if not found:
        return []
    most = float(np.exp(both.max()))
    return [f"slice(s) {_some(found)} up to {most:.1f} times brighter, or darker, than both neighbors: other units?"]


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")
