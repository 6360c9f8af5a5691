"""What surrounds the lungs in a chest CT: airways, the diaphragm, the chest wall where consolidations hide it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi
from scipy.interpolate import CubicSpline
from scipy.spatial import ConvexHull, QhullError

from ..masks import each_slice

IN_PLANE = ndi.generate_binary_structure(3, 1) & np.array([False, True, False])


def block_mean(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Mean of blocks, float32; the last, incomplete block is filled up with the border's values."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            pads = [(0, -n % factor if a == axis else 0) for a, n in enumerate(image.shape)]
            image = np.pad(image, pads, mode="edge") if pads[axis][1] else image
            every = [slice(None)] * 3
            total = np.zeros([n // factor if a == axis else n for a, n in enumerate(image.shape)], dtype=np.float32)
            for start in range(factor):  # faster than a reshaped mean
                every[axis] = slice(start, None, factor)
                total += image[tuple(every)]
            image = total / factor
    return image.astype(np.float32)


def mean_in_regions(labels: np.ndarray, count: int, mask: np.ndarray) -> np.ndarray:
    """Mean of `mask` in each labelled region, `[count + 1]`: its share in the mask."""
    size = np.bincount(labels.ravel(), minlength=count + 1)
    return np.bincount(labels.ravel(), weights=mask.ravel(), minlength=count + 1) / np.maximum(size, 1)


def regions(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Regions whose entry is true; never the background."""
    return np.where(np.arange(len(chosen)) > 0, chosen, False)[labels]


def airways(scaled: np.ndarray, inside: np.ndarray, spacing: Sequence[float], center: float) -> np.ndarray:
    """Trachea and main bronchi: small round dark regions of slices near the midline that follow each other.

    The trachea is the largest and darkest chain of them; what continues it and is nearly as dark is a bronchus.

    Args:
        scaled: lung 0, body 1.
        inside: inside of the body.
        spacing: millimeters.
        center: the midline, voxels of the first axis.
    """
    nothing = np.zeros_like(inside)
    labels, count = ndi.label((scaled < 0.3) & inside, IN_PLANE)
    if count == 0:
        return nothing
    darkest_quarter = np.percentile(scaled[labels > 0], 25)
    size = np.bincount(labels.ravel())
    boxes = ndi.find_objects(labels)
    extent = np.array(
        [1.0] + [max((s.stop - s.start) * mm for s, mm in zip(b[:2], spacing[:2], strict=True)) for b in boxes]
    )
    middle = np.array([center, *((box[0].start + box[0].stop - 1) / 2 for box in boxes)])
    area = size * spacing[0] * spacing[1]
    roundness = area / (np.pi / 4 * extent**2)
    tubes = (area > 40) & (area < 800) & (abs(middle - center) * spacing[0] < 50) & (roundness > 0.3)

    chains, _ = ndi.label(regions(labels, tubes & (roundness > 0.45)))
    shortest = min(9.0, 0.5 * scaled.shape[2] * spacing[2])
    best, trachea, darkness = 0.0, nothing, 0.0
    for index, box in enumerate(ndi.find_objects(chains), start=1):
        mask = chains[box] == index
        dark = float(np.median(scaled[box][mask]))
        off = abs(np.nonzero(mask)[0].mean() + box[0].start - center) * spacing[0]
        long_enough = mask.shape[2] * spacing[2] >= shortest
        if long_enough and off < 25 and dark <= darkest_quarter and -dark * mask.sum() > best:
            best, trachea, darkness = -dark * mask.sum(), chains == index, dark

    others, count = ndi.label(regions(labels, tubes) & ~trachea)
    rest = []
    for index, box in enumerate(ndi.find_objects(others), start=1):
        mask = others[box] == index
        thin = mask.sum() / mask.shape[2] * spacing[0] * spacing[1] < 220
        if thin and np.median(scaled[box][mask]) < 0.5 * darkness:
            rest.append(index)
    found = trachea
    for _ in range(4 if best > 0 else 0):
        near = np.unique(others[ndi.binary_dilation(found, iterations=3)])
        found = found | np.isin(others, np.intersect1d(near, rest))
    return found


def fill_holes_above_diaphragm(lungs: np.ndarray, spacing: Sequence[float], *, dome_mm2: float = 1000.0) -> np.ndarray:
    """Fill the holes of axial slices (vessels, consolidations), but not the domes of the diaphragm.

    A dome is a hole larger than `dome_mm2` that stands on what is no lung: it is open in the slice below, or in the
    lowest slice.

    Args:
        lungs: bool `[H, W, D]`, axial slices from bottom to top.
        spacing: millimeters.
        dome_mm2: smaller holes are filled.
    """
    filled = each_slice(ndi.binary_fill_holes, lungs)
    labels, _ = ndi.label(filled & ~lungs, IN_PLANE)
    sizes = np.bincount(labels.ravel()) * spacing[0] * spacing[1]
    below = np.ones(lungs.shape[:2], dtype=bool)
    for z in range(lungs.shape[2]):
        for index in np.unique(labels[..., z]):
            if index > 0 and sizes[index] > dome_mm2:
                hole = labels[..., z] == index
                if below[hole].mean() > 0.5:
                    filled[hole, z] = False
        below = ~filled[..., z]
    return filled


def behind_consolidations(
    aerated: np.ndarray, spacing: Sequence[float], center: float, wall_mm: float, *, directions: int = 180
) -> tuple[np.ndarray, np.ndarray]:
    """What lies between aerated lung and the chest wall, and everything within the wall.

    From one line through the chest, at the middle of the lungs, look out in all directions: the farthest lung in each
    direction and slice is where the wall is, unless a consolidation hides it. The wall has no dents: where lung
    reaches less far than above and below, or than on both sides, a consolidation does. Only that is added which
    continues a ray through lung; rays that meet the heart alone stay as they are.
    """
    reach_mm = min(spacing[:2]) / 2
    middle = (center, float(np.average(np.arange(aerated.shape[1]), weights=aerated.sum(axis=(0, 2)))))
    angles = np.arange(directions) * 2 * np.pi / directions
    radii = np.arange(int(np.hypot(*(n * s for n, s in zip(aerated.shape, spacing[:2], strict=False))) / reach_mm))
    x = np.round(middle[0] + np.outer(np.cos(angles), radii * reach_mm) / spacing[0]).astype(int)
    y = np.round(middle[1] + np.outer(np.sin(angles), radii * reach_mm) / spacing[1]).astype(int)
    valid = (x >= 0) & (y >= 0) & (x < aerated.shape[0]) & (y < aerated.shape[1])
    met = aerated[np.where(valid, x, 0), np.where(valid, y, 0)] & valid[..., None]
    lung = np.where(met.any(axis=1), (len(radii) - met[:, ::-1].argmax(axis=1)) * reach_mm, 0.0)

    slices, around = int(wall_mm / spacing[2]) // 2 * 2 + 1, directions // 36 * 2 + 1
    wall = ndi.grey_closing(np.pad(lung, ((0, 0), (slices, slices))), size=(1, slices))[:, slices:-slices]
    beside = np.pad(wall, ((around, around), (0, 0)), mode="wrap")
    wall = np.maximum(wall, ndi.grey_closing(beside, size=(around, 1))[around:-around])
    wall = _round(wall, angles, wall - lung > 8.0)
    wall = np.where((lung > 0.4 * wall) & (wall - lung < 60.0), wall, lung)

    dx = (np.arange(aerated.shape[0]) - middle[0])[:, None] * spacing[0]
    dy = (np.arange(aerated.shape[1]) - middle[1])[None] * spacing[1]
    direction = np.round(np.arctan2(dy, dx) / (2 * np.pi) * directions).astype(int) % directions
    radius = np.hypot(dx, dy)[..., None]
    return (radius > lung[direction]) & (radius < wall[direction]), radius <= wall[direction] + 1.5


def _round(
    wall: np.ndarray, angles: np.ndarray, uncertain: np.ndarray, *, beyond_mm: float = 6.0, every: int = 4
) -> np.ndarray:
    """Distances `[directions, slices]` to the wall, the uncertain ones moved out to where a round chest has it.

    At least to the convex hull of the slice. That is a chord where a consolidation hides much of the back, so on along
    a periodic cubic spline through the certain distances, up to `beyond_mm` more. It takes one direction of `every`:
    neighbors differ by the grid's steps.
    """
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    wall, directions = wall.copy(), np.arange(len(angles))
    for z in np.flatnonzero(uncertain.any(axis=0)):
        seen, unsure = wall[:, z] > 0, uncertain[:, z]
        try:
            facets = ConvexHull(along[seen] * wall[seen, z, None]).equations
        except QhullError:  # fewer than three points, or all on a line
            continue
        towards = along @ facets[:, :2].T
        hull = np.where(towards > 1e-6, -facets[:, 2] / np.maximum(towards, 1e-6), np.inf).min(axis=1)
        least = np.maximum(hull, wall[:, z])
        known = np.flatnonzero(seen & ~unsure)[::every]
        if len(known) >= 5:
            around, there = np.append(known, known[0] + len(angles)), np.append(wall[known, z], wall[known[0], z])
            curve = CubicSpline(around, there, bc_type="periodic")(directions)
            least = curve.clip(least, least + beyond_mm)
        wall[:, z] = np.where(unsure, least, wall[:, z])
    return wall
