"""Organ masks, and intensities in multiples of the organ's median.

A classifier that may look anywhere finds shortcuts: the skull tells the slice's position, and position tells the
label. Restricting its evidence to the organ is what makes its maps point at lesions. The masks here are morphology
on one channel `[H, W, D]`, axial slices along the last axis (LPS), lengths in millimeters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from monai.transforms import CenterSpatialCrop
from scipy import ndimage as ndi
from skimage.morphology import disk

from ..masks import each_slice, largest_component
from ..masks.morphology import dilate_in_plane
from .lungs import learned_lung_mask, lung_mask


def organ_mask(image: np.ndarray, *, spacing: Sequence[float], organ: str, **options: Any) -> np.ndarray:
    """Mask of the organ in which evidence counts.

    Args:
        image: `[H, W, D]`, finite, non-negative (CT: any units, air darkest).
        spacing: millimeters of the three axes.
        organ: a key of `ORGANS`: `brain`, `head` (eroded), `lung`, `lungmask` (learned; needs Hounsfield units),
            `center` for a box in the middle, or `none` for all voxels.
        options: of that organ's function.

    Returns:
        Bool `[H, W, D]`.

    Raises:
        ValueError: unknown organ, or nothing is left of it.
    """
    if organ not in ORGANS:
        raise ValueError(f"organ must be one of {sorted(ORGANS)}, got {organ!r}")
    mask = ORGANS[organ](np.asarray(image, dtype=np.float32), tuple(spacing), **options)
    if not mask.any():
        raise ValueError(
            f"no {organ} found in an image of shape {list(image.shape)}; is it another body part? `organ: none` looks "
            "everywhere"
        )
    return mask


def normalize_by_median(image: np.ndarray, organ: np.ndarray, *, upper: float = 4.0) -> np.ndarray:
    """Image in multiples of the median of its positive voxels inside the organ, clipped to `[0, upper]`."""
    inside = image[organ & (image > 0)]
    median = float(np.median(inside)) if inside.size else 1.0
    return np.clip(image.astype(np.float32) / median, 0.0, upper)


def normalize_by_mode(image: np.ndarray, organ: np.ndarray, *, upper: float = 5.0) -> np.ndarray:
    """Image in multiples of the most frequent intensity inside the organ, clipped to `[0, upper]`.

    That is the intensity of healthy tissue even where a third of the organ is ill, which moves its median. The mode is
    the peak of a histogram of 100 bins up to the 99th percentile, smoothed by two bins.
    """
    inside = image[organ & (image > 0)]
    if not inside.size:
        return np.clip(image.astype(np.float32), 0.0, upper)
    counts, edges = np.histogram(inside, bins=100, range=(0.0, float(np.quantile(inside, 0.99))))
    peak = int(ndi.gaussian_filter1d(counts.astype(np.float32), 2.0).argmax())
    return np.clip(image.astype(np.float32) / float(edges[peak : peak + 2].mean()), 0.0, upper)


def whole_image(image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Every voxel: no restriction."""
    return np.ones(image.shape, dtype=bool)


def center_box(image: np.ndarray, spacing: Sequence[float], *, size: Sequence[int] = (128, 128, 128)) -> np.ndarray:
    """The box of `size` voxels in the middle of the image: where a paper cuts all scans, which share a grid, alike."""
    mask = np.zeros(image.shape, dtype=bool)
    mask[CenterSpatialCrop(size).compute_slices(image.shape)] = True
    return mask


def head_mask(image: np.ndarray, spacing: Sequence[float], *, erode_mm: float = 0.0, level: float = 0.12) -> np.ndarray:
    """The head, skin included: what is brighter than `level` of the 99th percentile.

    Morphological opening slice by slice, the largest component, holes filled.

    Args:
        erode_mm: in-plane depth to take away, e.g. 15 for scalp and skull.
    """
    if not (image > 0).any():
        return np.zeros(image.shape, dtype=bool)
    bright = image > level * np.percentile(image[image > 0], 99)
    radius = max(1, round(3.0 / float(np.mean(spacing[:2]))))
    head = largest_component(each_slice(lambda s: ndi.binary_opening(s, disk(radius)), bright))
    head = each_slice(ndi.binary_fill_holes, head)
    return _depth(head, spacing) > erode_mm if erode_mm > 0 else head


def brain_mask(
    image: np.ndarray,
    spacing: Sequence[float],
    *,
    neck_mm: float = 6.0,
    scalp_mm: float = 14.0,
    skull_mm: float = 6.0,
    closing_mm: float = 6.0,
    drift_mm: float = 2.0,
    min_area_mm2: float = 600.0,
    step_mm: float = 4.0,
) -> np.ndarray:
    """The brain in a T2-FLAIR (or similar) head, skull-stripped or not.

    Where the skull is stripped, the brain is all there is. Else brain-like voxels deep in the head are cut from eyes,
    muscles and marrow by an erosion; the largest 3D part is followed from its widest slice upwards and downwards,
    where it may only narrow; then it grows back, and ventricles and sulci are closed.

    Args:
        neck_mm: radius of the erosion: connections narrower than twice that are cut.
        scalp_mm: how deep bright scalp may reach.
        skull_mm: the outermost layer of the head that is never brain.
        closing_mm: radius of the closing over ventricles and sulci.
        drift_mm: how far the brain's outline may move outwards from one slice to the next.
        min_area_mm2: slices with less brain hold none.
        step_mm: thinner slices are taken in steps of about this, those between get their neighbor's mask.
    """
    step = max(1, min(round(step_mm / spacing[2]), image.shape[2]))  # of few slices, one is taken
    if step > 1:
        options = {"neck_mm": neck_mm, "scalp_mm": scalp_mm, "skull_mm": skull_mm, "closing_mm": closing_mm}
        options |= {"drift_mm": drift_mm, "min_area_mm2": min_area_mm2, "step_mm": 0.0}
        coarse = brain_mask(image[..., step // 2 :: step], (*spacing[:2], spacing[2] * step), **options)
        nearest = np.minimum(np.arange(image.shape[2]) // step, coarse.shape[2] - 1)
        return coarse[..., nearest]
    smooth = ndi.gaussian_filter(image, (1.0 / spacing[0], 1.0 / spacing[1], 0))
    head = head_mask(smooth, spacing)
    depth = _depth(head, spacing)
    median = _deep_median(smooth, depth)
    if _is_stripped(image, smooth, head, depth, median):
        return head
    # All that follows lies within the head; the margin is what the following of slices grows by.
    box = _around(head, max(1, round(neck_mm / float(np.mean(spacing[:2])))) + 1)
    mask = np.zeros_like(head)
    smooth, head, depth = smooth[box], head[box], depth[box]
    allowed = head & (depth > skull_mm) & ~_scalp(smooth, head, depth, median, spacing, scalp_mm)
    candidates = allowed & (smooth > 0.55 * median)
    cores = largest_component(_depth(candidates, spacing) > neck_mm)
    followed = _follow_from_widest(cores, spacing, neck_mm, drift_mm)
    grown = dilate_in_plane(followed, neck_mm + 1.5, spacing) & allowed
    brain = _closed(grown, closing_mm, spacing) & head
    brain[..., brain.sum(axis=(0, 1)) * spacing[0] * spacing[1] < min_area_mm2] = False
    mask[box] = brain
    return mask


def _deep_median(smooth: np.ndarray, depth: np.ndarray) -> float:
    """Median intensity of the deep half of the head: mostly brain, whatever scalp and face look like."""
    deep = depth > 25.0
    if deep.sum() < 100:
        deep = depth > 0.5 * depth.max()
    if not deep.any():
        return 1.0
    return float(np.median(smooth[deep & (smooth > 0.2 * np.median(smooth[deep]))]))


def _is_stripped(image: np.ndarray, smooth: np.ndarray, head: np.ndarray, depth: np.ndarray, median: float) -> bool:
    """Skull-stripped images are exactly 0 outside, and their rim is cortex: no brighter than the brain."""
    area = (depth > 25.0).sum(axis=(0, 1))
    middle = (area >= 0.5 * area.max()) if area.any() else np.ones(len(area), dtype=bool)
    rim = ((depth > 0) & (depth <= 4.5))[..., middle]
    outside = ~each_slice(lambda s: ndi.binary_dilation(s, iterations=4), head[..., middle])
    bright_rim = float((smooth[..., middle][rim] > 1.35 * median).mean()) if rim.any() else 0.0
    zeros = float((image[..., middle][outside] == 0).mean()) if outside.any() else 1.0
    return bright_rim < 0.15 and zeros > 0.99


def _scalp(
    smooth: np.ndarray, head: np.ndarray, depth: np.ndarray, median: float, spacing: Sequence[float], reach_mm: float
) -> np.ndarray:
    """Bright tissue that hangs together with the bright rim of the head."""
    bright = (smooth > 1.35 * median) & head & (depth <= reach_mm)
    seed = bright & (depth <= 4.5)
    in_plane = ndi.generate_binary_structure(3, 1)
    in_plane[..., [0, 2]] = False
    element = disk(max(1, round(1.5 / float(np.mean(spacing[:2])))))[..., None].astype(bool)
    return ndi.binary_propagation(seed, structure=in_plane, mask=ndi.binary_opening(bright, element) | seed)


def _follow_from_widest(cores: np.ndarray, spacing: Sequence[float], neck_mm: float, drift_mm: float) -> np.ndarray:
    """Keep in each slice what lies within `drift_mm` of the slice before, starting at the widest one."""
    followed = np.zeros_like(cores)
    area = cores.sum(axis=(0, 1))
    start = int(area.argmax())
    followed[..., start] = cores[..., start]
    pixel = float(np.mean(spacing[:2]))
    grow, small = disk(max(1, round(neck_mm / pixel))), disk(max(1, round(3.0 / pixel)))
    for order in (range(start + 1, cores.shape[2]), range(start - 1, -1, -1)):
        before = ndi.binary_dilation(followed[..., start], grow)
        for z in order:
            if not before.any():
                break
            near = ndi.distance_transform_edt(~ndi.binary_fill_holes(before), sampling=spacing[:2]) <= drift_mm
            followed[..., z] = ndi.binary_opening(cores[..., z] & near, small)
            before = ndi.binary_dilation(followed[..., z], grow)
    return followed


def _depth(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """In-plane distance in mm to the outside, slice by slice; the image's border counts as outside."""
    depth = np.zeros(mask.shape, dtype=np.float32)
    box = _around(mask)
    inside, within = mask[box], depth[box]
    for z in np.flatnonzero(inside.any(axis=(0, 1))):
        within[..., z] = ndi.distance_transform_edt(np.pad(inside[..., z], 1), sampling=spacing[:2])[1:-1, 1:-1]
    return depth


def _around(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """In-plane box of a mask, over all slices, with a margin in pixels."""
    extents = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2))]
    rows, columns = (slice(max(i[0] - margin, 0), i[-1] + 1 + margin) if len(i) else slice(0) for i in extents)
    return rows, columns


def _closed(mask: np.ndarray, radius_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """In-plane closing with a disk, then holes filled; padded so that the border does not cut the disk."""
    pad = int(np.ceil(radius_mm / min(spacing[:2]))) + 1
    padded = np.pad(mask, ((pad, pad), (pad, pad), (0, 0)))
    filled = each_slice(ndi.binary_fill_holes, dilate_in_plane(padded, radius_mm, spacing))
    return (_depth(filled, spacing) > radius_mm)[pad:-pad, pad:-pad]


ORGANS: dict[str, Callable[..., np.ndarray]] = {
    "brain": brain_mask,
    "center": center_box,
    "head": head_mask,
    "lung": lung_mask,
    "lungmask": learned_lung_mask,
    "none": whole_image,
}
