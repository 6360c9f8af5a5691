"""A phantom as clinics have them: what is as bright and as compact as the lesion is in every head, healthy ones too.

The lesion differs in texture (mottled), edge (ragged) and surroundings (none, where the others have a dark rim), not in
brightness, size, number or position. A part of it is as bright as brain. Two scanners differ in contrast, sharpness and
noise. So a threshold finds the others as well as the lesion, and a network has something to learn from yes/no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .phantom import MODALITIES, Head, draw_head, draw_vessels, ellipsoid, scan, smooth_field, without_crumbs


class Scanner(NamedTuple):
    """Contrast: exponent of the tissue's brightness relative to brain; blur in voxels; noise relative to brain."""

    contrast: float
    blur: float
    noise: float


SCANNERS = (Scanner(1.1, 0.5, 0.04), Scanner(0.8, 0.55, 0.05))


def clinic_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (64, 64, 16),
    *,
    modalities: int = 1,
    lesion: bool = True,
    scanner: int = 0,
    isointense: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one head with two or three bright bodies; the lesion, if there is one, takes the place of one of them.

    Args:
        rng: source of all randomness.
        shape: voxels along left, posterior and superior; sizes of head and bodies scale with it.
        modalities: number of images, in the order of `common.datasets.phantom.MODALITIES`.
        lesion: whether there is one.
        scanner: index in `SCANNERS`.
        isointense: share of the lesion that is as bright as brain.

    Returns:
        As `common.datasets.phantom_case`.

    Raises:
        ValueError: a shape too small to hold a head, an unknown scanner or number of modalities.
    """
    if not 1 <= modalities <= len(MODALITIES):
        raise ValueError(f"modalities must lie between 1 and {len(MODALITIES)}; got {modalities}.")
    if not 0 <= scanner < len(SCANNERS):
        raise ValueError(f"scanner must lie between 0 and {len(SCANNERS) - 1}; got {scanner}.")
    head = draw_head(rng, shape)
    sites = list(_sites(rng, head, count=int(rng.integers(2, 4))))
    mask, blend, pattern = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
    if lesion:
        blend, pattern, bright = _lesion(rng, head, *sites.pop(), isointense)
        mask = blend > 0.5
    others = [_other(rng, head, *site) for site in sites]
    vessels = np.maximum(draw_vessels(rng, head.organ, per_1000=0.5), head.plexus * head.organ)
    bodies = np.max([blend, *(body for body, _ in others)], axis=0)
    vessels *= 0.8 * (1 - bodies)  # a dot on a smooth body would make it look mottled
    images = []
    for level, vessel_level, ventricle_level in list(MODALITIES.values())[:modalities]:
        tissue = np.zeros(shape)
        tissue[head.organ] = (1 + 0.06 * smooth_field(rng, shape, (1.5, 1.5, 0.7)))[head.organ]
        tissue[head.ventricle & head.organ] = ventricle_level
        for body, rim in others:
            tissue *= 1 - 0.55 * rim
            tissue += body * (level * rng.uniform(1.0, 1.15) - tissue)
        if lesion:
            inside = 1 + (level * rng.uniform(1.0, 1.15) - 1) * bright + 0.25 * pattern
            tissue += blend * (inside - tissue)
        tissue = np.maximum(tissue, np.where(vessels > 0, 1 + (vessel_level - 1) * vessels, 0))
        tissue[head.skull], tissue[head.scalp] = 0.1, rng.uniform(1.6, 2.3)
        contrast, blur, noise = SCANNERS[scanner]
        images.append(scan(rng, np.clip(tissue, 0, None) ** contrast, blur=blur, noise=noise))
    return np.stack(images).astype(np.float32), mask, head.organ


def _sites(rng: np.random.Generator, head: Head, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Centers and radii, in voxels, of bodies that do not touch; fewer than `count` where there is no room."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(1000):
        extent = head.radii * rng.uniform([0.22, 0.22, 0.34], [0.34, 0.34, 0.48])
        direction = rng.standard_normal(3)
        center = head.center + direction / np.linalg.norm(direction) * rng.uniform(0.2, 0.56) * head.radii
        if all(np.linalg.norm((center - other) / (extent + radii)) > 1.15 for other, radii in found):
            found.append((center, extent))
            yield center, extent
        if len(found) == count:
            return


def _lesion(
    rng: np.random.Generator, head: Head, center: np.ndarray, extent: np.ndarray, isointense: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much each voxel is lesion, its mottled pattern (of standard deviation 1), and how bright it is, 0 to 1."""
    shape = head.organ.shape
    level = 1 - ellipsoid(head.grid, center, extent) + 0.15 * smooth_field(rng, shape, (2.5, 2.5, 1.0))
    blend = head.organ / (1 + np.exp(-level / 0.06))
    without_crumbs(blend)
    where = smooth_field(rng, shape, extent / 2)
    bright = 1 / (1 + np.exp(-(where - np.quantile(where[blend > 0.5], isointense)) / 0.15))
    return blend, smooth_field(rng, shape, (0.8, 0.8, 0.4)), bright


def _other(
    rng: np.random.Generator, head: Head, center: np.ndarray, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much each voxel is one of the other bodies, and how much it is of the dark rim around it."""
    level = 1 - ellipsoid(head.grid, center, extent) + 0.03 * smooth_field(rng, head.organ.shape, (2.5, 2.5, 1.0))
    body = head.organ / (1 + np.exp(-level / 0.05))
    rim = np.exp(-0.5 * ((level + 0.12) / 0.08) ** 2) * head.organ
    return body, rim
