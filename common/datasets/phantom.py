"""The phantom data set: heads with a known lesion, on which a bundle trains and is scored within minutes on a CPU.

Brightness alone does not find the lesion (vessels, choroid plexus and scalp are as bright or brighter, the gain of
each scan differs, a bias field varies within it), and neither does the position of a slice. Size and shape do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Names of the images of a case, with the brightness of lesion, vessel and ventricle relative to brain in each.
MODALITIES: dict[str, tuple[float, float, float]] = {
    "flair": (1.5, 1.8, 0.45),
    "t1ce": (1.3, 2.0, 0.5),
    "t2": (1.6, 1.7, 1.7),
    "t1": (0.8, 1.5, 0.5),
}


def smooth_field(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float] | np.ndarray) -> np.ndarray:
    """Smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return (field - field.mean()) / (field.std() + 1e-12)


def ellipsoid(grid: np.ndarray, center: np.ndarray, radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance from the center in units of the radii: 1 on the surface of the ellipsoid."""
    scaled = [(axis - c) / r for axis, c, r in zip(grid, center, radii, strict=True)]
    return np.sqrt(sum(s**2 for s in scaled))


def draw_vessels(rng: np.random.Generator, organ: np.ndarray, per_1000: float) -> np.ndarray:
    """Weights in [0, 1] of small bright dots, drawn in every slice that shows the organ, whether lesion or not."""
    weight = np.zeros(organ.shape)
    x, y = np.meshgrid(*(np.arange(n) for n in organ.shape[:2]), indexing="ij")
    for z in range(organ.shape[2]):
        inside = np.argwhere(organ[..., z])
        for _ in range(2 + rng.poisson(per_1000 * len(inside) / 1000) if len(inside) else 0):
            center = inside[rng.integers(len(inside))] + rng.uniform(-0.5, 0.5, 2)
            radius, strength = rng.uniform(1.0, 2.0), rng.uniform(0.75, 1.25)
            for depth in range(z, min(z + int(rng.integers(1, 3)), organ.shape[2])):
                distance = np.hypot(x - center[0], y - center[1])
                dot = strength * np.clip(radius + 0.5 - distance, 0, 1)
                weight[..., depth] = np.maximum(weight[..., depth], dot)
                center = center + rng.uniform(-1, 1, 2)
    return weight * organ


class Head(NamedTuple):
    """A head without lesion; shapes as the volume's but for `grid` (3, x, y, z), `center` and `radii` (3,), voxels."""

    grid: np.ndarray
    center: np.ndarray
    radii: np.ndarray
    organ: np.ndarray
    skull: np.ndarray
    scalp: np.ndarray
    ventricle: np.ndarray
    plexus: np.ndarray


def draw_head(rng: np.random.Generator, shape: tuple[int, int, int]) -> Head:
    """Brain, skull, scalp and ventricles, and in each of these a spot of choroid plexus (weights from 0 to 1.2).

    Raises:
        ValueError: a shape too small to hold a head.
    """
    if len(shape) != 3 or min(shape[:2]) < 24 or shape[2] < 6:
        raise ValueError(f"shape must be 3D and at least (24, 24, 6); got {tuple(shape)}.")
    size = np.array(shape, dtype=float)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    # The head reaches the first and the last slice only just, so that these are nearly air.
    center = (size - 1) / 2 + rng.uniform(-1, 1, 3) * size * [0.03, 0.03, 0.02]
    radii = size * [0.38, 0.45, 0.5] * rng.uniform([0.92, 0.92, 0.95], [1.04, 1.04, 1.02])
    depth = ellipsoid(grid, center, radii)
    ventricle, plexus = np.zeros(shape, bool), np.zeros(shape)  # in the middle slices of every head
    for side in (-1, 1):
        middle = center + radii * [side * 0.16, rng.uniform(0.0, 0.1), rng.uniform(-0.05, 0.15)]
        ventricle |= ellipsoid(grid, middle, radii * [0.09, 0.3, 0.25]) < 1
        spot = ellipsoid(grid, middle + radii * [side * 0.03, 0.2, 0], [2.0, 2.0, max(1.0, radii[2] * 0.25)])
        plexus = np.maximum(plexus, rng.uniform(0.8, 1.2) * np.clip(2 * (1.25 - spot), 0, 1))
    skull, scalp = (depth >= 0.8) & (depth < 0.9), (depth >= 0.9) & (depth < 1)
    return Head(grid, center, radii, depth < 0.8, skull, scalp, ventricle, plexus)


def without_crumbs(blend: np.ndarray) -> None:
    """Leave of weights above one half the largest piece, in place: a ragged edge may shed crumbs."""
    parts, count = ndimage.label(blend > 0.5)
    if count > 1:
        largest = 1 + np.argmax(ndimage.sum_labels(blend > 0.5, parts, np.arange(1, count + 1)))
        blend[(parts != largest) & (parts > 0)] = 0


def scan(rng: np.random.Generator, tissue: np.ndarray, *, blur: float, noise: float) -> np.ndarray:
    """What a scanner makes of tissue (brain 1): in-plane blur in voxels, a bias field, Rician noise, any gain."""
    tissue = ndimage.gaussian_filter(tissue, (blur, blur, 0))
    bias = np.exp(0.15 * smooth_field(rng, tissue.shape, np.array(tissue.shape) / 4))
    real, imaginary = noise * rng.standard_normal((2, *tissue.shape))
    return np.hypot(tissue * bias + real, imaginary) * 100 * np.exp(rng.uniform(-0.7, 0.7))


def phantom_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (64, 64, 16),
    *,
    modalities: int = 1,
    lesion: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one head.

    Args:
        rng: source of all randomness.
        shape: voxels along left, posterior and superior; sizes of head and lesion scale with it.
        modalities: number of images, in the order of `MODALITIES`.
        lesion: whether there is one.

    Returns:
        `image` (modalities, x, y, z) float32, zero or more, in arbitrary units; `mask` (x, y, z) bool, the lesion;
        `organ` (x, y, z) bool, the brain. The mask lies within the organ.

    Raises:
        ValueError: a shape too small to hold a head, or an unknown number of modalities.
    """
    if not 1 <= modalities <= len(MODALITIES):
        raise ValueError(f"modalities must lie between 1 and {len(MODALITIES)}; got {modalities}.")
    head = draw_head(rng, shape)
    center, radii, organ = head.center, head.radii, head.organ
    mask, blend = np.zeros(shape, bool), np.zeros(shape)
    if lesion:
        extent = radii * rng.uniform([0.2, 0.2, 0.32], [0.34, 0.32, 0.48])
        direction = rng.standard_normal(3)
        offset = direction / np.linalg.norm(direction) * rng.uniform(0.2, 0.5)
        ragged = smooth_field(rng, shape, (2.5, 2.5, 1.0))
        level = 1 - ellipsoid(head.grid, center + offset * radii, extent) + 0.18 * ragged
        blend = organ / (1 + np.exp(-level / 0.07))
        without_crumbs(blend)
        mask = blend > 0.5

    vessels = np.maximum(draw_vessels(rng, organ, per_1000=4.0), head.plexus * organ)
    images = []
    for lesion_level, vessel_level, ventricle_level in list(MODALITIES.values())[:modalities]:
        tissue = np.zeros(shape)
        tissue[organ] = (1 + 0.06 * smooth_field(rng, shape, (1.5, 1.5, 0.7)))[organ]
        tissue[head.ventricle & organ] = ventricle_level
        tissue += blend * (lesion_level * rng.uniform(0.92, 1.08) - tissue)
        # A dot on the lesion is as bright as one on brain, so the brightest voxel of a slice gives nothing away.
        tissue = np.maximum(tissue, np.where(vessels > 0, 1 + (vessel_level - 1) * vessels, 0))
        tissue[head.skull], tissue[head.scalp] = 0.15, rng.uniform(1.4, 2.2)
        images.append(scan(rng, tissue, blur=0.5, noise=0.05))
    return np.stack(images).astype(np.float32), mask, organ
