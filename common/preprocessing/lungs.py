"""Both lungs in a chest CT: by thresholds and shape (`lung_mask`) or by a trained network (`learned_lung_mask`).

`lung_mask` needs no units, no weights and no full field of view. It works on a coarse grid in these steps, each one a
function here: slices made equally bright; air outside the body; intensities on a scale where lung is 0 and the body
is 1; trachea and main bronchi; aerated lung; the chest wall behind consolidations, from slices above and below and from
a round shape; a closing of each half of the chest, and its holes filled but for the domes of the diaphragm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from .chest import (
    IN_PLANE,
    airways,
    behind_consolidations,
    block_mean,
    fill_holes_above_diaphragm,
    mean_in_regions,
    regions,
)
from .thorax import doubt_about_windpipe


def lung_mask(
    image: np.ndarray,
    spacing: Sequence[float],
    *,
    level: float = 0.35,
    rim_level: float = 0.5,
    rim_mm: float = 4.0,
    closing_mm: float = 8.0,
    wall_mm: float = 200.0,
    smallest: float = 0.05,
    pixel_mm: float = 1.4,
    slice_mm: float = 3.0,
    doubts: list[str] | None = None,
) -> np.ndarray:
    """Both lungs in a chest CT, consolidations included; airways, mediastinum, bowel and outside air excluded.

    Levels are on a scale where the median of the lungs is 0 and that of the body 1.

    Args:
        image: `[H, W, D]`, any units, air darkest; the first axis runs from side to side (LPS).
        spacing: millimeters of the three axes.
        level: what is darker is aerated lung.
        rim_level: what is darker and within `rim_mm` of aerated lung is lung too: infiltrates, vessels' edges.
        rim_mm: see `rim_level`.
        closing_mm: radius of the closing over vessels and consolidations.
        wall_mm: how far along the patient a consolidation at the chest wall may reach: the wall behind it is where
            lung reaches in the slices above and below.
        smallest: parts below this share of the largest one are no lung.
        pixel_mm: in-plane grid; finer images are averaged to about this.
        slice_mm: the same for slices.
        doubts: a list that gets a text where the windpipe runs below the lungs.

    Returns:
        Bool `[H, W, D]`; empty where nothing looks like lung.
    """
    factors = tuple(max(1, round(mm / s)) for mm, s in zip((pixel_mm, pixel_mm, slice_mm), spacing, strict=True))
    coarse_spacing = tuple(s * f for s, f in zip(spacing, factors, strict=True))
    background = _background(image, factors)
    coarse = block_mean(image, (*factors[:2], 1))
    coarse = block_mean(_equally_bright(coarse), (1, 1, factors[2]))
    scaled, inside, gas_level = _scaled(coarse, background)
    if not inside.any():
        return np.zeros(image.shape, dtype=bool)
    center = float(np.average(np.arange(coarse.shape[0]), weights=inside.sum(axis=(1, 2))))

    airway = ndi.binary_dilation(airways(scaled, inside, coarse_spacing, center))
    allowed = inside & ~airway
    smooth = ndi.gaussian_filter(scaled, [1.5 / s for s in coarse_spacing], truncate=2.5)
    aerated = _aerated(smooth, (smooth < level) & allowed, gas_level, smallest)
    if not aerated.any():
        return np.zeros(image.shape, dtype=bool)
    hidden, cage = behind_consolidations(aerated, coarse_spacing, center, wall_mm)
    steps = max(1, round(rim_mm / float(np.mean(coarse_spacing))))
    rim = ndi.binary_dilation(aerated, iterations=steps) & (smooth < rim_level) & cage
    lungs = _closed_by_side(aerated | ((rim | hidden) & allowed), coarse_spacing, center, closing_mm)
    if doubts is not None:
        doubts += doubt_about_windpipe(airway, lungs, coarse_spacing)
    return _enlarged(lungs & allowed, factors, image.shape)


def _enlarged(mask: np.ndarray, factors: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """A coarse mask on the fine grid: trilinear, cut at one half. Inverse of `block_mean`."""
    values = mask.astype(np.float32)
    for axis in (2, 0, 1):
        position = ((np.arange(shape[axis]) + 0.5) / factors[axis] - 0.5).clip(0, mask.shape[axis] - 1)
        below = position.astype(int)
        above = np.minimum(below + 1, mask.shape[axis] - 1)
        weight = (position - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        lower = np.take(values, below, axis)
        values = lower + weight * (np.take(values, above, axis) - lower) if factors[axis] > 1 else lower
    return values > 0.5


def _background(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Coarse voxels at the border that hold the image's minimum: what was never measured, e.g. around a round field.

    Their value (0, -2000, -3024) says nothing about air, so it must not move the thresholds.
    """
    lowest = block_mean(image == image.min(), factors) > 0
    labels, _ = ndi.label(lowest, IN_PLANE)
    edge = np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])
    return np.isin(labels, np.unique(edge[edge > 0]))


def _otsu(values: np.ndarray) -> float:
    return float(threshold_otsu(values.clip(*np.percentile(values, [0.5, 99.5]))))


def _bright(values: np.ndarray) -> float:
    """Median of what Otsu's threshold calls bright: the body. (The threshold itself may lie anywhere in a gap.)"""
    bright = values[values > _otsu(values)]
    return float(np.median(bright)) if bright.size else float(values.max())


def _equally_bright(coarse: np.ndarray) -> np.ndarray:
    """Single slices in which the body is darker than in the others, made as bright (contrast equalized by slices)."""
    sample = coarse[::3, ::3]
    lowest = sample.min()
    values = sample[sample > lowest]
    if values.size == 0:
        return coarse
    air, usual = float(np.percentile(values, 2)), _bright(values)
    coarse = coarse.copy()
    for z in range(coarse.shape[2]):
        values = sample[..., z][sample[..., z] > lowest]
        gain = (_bright(values) - air) / (usual - air) if values.size and usual > air else 1.0
        if 0.3 < gain < 0.85:
            coarse[..., z] = air + (coarse[..., z] - air) / gain
    return coarse


def _scaled(coarse: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Intensities with lung 0 and body 1, where the inside of the body is, and the level below which all is gas.

    Air outside: dark regions of a slice that lie mostly not between parts of the body (so a lung that is cut by the
    image's border stays inside), and those that continue it in the next slice (air between arm and chest).
    """
    nothing = coarse, np.zeros(coarse.shape, dtype=bool), 0.0
    values = coarse[~background][::7]
    if values.size == 0 or values.min() == values.max():
        return nothing
    dark = (coarse < _otsu(values)) & ~background
    labels, count = ndi.label(ndi.binary_opening(~dark & ~background, disk(1)[..., None]))
    if count == 0:
        return nothing
    body = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    tissue = float(np.median(coarse[body]))
    labels, count = ndi.label(dark, IN_PLANE)
    inside = mean_in_regions(labels, count, _between(body))
    outside = regions(labels, inside < 0.15)
    air = float(np.median(coarse[outside])) if outside.sum() > 50 else -np.inf
    # Lungs that a round field of view cuts off are open to it, as the air around the body is, but not as dark.
    cut = (mean_in_regions(labels, count, _between(body | background)) > 0.9) & (inside >= 0.15)
    cut &= mean_in_regions(labels, count, coarse) > (air + 0.08 * (tissue - air) if np.isfinite(air) else -np.inf)
    outside = regions(labels, (inside < 0.5) & ~cut)
    dark &= ~outside
    if not dark.any():
        return nothing

    labels, count = ndi.label(dark)
    beside = np.zeros_like(outside)
    beside[..., 1:] |= outside[..., :-1]
    beside[..., :-1] |= outside[..., 1:]
    continued = regions(labels, mean_in_regions(labels, count, beside) > 0.1)
    if continued.any() and not continued[dark].all():
        outside |= continued
        dark &= ~continued
    outside |= background
    lung = float(np.median(coarse[dark]))
    scaled = (coarse - lung) / (tissue - lung)
    air_level = (air - lung) / (tissue - lung)
    # Where a window has made air and lung alike, there is no telling gas from lung.
    return scaled, ~outside, 0.75 * air_level if air_level < -0.05 else -np.inf


def _between(body: np.ndarray) -> np.ndarray:
    """Voxels with body on both sides along one of the in-plane axes: a cheap hull."""
    inside = np.zeros_like(body)
    for axis in (0, 1):
        before = np.maximum.accumulate(body, axis)
        after = np.flip(np.maximum.accumulate(np.flip(body, axis), axis), axis)
        inside |= before & after
    return inside


def _aerated(smooth: np.ndarray, dark: np.ndarray, gas_level: float, smallest: float) -> np.ndarray:
    """Large connected parts of `dark`, opened by a pixel, that are no gas in bowel or stomach."""
    labels, count = ndi.label(ndi.binary_opening(dark, disk(1)[..., None]))
    if count == 0:
        return np.zeros_like(dark)
    size = np.bincount(labels.ravel())
    size[0] = 0
    for index in np.flatnonzero(size >= smallest * size.max()):
        if np.median(smooth[labels == index]) < gas_level:
            size[index] = 0
    return regions(labels, (size > 0) & (size >= smallest * size.max()))


def _closed_by_side(lungs: np.ndarray, spacing: Sequence[float], center: float, radius_mm: float) -> np.ndarray:
    """Closing with a ball and holes filled, on either side of the midline: together, lungs enclose the heart."""
    cut = round(center)
    closed = np.zeros_like(lungs)
    for side in (slice(0, cut), slice(cut, None)):
        half = np.zeros_like(lungs)
        half[side] = lungs[side]
        if half.any():
            box = ndi.find_objects(half.astype(np.uint8))[0]
            pads = [int(np.ceil(radius_mm / s)) + 1 for s in spacing]
            padded = np.pad(half[box], [(p, p) for p in pads])
            padded[..., : pads[2]] = padded[..., pads[2] : pads[2] + 1]  # the chest goes on beyond the last slice
            padded[..., -pads[2] :] = padded[..., -pads[2] - 1 : -pads[2]]
            dilated = ndi.distance_transform_edt(~padded, sampling=spacing) <= radius_mm
            eroded = ndi.distance_transform_edt(dilated, sampling=spacing) > radius_mm
            half[box] |= eroded[tuple(slice(p, -p) for p in pads)]
            closed[box] |= fill_holes_above_diaphragm(half[box], spacing)
    return closed


def learned_lung_mask(
    image: np.ndarray, spacing: Sequence[float], *, weights: str | None = None, name: str = "R231"
) -> np.ndarray:
    """Both lungs by the package lungmask (Hofmanninger et al. 2020), consolidations included.

    Args:
        image: Hounsfield units, LPS.
        weights: local file of the U-Net; None: the package downloads those called `name` once.
        name: `R231` or `R231CovidWeb`.

    Raises:
        ImportError: the package is missing.
        FileNotFoundError: no such file, or the weights cannot be downloaded.
    """
    slices = np.ascontiguousarray(image.transpose(2, 1, 0))  # the package's order: z, y (to posterior), x (to left)
    return (_lungmask(weights, name).apply(slices) > 0).transpose(2, 1, 0)


@lru_cache(maxsize=1)
def _lungmask(weights: str | None, name: str) -> Any:
    try:
        from lungmask import LMInferer
    except ImportError as error:
        raise ImportError("organ 'lungmask' needs a package: pip install 'weakseg-bundles[lung]'") from error
    try:
        return LMInferer(modelname=name, modelpath=weights, tqdm_disable=True)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights {weights or name} of lungmask are not to be had ({error}); give a local file with "
            "--organ_options \"{'weights': 'unet_r231-d5d2fc3d.pth'}\""
        ) from error
