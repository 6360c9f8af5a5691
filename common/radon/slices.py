"""Planar slices of a volume at any orientation; the conventions are those of `common.radon`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .geometry import Spacing, axis_spacing, check_normals, full_precision, half_diagonal, plane_basis, plane_offsets

SHARED_AZIMUTH = 4  # from so many directions on, rotating the volume once is cheaper than sampling each slice in 3D


@full_precision
def sample_planes(
    volume: torch.Tensor,
    normals: torch.Tensor,
    offsets: torch.Tensor,
    *,
    size: int | Sequence[int],
    spacing: Spacing = 1.0,
    radius: float | None = None,
    u: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    chunk: int = 16,
) -> torch.Tensor:
    """One slice for each pair of a normal and an offset, trilinear, zero outside the volume (ToNNO, Eq. 4).

    Pixel (i, j) of a slice lies at `s n + R (2i/(h-1) - 1) u + R (2j/(w-1) - 1) v`.

    Args:
        volume: `[C, D, H, W]`; air must be 0.
        normals: `[N, 3]`, unit length.
        offsets: `[N]`, signed distance s from the volume's center in mm.
        size: pixels (h, w) of a slice, or one number for both.
        spacing: mm of the three axes.
        radius: R in mm; by default half the volume's diagonal.
        u: `[N, 3]` or `[3]`, direction and scale of a slice's rows; by default that of `plane_basis`. Need not
            be of unit length nor perpendicular to v: a longer one shrinks the content, a slanted one shears it.
        v: the same for a slice's columns.
        chunk: slices sampled at once, which bounds the memory beside the result.

    Returns:
        `[N, C, h, w]`, float32 (float64 for such a volume).

    Raises:
        ValueError: if a shape does not fit or a normal is not of unit length.
    """
    volume = check_volume(volume)
    check_normals(normals)
    height, width = slice_size(size)
    shape, steps = volume.shape[1:], axis_spacing(spacing)
    radius = half_diagonal(shape, steps) if radius is None else radius
    if offsets.shape != normals.shape[:1]:
        raise ValueError(f"offsets must be [{len(normals)}], one for each normal; got shape {list(offsets.shape)}")
    basis = plane_basis(normals)
    u, v = (b if a is None else a.expand_as(normals) for a, b in zip((u, v), basis, strict=True))
    # grid_sample wants the last axis first and, with align_corners=False, 2x / (n d) at x mm from the center.
    scale = volume.new_tensor([2 / (n * d) for n, d in zip(shape, steps, strict=True)])
    n, u, v = ((x.to(volume) * scale).flip(-1)[:, None, None] for x in (normals, u, v))
    i, j = (_line(k, radius).to(volume)[:, None] for k in (height, width))
    s = offsets.to(volume)[:, None, None, None]
    parts = []
    for k in range(0, len(normals), chunk):
        part = slice(k, k + chunk)
        grid = (s[part] * n[part] + i[:, None] * u[part]) + j * v[part]
        # One batch entry a slice: on a CPU grid_sample runs in parallel over the batch only.
        batch = volume.expand(len(grid), *volume.shape)
        parts.append(F.grid_sample(batch, grid[:, None], align_corners=False)[:, :, 0])
    return torch.cat(parts)


@full_precision
def oblique_slices(
    volume: torch.Tensor,
    normal: torch.Tensor,
    *,
    count: int,
    size: int | Sequence[int],
    spacing: Spacing = 1.0,
    radius: float | None = None,
    u: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    chunk: int = 16,
) -> torch.Tensor:
    """All M + 2 parallel slices of one direction or of several.

    Directions that follow each other and share their azimuth about the last axis, as those of the `latitude` layout
    do, are cut from one rotated copy of the volume, which is some ten times faster and, being interpolated twice, very
    slightly smoother; give that layout's directions in batches of whole meridians.

    Args:
        volume: `[C, D, H, W]`; air must be 0.
        normal: `[3]` or `[B, 3]`, unit length.
        count: M; a plane is added on either side for the second difference.
        size: pixels (h, w) of a slice, or one number for both. They span 2R × 2R mm, corner pixels at ±R.
        spacing: mm of the three axes.
        radius: R in mm; by default half the volume's diagonal.
        u: `[3]` or `[B, 3]`, see `sample_planes`.
        v: the same for a slice's columns.
        chunk: slices sampled at once, which bounds the memory beside the result.

    Returns:
        `[M + 2, C, h, w]`, or `[B, M + 2, C, h, w]` for several directions; float32 (float64 for such a volume).

    Raises:
        ValueError: if a shape does not fit, M is below 2 or a normal is not of unit length.
    """
    volume = check_volume(volume)
    normals = normal[None] if normal.dim() == 1 else normal
    check_normals(normals)
    steps = axis_spacing(spacing)
    radius = half_diagonal(volume.shape[1:], steps) if radius is None else radius
    offsets = plane_offsets(count, radius).to(volume)
    pixels = slice_size(size)
    if u is None and v is None:
        groups = by_azimuth(normals)
    else:
        groups = [slice(0, len(normals))]
        u, v = (x if x is None else x.expand_as(normals).repeat_interleave(count + 2, dim=0) for x in (u, v))
    parts = []
    for group in groups:
        chosen = normals[group]
        if u is None and v is None and len(chosen) >= SHARED_AZIMUTH:
            slices = _meridian_slices(volume, chosen, offsets, pixels, steps, radius)
        else:
            slices = sample_planes(
                volume,
                chosen.repeat_interleave(count + 2, dim=0),
                offsets.repeat(len(chosen)),
                size=pixels,
                spacing=steps,
                radius=radius,
                u=u,
                v=v,
                chunk=chunk,
            ).unflatten(0, (len(chosen), count + 2))
        parts.append(slices)
    slices = torch.cat(parts) if len(parts) > 1 else parts[0]
    return slices[0] if normal.dim() == 1 else slices


def by_azimuth(normals: torch.Tensor) -> list[slice]:
    """Runs of directions `[L, 3]` that share the in-plane axis v, as slices of L."""
    _, v = plane_basis(normals)
    new = ((v[1:] - v[:-1]).abs().amax(dim=1) > 1e-5).nonzero()[:, 0] + 1
    starts = [0, *new.tolist()]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(normals)], strict=True)]


def _meridian_slices(
    volume: torch.Tensor,
    normals: torch.Tensor,
    offsets: torch.Tensor,
    size: tuple[int, int],
    spacing: tuple[float, float, float],
    radius: float,
) -> torch.Tensor:
    """`[B, M + 2, C, h, w]` of directions that share v: rotate the volume about the last axis once, blend its rows.

    The rotated copy has the slices' own columns along v, so a row of a slice is a weighted sum of four of its rows.
    """
    (height, width), channels = size, volume.shape[0]
    (first, second, third), depth = spacing, volume.shape[3]
    u, v = (x.to(volume) for x in plane_basis(normals))
    v = v[0]
    across = torch.stack((-v[1], v[0], v.new_zeros(())))  # e3 × v: horizontal, and in the plane of all these normals
    # Rows of the rotated copy: finer than the voxels, beyond the volume by a row on either side, hence zero there.
    step = min(first, second)
    reach = half_diagonal((*volume.shape[1:3], 0), spacing) + first + second
    half = int(reach / step) + 1
    rows, columns = (torch.arange(-half, half + 1).to(volume) * step, _line(width, radius).to(volume))
    grid = rows[:, None, None] * across[:2] + columns[:, None] * v[:2]
    grid = grid * grid.new_tensor([2 / (volume.shape[1] * first), 2 / (volume.shape[2] * second)])
    planes = volume.movedim(3, 0).flatten(0, 1)[None]  # [1, W C, D, H]: one bilinear rotation serves all of them
    rotated = F.grid_sample(planes, grid.flip(-1)[None], align_corners=False)[0]
    rotated = rotated.unflatten(0, (depth, channels)).permute(0, 2, 1, 3).flatten(2)  # [W, rows, C w]
    rotated = F.pad(rotated, (0, 0, 0, 0, 1, 1))
    points = offsets[None, :, None, None] * normals.to(volume)[:, None, None] + (
        _line(height, radius).to(volume)[:, None] * u[:, None, None]
    )  # [B, M + 2, h, 3], where column 0 of v would be
    z = (points[..., 2] / third + 0.5 * (depth + 1)).clamp(0, depth + 1)
    r = (points @ across / step + half).clamp(0, 2 * half)
    z0, r0 = z.floor().clamp(max=depth), r.floor().clamp(max=2 * half - 1)
    fz, fr = z - z0, r - r0
    corner = (z0 * (2 * half + 1) + r0).long()
    index = torch.stack((corner, corner + 1, corner + 2 * half + 1, corner + 2 * half + 2), dim=-1)
    weights = torch.stack(((1 - fz) * (1 - fr), (1 - fz) * fr, fz * (1 - fr), fz * fr), dim=-1)
    blended = F.embedding_bag(
        index.flatten(0, -2), rotated.flatten(0, 1), mode="sum", per_sample_weights=weights.flatten(0, -2)
    )
    return blended.reshape(len(normals), len(offsets), height, channels, width).movedim(3, 2)


def _line(count: int, radius: float) -> torch.Tensor:
    """Pixel positions in mm along one axis of a slice: from -R to R, a single pixel in the middle."""
    return torch.linspace(-radius, radius, count) if count > 1 else torch.zeros(1)


def check_volume(volume: torch.Tensor) -> torch.Tensor:
    """The volume without metadata in at least float32, since coordinates follow, or a ValueError."""
    if volume.dim() != 4 or 0 in volume.shape:
        raise ValueError(f"volume must be [C, D, H, W] and not empty; got shape {list(volume.shape)}")
    plain = volume.as_subclass(torch.Tensor)
    return plain if plain.dtype == torch.float64 else plain.float()


def slice_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Pixels (h, w) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be one or two positive numbers of pixels; got {size}")
    return height, width
