"""Integrals over the planes of a volume, and the volume from what a network says of them (ToNNO, Eq. 5 and 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .fourier import backproject_fourier
from .geometry import (
    INVERSION,
    Spacing,
    axis_spacing,
    check_normals,
    full_precision,
    half_diagonal,
    plane_step,
    relative_weights,
    second_difference,
)
from .slices import by_azimuth, check_volume, oblique_slices


def plane_integrals(
    volume: torch.Tensor,
    directions: torch.Tensor,
    *,
    count: int,
    size: int | None = None,
    spacing: Spacing = 1.0,
    radius: float | None = None,
    chunk: int = 16,
) -> torch.Tensor:
    """The "network" that sums a slice: its reconstruction is the volume (ToNNO, Eq. 5).

    Args:
        volume: `[D, H, W]`.
        directions: `[L, 3]`, unit length.
        count: M.
        size: pixels of a slice's side; by default as fine as the finest spacing.
        spacing: mm of the three axes.
        radius: R in mm; by default half the volume's diagonal.
        chunk: slices sampled at once.

    Returns:
        Profiles `[L, M + 2]`, value · mm².

    Raises:
        ValueError: if a shape does not fit, M is below 2 or a direction is not of unit length.
    """
    volume = check_volume(volume.as_subclass(torch.Tensor)[None])
    check_normals(directions)
    steps = axis_spacing(spacing)
    radius = half_diagonal(volume.shape[1:], steps) if radius is None else radius
    size = math.ceil(2 * radius / min(steps)) + 1 if size is None else size
    area = (2 * radius / max(size - 1, 1)) ** 2
    options: dict[str, Any] = {"count": count, "size": size, "spacing": steps, "radius": radius, "chunk": chunk}
    batches = [part for run in by_azimuth(directions) for part in directions[run].split(8)]
    sums = [oblique_slices(volume, batch, **options).sum(dim=(2, 3, 4)) for batch in batches]
    return area * torch.cat(sums)


@full_precision
def reconstruct(
    profiles: torch.Tensor,
    directions: torch.Tensor,
    shape: Sequence[int],
    *,
    method: str = "fourier",
    spacing: Spacing = 1.0,
    radius: float | None = None,
    weights: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Filtered backprojection of plane profiles, in the scale in which plane integrals give the volume (ToNNO, Eq. 11).

    Differentiable with respect to the profiles.

    Args:
        profiles: `[L, M + 2]`: a number for each plane, e.g. a network's logit of that slice.
        directions: `[L, 3]`, unit length, over a sphere or half of it.
        shape: (D, H, W) of the result.
        method: `fourier`; or `direct`, the sum written out, a hundred times slower, as the reference.
        spacing: mm of the three axes of the result.
        radius: R in mm of the profiles; by default half the result's diagonal.
        weights: `[L]`, solid angles in any unit, see `solid_angles`; by default equal.
        backend: of `fourier`: `auto`, `finufft` or `torch`, see `common.radon.fourier.backproject_fourier`.

    Returns:
        `[D, H, W]`, in units of profile / mm².

    Raises:
        ImportError: if finufft is asked for and not installed.
        ValueError: if a shape does not fit, M is below 2, a direction is not of unit length, or there is no such
            method or backend.
    """
    check_normals(directions)
    if profiles.dim() != 2 or len(profiles) != len(directions) or profiles.shape[1] < 4:
        raise ValueError(
            f"profiles must be [L, M + 2] with L = {len(directions)} directions and M ≥ 2; "
            f"got shape {list(profiles.shape)}"
        )
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be three positive numbers of voxels; got {tuple(shape)}")
    steps = axis_spacing(spacing)
    radius = half_diagonal(shape, steps) if radius is None else radius
    profiles = profiles.as_subclass(torch.Tensor)
    profiles = profiles if profiles.dtype == torch.float64 else profiles.float()
    normals = directions.to(profiles)
    filtered = second_difference(profiles, plane_step(profiles.shape[1] - 2, radius))
    filtered = filtered * (relative_weights(weights, normals) * INVERSION)[:, None]
    if method == "fourier":
        return backproject_fourier(filtered, normals, shape, radius=radius, spacing=steps, backend=backend)
    if method == "direct":
        return _backproject_direct(filtered, normals, shape, radius=radius, spacing=steps)
    raise ValueError(f"unknown method {method!r}; choose 'fourier' or 'direct'")


def _backproject_direct(
    profiles: torch.Tensor, normals: torch.Tensor, shape: Sequence[int], *, radius: float, spacing: Sequence[float]
) -> torch.Tensor:
    """Sum over directions of the linearly interpolated profiles `[L, M]`, which end in zero one step beyond ±R."""
    x, y, z = ((torch.arange(n).to(profiles) - 0.5 * (n - 1)) * d for n, d in zip(shape, spacing, strict=True))
    volume = profiles.new_zeros(tuple(shape))
    for profile, n in zip(profiles, normals, strict=True):
        s = (x[:, None, None] * n[0] + y[:, None] * n[1] + z * n[2]) / radius
        grid = torch.stack((s, torch.zeros_like(s)), dim=-1).flatten(1, 2)[None]
        volume = volume + F.grid_sample(profile[None, None, None], grid, align_corners=True).reshape(s.shape)
    return volume
