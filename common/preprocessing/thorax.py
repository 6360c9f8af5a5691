"""What no chest looks like: inverted gray, other units, lying the other way, larger than a chest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu

from .chest import IN_PLANE, block_mean

# Of 13 chests at most .62 of the border is bright (cut to the body), and then 176 ml inside (vessels); inverted at
# least .90, and 1218 ml (lungs).
BRIGHT_BORDER, ENCLOSED_ML = 0.75, 500.0
LITTLE_ML, A_CHEST_MM = 300.0, (200.0, 200.0, 120.0)  # in a field as large as a chest there is more lung than that
# The 13 lungs are at most 338 mm wide and 356 high. Between them at most .13 of their columns' lung is left, front to
# back at least .67; their middle lies .024 to .088 of their depth behind that of their box, and the windpipe's .25 to
# .33 of their height above. Turned or mirrored it is the other way round.
LARGEST_MM, HIGH_MM = 420.0, 100.0
PARTED, WHOLE, BEHIND, ABOVE = 0.3, 0.6, -0.025, -0.15
# Air is -1000 Hounsfield units, lungs hardly below -950, fat -100, muscle 50.
HOUNSFIELD, DARKEST_LUNG, SOFT_TISSUE = -500.0, -980.0, (-150.0, 150.0)
AIR, ITS_RANGE, NO_AIR, A_FIFTH = -1000.0, 50.0, 300.0, 0.2


def check_gray(image: np.ndarray, spacing: Sequence[float]) -> None:
    """Refuse a chest whose gray values are inverted: bright all around the body, and as bright in its lungs.

    A chest that fills the image has bright borders, too, but next to nothing bright that the body encloses.

    Args:
        image: `[H, W, D]`, axial slices along the last axis.
        spacing: millimeters of the three axes.

    Raises:
        ValueError: air is brighter than the body.
    """
    factors = tuple(max(1, round(6.0 / s)) for s in spacing)
    coarse = block_mean(image, factors)
    if coarse.min() == coarse.max():
        return
    bright = coarse > threshold_otsu(coarse.ravel())  # three slices are no colors
    labels, _ = ndi.label(bright, IN_PLANE)
    edge = np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])
    enclosed = bright & ~np.isin(labels, np.unique(edge))
    milliliter = float(np.prod(spacing) * np.prod(factors)) / 1000.0
    if (edge > 0).mean() > BRIGHT_BORDER and enclosed.sum() * milliliter > ENCLOSED_ML:
        raise ValueError(
            "the air around the body, and in it, is brighter than the body: gray values are inverted, but air has to "
            "be darkest. Or a frame is drawn around the image, or filled with more than air has: cut it off"
        )


def doubts_about_lungs(image: np.ndarray, lungs: np.ndarray, spacing: Sequence[float], *, found: bool) -> list[str]:
    """Why a chest and the mask of its lungs cannot be as they say; empty if they can.

    Args:
        image: `[H, W, D]`, axial slices along the last axis, LPS.
        lungs: bool `[H, W, D]`.
        spacing: millimeters of the three axes.
        found: whether the mask was computed, so that little of it means something.
    """
    factors = tuple(max(1, round(6.0 / s)) for s in spacing)
    if found and (text := _too_little(lungs, spacing)):
        return [text]
    rough = block_mean(lungs, factors) > 0.5
    if not rough.any():
        return []
    box = ndi.find_objects(rough.astype(np.uint8))[0]
    sides = [(part.stop - part.start) * s * f for part, s, f in zip(box, spacing, factors, strict=True)]
    size = " x ".join(f"{side:.0f}" for side in sides)
    if max(sides) > LARGEST_MM:
        return [f"lungs of {size} mm, more than a chest has: a wrong spacing, or several stacks in one?"]
    turned = _turned(rough[box]) if sides[2] >= HIGH_MM else ""
    return [*([turned] if turned else []), *_units(image, rough, factors)]


def _too_little(lungs: np.ndarray, spacing: Sequence[float]) -> str:
    extent = [n * s for n, s in zip(lungs.shape, spacing, strict=True)]
    milliliters = float(lungs.sum() * np.prod(spacing)) / 1000.0
    if milliliters >= LITTLE_ML or any(mm < least for mm, least in zip(extent, A_CHEST_MM, strict=True)):
        return ""
    field = " x ".join(f"{mm:.0f}" for mm in extent)
    return (
        f"{milliliters:.0f} ml of lung found in {field} mm: no chest, or values that do not tell lung from tissue "
        "(inverted, or Hounsfield units cut off at 0)?"
    )


def _turned(lungs: np.ndarray) -> str:
    """Of both lungs in their box: side by side, and with more of them behind than in front."""
    across, down = (lungs.sum(axis=axes).astype(float) for axes in ((1, 2), (0, 2)))
    left = [_between(profile) for profile in (across, down)]
    if left[1] < PARTED and left[0] > WHOLE:
        return "the lungs lie behind each other, not side by side: are rows and columns swapped?"
    middle = float(np.average(np.arange(len(down)), weights=down)) / max(len(down) - 1, 1) - 0.5
    if left[0] < PARTED and middle < BEHIND:
        return "the lungs are larger in front than behind: does the header take the back for the front?"
    return ""


def _between(profile: np.ndarray) -> float:
    """What the middle third has, at the least, of what either half has at most."""
    third, half = len(profile) // 3, len(profile) // 2
    middle = profile[third : len(profile) - third]
    return float(middle.min() / max(min(profile[:half].max(initial=0.0), profile[half:].max()), 1.0))


def _units(image: np.ndarray, lungs: np.ndarray, factors: Sequence[int]) -> list[str]:
    """Of values that can only be Hounsfield units: whether lungs and what surrounds them have those of a body.

    Args:
        image: `[H, W, D]`.
        lungs: bool, of blocks of the image.
        factors: size of these blocks.
    """
    if image.min() >= HOUNSFIELD:
        return []
    near = ndi.binary_dilation(lungs, iterations=1)
    around = ndi.binary_dilation(near, iterations=2) & ~near
    if not around.any():
        return []
    coarse = block_mean(image, factors)
    own, tissue = float(np.median(coarse[lungs])), float(np.median(coarse[around]))
    if own < DARKEST_LUNG or not SOFT_TISSUE[0] <= tissue <= SOFT_TISSUE[1]:
        said = (
            f"lungs have {own:.0f} and what surrounds them {tissue:.0f}; in Hounsfield units it is about -850 and -100 "
            "to 60"
        )
    elif (air := _air(coarse, near)) is not None and abs(air - AIR) > ITS_RANGE:
        said = f"the air around the body has {air:.0f}; in Hounsfield units it is -1000"
    else:
        return []
    return [f"{said}: were slope or intercept lost, or applied twice?"]


def _air(image: np.ndarray, lungs: np.ndarray) -> float | None:
    """What air has at the edges of slices, None where they show little of it; what fills up the image is no air."""
    edges = np.zeros(image.shape, dtype=bool)
    edges[[0, -1]] = edges[:, [0, -1]] = True
    edge = image[edges & ~lungs]
    for values in (edge[edge > edge.min(initial=0.0) + 1.0], edge):  # without noise, air is as even as a filling
        air = values[abs(values - AIR) < NO_AIR]
        if len(air) > A_FIFTH * edges.sum():
            return float(np.median(air))
    return None


def doubt_about_windpipe(airways: np.ndarray, lungs: np.ndarray, spacing: Sequence[float]) -> list[str]:
    """Whether windpipe and bronchi lie in the lower half of the lungs; in a chest they come from above.

    Args:
        airways, lungs: bool `[H, W, D]`, slices from bottom to top.
        spacing: millimeters of the three axes.
    """
    area, own = lungs.sum(axis=(0, 1)), airways.sum(axis=(0, 1))
    shown = np.flatnonzero(area)
    if len(shown) * spacing[2] < HIGH_MM or own.sum() * np.prod(spacing) < 2000.0:  # 2 ml
        return []
    z = np.arange(len(area))
    apart = (np.average(z, weights=own) - np.average(z, weights=area)) / len(shown)
    return ["the windpipe runs below the lungs: does the header take the top for the bottom?"] * bool(apart < ABOVE)
