"""Directions, planes and in-plane axes of the 3D Radon transform; the conventions are those of `common.radon`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.spatial import SphericalVoronoi

LAYOUTS = ("fibonacci", "latitude")
INVERSION = -0.5 / math.pi  # -1/(8π²) times the sphere's 4π: the constant before a mean over directions
Spacing = float | Sequence[float]
Function = TypeVar("Function", bound=Callable[..., Any])


def full_precision(function: Function) -> Function:
    """Keep autocast out of a function: coordinates in half precision are wrong by voxels."""
    return torch.autocast("cpu", enabled=False)(torch.autocast("cuda", enabled=False)(function))


def directions(count: int, *, hemisphere: bool = True, layout: str = "fibonacci") -> torch.Tensor:
    """Evenly spread unit normals.

    The planes (s, n) and (-s, -n) are the same, so half a sphere holds all of them: a hemisphere of 1430 normals
    reconstructs as well as a sphere of 2000.

    Args:
        count: L.
        hemisphere: spread them over half a sphere; False with the Fibonacci lattice is the paper's set, poles included
            (ToNNO, Section 3.3).
        layout: `fibonacci`; or `latitude`, the Gauss-Legendre latitudes about the last axis times equal azimuths, all
            latitudes of one azimuth after the other: `oblique_slices` is some ten times faster on it, but its
            directions stand for unequal solid angles (see `solid_angles`), and it needs a full grid, so that
            L differs from `count` by up to half of its root.

    Returns:
        `[L, 3]` float32, components along the array axes.

    Raises:
        ValueError: if `count` is below 1 or there is no such layout.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 direction; got {count}")
    if layout == "fibonacci":
        number = np.arange(count)
        height = (number + 0.5) / count if hemisphere else 2 * number / max(count - 1, 1) - 1
        azimuth = number * math.pi * (3 - math.sqrt(5))
        order = [0, 2, 1]  # the paper's pole is its y axis
    elif layout == "latitude":
        rows = max(1, round(math.sqrt(count if hemisphere else count / 2)))
        columns = max(1, round(count / rows))
        turn = math.pi if hemisphere else 2 * math.pi  # half a turn of whole meridians is a hemisphere
        height = np.tile(np.polynomial.legendre.leggauss(rows)[0], columns)
        azimuth = np.repeat(turn * np.arange(columns) / columns, rows)
        order = [0, 1, 2]
    else:
        raise ValueError(f"unknown layout {layout!r}; choose one of {LAYOUTS}")
    radius = np.sqrt(1 - height**2)
    normals = np.stack((radius * np.cos(azimuth), radius * np.sin(azimuth), height), axis=-1)[:, order]
    return torch.from_numpy(normals).float()


def solid_angles(normals: torch.Tensor) -> torch.Tensor:
    """Quadrature weights of any set of directions: the Voronoi areas of the normals and their antipodes.

    Args:
        normals: `[L, 3]`, unit length, not all in one plane; repeated and opposite ones share their area.

    Returns:
        `[L]` in the dtype and on the device of `normals`, steradian, summing to 4π.

    Raises:
        ValueError: if the normals lie in one plane or are not of unit length.
    """
    check_normals(normals)
    both = torch.cat((normals, -normals)).detach().double().cpu().numpy()
    points, index, repeats = np.unique(both.round(6) + 0.0, axis=0, return_inverse=True, return_counts=True)
    if np.linalg.matrix_rank(points, tol=1e-3) < 3:
        raise ValueError("solid angles need at least 3 directions that do not lie in one plane; use equal weights")
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    areas = (SphericalVoronoi(points).calculate_areas() / repeats)[index.reshape(-1)]
    return torch.from_numpy(areas).to(normals).reshape(2, -1).sum(dim=0)


def half_diagonal(shape: Sequence[int], spacing: Spacing = 1.0) -> float:
    """Radius in mm of the ball that holds the whole volume: the default extent of planes and slices."""
    return 0.5 * math.dist([0.0] * 3, [n * d for n, d in zip(shape, axis_spacing(spacing), strict=True)])


def paper_geometry(shape: Sequence[int]) -> dict[str, tuple[float, float, float] | float]:
    """`spacing` and `radius` with which every function here follows the paper: the volume fills the cube [-1, 1]³.

    Voxels stretch to the cube whatever their size in mm, and planes and slices end at the distance 1, so that the
    eight corners outside the inscribed ball (48 % of the cube) are seen by few directions. Use as
    `reconstruct(profiles, normals, shape, **paper_geometry(shape))`.
    """
    first, second, third = (2 / max(n - 1, 1) for n in shape)
    return {"spacing": (first, second, third), "radius": 1.0}


def plane_step(count: int, radius: float) -> float:
    """Distance h in mm between neighboring planes: 2R / (M - 1)."""
    if count < 2:
        raise ValueError(f"count (M) must be at least 2 planes; got {count}")
    if not radius > 0:
        raise ValueError(f"radius must be a positive number of mm; got {radius}")
    return 2 * radius / (count - 1)


def plane_offsets(count: int, radius: float) -> torch.Tensor:
    """Signed distances `[M + 2]` in mm of the planes from the center: from -R - h to R + h in steps of h."""
    return (torch.arange(-1, count + 1) - 0.5 * (count - 1)) * plane_step(count, radius)


def plane_basis(normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In-plane axes: u along a slice's rows (its first axis), v along its columns; (n, u, v) is right-handed.

    v is perpendicular to the last array axis, so that all slices of one azimuth share it. Planes across the last axis
    (n = ±e3, where that leaves v open) get v = e2: their slices are `volume[:, :, k]`, and mirrored for n = -e3.

    Args:
        normals: `[..., 3]`, unit length.

    Returns:
        u and v, each `[..., 3]`, unit length.
    """
    across = torch.stack((normals[..., 1], -normals[..., 0], torch.zeros_like(normals[..., 0])), dim=-1)  # n × e3
    length = across.norm(dim=-1, keepdim=True)
    at_pole = length < 1e-6
    v = torch.where(at_pole, across.new_tensor((0.0, 1.0, 0.0)), across / length.masked_fill(at_pole, 1.0))
    return torch.linalg.cross(v, normals, dim=-1), v


@full_precision
def planes_through(
    mask: torch.Tensor,
    normals: torch.Tensor,
    *,
    count: int,
    spacing: Spacing = 1.0,
    radius: float | None = None,
) -> torch.Tensor:
    """Which planes meet the convex hull of a mask, e.g. of the body: the others need no inference.

    Args:
        mask: `[D, H, W]`, bool or a number above 0.5.
        normals: `[L, 3]`, unit length.
        count: M.
        spacing: mm of the three axes.
        radius: R in mm; by default half the volume's diagonal.

    Returns:
        bool `[L, M + 2]`; all False for an empty mask.
    """
    check_normals(normals)
    steps = torch.as_tensor(axis_spacing(spacing), dtype=torch.float32, device=mask.device)
    radius = half_diagonal(mask.shape, spacing) if radius is None else radius
    offsets = plane_offsets(count, radius).to(normals)
    inside = mask.as_subclass(torch.Tensor) > 0.5
    if not inside.any():
        return torch.zeros(len(normals), count + 2, dtype=torch.bool, device=normals.device)
    span = extreme_points(inside, spacing).to(normals) @ normals.T
    reach = normals.abs() @ steps.to(normals)  # a voxel's value reaches to its neighbors' centers
    return (offsets > (span.amin(0) - reach)[:, None]) & (offsets < (span.amax(0) + reach)[:, None])


def extreme_points(mask: torch.Tensor, spacing: Spacing = 1.0) -> torch.Tensor:
    """The points of a mask that lie farthest in any direction, and others: both ends of its columns.

    Args:
        mask: bool `[D, H, W]`, not empty; columns run along the last axis.
        spacing: mm of the three axes.

    Returns:
        `[P, 3]` in mm from the volume's center.
    """
    column = mask.any(dim=2).nonzero()
    rows = mask[column[:, 0], column[:, 1]].to(torch.uint8)
    first, last = rows.argmax(dim=1), mask.shape[2] - 1 - rows.flip(1).argmax(dim=1)
    ends = torch.cat([torch.cat((column, end[:, None]), dim=1) for end in (first, last)])
    center = 0.5 * (torch.as_tensor(mask.shape, device=mask.device) - 1)
    return (ends - center) * torch.as_tensor(axis_spacing(spacing), dtype=torch.float32, device=mask.device)


def second_difference(profiles: torch.Tensor, step: float, *, dim: int = -1) -> torch.Tensor:
    """`(p[m+1] - 2 p[m] + p[m-1]) / h²` along `dim`, which loses its two ends (ToNNO, Eq. 9, with the right step)."""
    count = profiles.shape[dim] - 2
    left, middle, right = (profiles.narrow(dim, k, count) for k in range(3))
    return (left - 2 * middle + right) / step**2


def relative_weights(weights: torch.Tensor | None, normals: torch.Tensor) -> torch.Tensor:
    """Weights `[L]` of the directions, summing to 1; equal ones by default."""
    if weights is None:
        return normals.new_full((len(normals),), 1 / len(normals))
    if weights.shape != normals.shape[:1]:
        raise ValueError(f"weights must be [{len(normals)}], one for each direction; got shape {list(weights.shape)}")
    return (weights / weights.sum()).to(normals)


def axis_spacing(spacing: Spacing) -> tuple[float, float, float]:
    """Spacing of the three axes in mm from one number or three."""
    steps = (float(spacing),) * 3 if isinstance(spacing, (int, float)) else tuple(float(d) for d in spacing)
    if len(steps) != 3 or not all(0 < d < math.inf for d in steps):
        raise ValueError(f"spacing must be one or three positive numbers of mm; got {spacing}")
    return steps  # type: ignore[return-value]


def check_normals(normals: torch.Tensor) -> None:
    """Raise ValueError unless `normals` is `[L, 3]` of unit length with L ≥ 1."""
    if normals.dim() != 2 or normals.shape[1] != 3 or len(normals) == 0:
        raise ValueError(f"directions must be [L, 3] with at least one of them; got shape {list(normals.shape)}")
    if not torch.allclose(normals.norm(dim=1), normals.new_ones(()), atol=1e-3):
        raise ValueError("directions must have unit length: divide each by its norm")
