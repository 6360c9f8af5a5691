"""Shapes in masks: components, holes, openings, slice by slice or in the whole volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage as ndi
from skimage.morphology import ball, disk


def _label(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return component labels and the size of each, the background's (label 0) set to 0."""
    labels, _ = ndi.label(mask, ndi.generate_binary_structure(mask.ndim, connectivity))
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


def hottest_component(mask: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The connected component that holds the highest heat; an empty mask stays empty.

    Args:
        mask: bool, any rank; positions that touch by a corner belong together.
        heat: of the same shape.
    """
    if not mask.any():
        return mask
    labels, _ = _label(mask, mask.ndim)
    return labels == labels.flat[np.where(mask, heat, -np.inf).argmax()]


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close with a disk or ball, as if the image went on with background: at the border nothing is lost or added."""
    footprint = {2: disk, 3: ball}[mask.ndim](radius)
    # A closing stays within the mask's bounding box, usually a small part of the volume.
    box = ndi.find_objects(mask.astype(np.uint8))[0]
    padded = np.pad(mask[box], radius)
    closed = mask.copy()
    closed[box] = ndi.binary_closing(padded, footprint)[(slice(radius, -radius),) * mask.ndim]
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

    GP-UNet's code does so slice by slice with `min_size=64, max_hole=128, closing_radius=2, largest_only=True`.
    By default nothing is changed. An empty mask stays empty.

    Args:
        mask: any rank (2 or 3 for closing), non-zero is foreground.
        min_size: objects with fewer pixels (voxels) are dropped.
        max_hole: background components, connected through faces, of up to so many pixels (voxels) are filled; one cut
            off by the image border counts, too.
        closing_radius: of the disk or ball, in pixels (voxels).
        largest_only: keep the largest component only; wrong for diseases with several lesions.
        axis: clean each slice along this axis by itself. Default: the mask as a whole.
        connectivity: of objects, see `largest_component`.

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


def volume_ml(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Milliliters of a bool mask `[H, W, D]`; `spacing` in millimeters."""
    return float(mask.sum() * np.prod(spacing)) / 1000.0


def least_voxels(milliliters: float, spacing: tuple[float, float, float]) -> int:
    """Voxels of the given spacing in mm that make up a volume, rounded up."""
    return math.ceil(milliliters * 1000 / math.prod(spacing))


def each_slice(function: Callable[[np.ndarray], np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Apply a 2D operation to the slices of `mask` that hold something; the others stay empty."""
    out = np.zeros_like(mask)
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        out[..., z] = function(mask[..., z])
    return out


def dilate_in_plane(mask: np.ndarray, radius_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """What lies within a radius of a mask bool `[H, W, D]` in its slice; empty slices stay empty."""
    return each_slice(lambda s: ndi.distance_transform_edt(~s, sampling=spacing[:2]) <= radius_mm, mask)


def smooth_in_organ(image: np.ndarray, organ: np.ndarray, *, sigma_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """In-plane Gaussian that counts the organ's voxels only, so that the air around dims none; 0 outside."""
    sigma = (*(sigma_mm / np.asarray(spacing[:2], dtype=float)), 0)
    weight = ndi.gaussian_filter(organ.astype(np.float32), sigma)
    return organ * ndi.gaussian_filter((image * organ).astype(np.float32), sigma) / np.maximum(weight, 1e-6)


def without_thin(image: np.ndarray, *, radius_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """Gray-scale opening by a box that reaches `radius_mm` to each side: bright vessels vanish, broad lesions stay."""
    return ndi.grey_opening(image, size=[2 * round(radius_mm / step) + 1 for step in spacing])
