"""Averaged and Tomographic CAM: a volume from the class activation maps of slices at many angles (ToNNO, Section 3.5).

A voxel x reads the stack of a direction's maps at `(s, u, v) = (x · n, x · û, x · v̂)`, trilinear. The paper prints the
u-coordinate with two of the three components of x; it needs all three.

- **Averaged**: the mean of that over the directions. The paper's Eq. 12 keeps the constant c of the inversion, which is
  negative and would turn the average's sign. Maps that are the slices themselves average to the volume.
- **Tomographic**: the maps' second difference along s first, place by place, then the sum with the constant of
  `common.radon.reconstruct`, times the area of a map's cell in mm². A map is thus the density of which the
  profile is the integral: maps of one cell reconstruct exactly as the profile `map · area` does. With several cells a
  structure smaller than one comes back in shape, at 9/16 of its height on average, since a voxel reads between cells.

Averages of coarse maps are blurred; tomographic ones of fine maps are too sharp and, being a Laplacian, small (Fig. 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from .geometry import (
    INVERSION,
    Spacing,
    axis_spacing,
    check_normals,
    full_precision,
    half_diagonal,
    plane_basis,
    plane_step,
    second_difference,
)
from .slices import slice_size

KINDS = ("averaged", "tomographic")


class MapReconstruction:
    """Sums maps direction by direction, so that they need never be in memory together.

    Args:
        shape: (D, H, W) of the result.
        size: pixels (h, w) of the slices that the maps belong to, as given to `oblique_slices`.
        kinds: which of `KINDS` to compute; both cost little more than one.
        spacing: mm of the three axes of the result, which need not be the image's: a coarser grid is as much faster.
        radius: R in mm of the slices; by default half the result's diagonal.
        first_cell: slice pixel on which the center of a map's first cell lies, along either axis; by default
            `(k - 1) / 2` with k pixels a cell, as average pooling has it. Strided convolutions with the usual padding
            (ResNet on an even size) have it on pixel 0, half a cell away.
        inside: bool `[D, H, W]`; only these voxels are computed, the others are 0.
        chunk: voxels computed at once, which bounds the memory beside the sums.
        device: of the sums; by default the CPU.

    Raises:
        ValueError: if a shape does not fit or there is no such kind.

    Example:
        >>> sums = MapReconstruction((32, 32, 16), size=64, spacing=(1, 1, 2))
        >>> sums.add(torch.eye(3), torch.zeros(3, 12, 8, 8))
        >>> sorted(sums.result())
        ['averaged', 'tomographic']
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        size: int | Sequence[int],
        kinds: Sequence[str] = KINDS,
        spacing: Spacing = 1.0,
        radius: float | None = None,
        first_cell: float | None = None,
        inside: torch.Tensor | None = None,
        chunk: int = 2**17,
        device: torch.device | str | None = None,
    ) -> None:
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds must be some of {KINDS}; got {tuple(kinds)}")
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be three positive numbers of voxels; got {tuple(shape)}")
        if inside is not None and inside.shape != torch.Size(shape):
            raise ValueError(f"inside must have the shape {tuple(shape)} of the result; got {list(inside.shape)}")
        self.shape, self.size, self.kinds, self.first_cell = tuple(shape), slice_size(size), tuple(kinds), first_cell
        self.chunk = chunk
        steps = axis_spacing(spacing)
        self.radius = half_diagonal(shape, steps) if radius is None else radius
        self.inside = torch.ones(self.shape, dtype=torch.bool) if inside is None else inside.bool()
        self.inside = self.inside.to(device)
        axes = [(torch.arange(n, device=device) - 0.5 * (n - 1)) * d for n, d in zip(shape, steps, strict=True)]
        self.points = torch.cartesian_prod(*axes)[self.inside.flatten()]  # [N, 3] mm
        self.sums = torch.zeros(len(self.kinds), len(self.points), device=device)
        self.weight = 0.0

    @full_precision
    def add(self, normals: torch.Tensor, maps: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add some directions.

        Args:
            normals: `[B, 3]`, unit length; the slices' in-plane axes are those of `plane_basis`.
            maps: `[B, M + 2, h, w]`, raw: not rescaled slice by slice.
            weights: `[B]`, solid angles in a unit common to all calls; by default equal.

        Raises:
            ValueError: if a shape does not fit or a normal is not of unit length.
        """
        check_normals(normals)
        if maps.dim() != 4 or len(maps) != len(normals) or maps.shape[1] < 4 or 0 in maps.shape:
            raise ValueError(
                f"maps must be [B, M + 2, h, w] with B = {len(normals)} directions and M ≥ 2; "
                f"got shape {list(maps.shape)}"
            )
        weights = torch.ones(len(normals)) if weights is None else weights
        if weights.shape != normals.shape[:1]:
            raise ValueError(
                f"weights must be [{len(normals)}], one for each direction; got shape {list(weights.shape)}"
            )
        normals, maps = normals.to(self.sums), maps.as_subclass(torch.Tensor).detach().to(self.sums)
        step = plane_step(maps.shape[1] - 2, self.radius)
        sides = [pixels / cells for pixels, cells in zip(self.size, maps.shape[2:], strict=True)]  # of a cell, pixels
        pixels = [2 * self.radius / max(n - 1, 1) for n in self.size]  # mm
        area = sides[0] * pixels[0] * sides[1] * pixels[1]
        stacks = torch.stack([self._stack(kind, maps, step, area) for kind in self.kinds], dim=1)
        # Zero one step beyond the last plane; in the plane the outermost cells go on.
        stacks = F.pad(stacks, (0, 0, 0, 0, 1, 1))
        depth, *cells = stacks.shape[2:]
        # Position in the stack, in cells, is linear in x: one matrix product, then grid_sample's own unit.
        basis = plane_basis(normals)
        axes, origin = [normals / step], [0.5 * (depth - 1)]
        for axis, side, pixel, count in zip(basis, sides, pixels, self.size, strict=True):
            first = 0.5 * (side - 1) if self.first_cell is None else self.first_cell
            axes.append(axis / (pixel * side))
            origin.append((0.5 * (count - 1) - first) / side)
        length = normals.new_tensor([depth, *cells])
        matrix = 2 * torch.stack(axes, dim=1) / length[:, None]  # [B, 3, 3]
        shift = (2 * normals.new_tensor(origin) + 1) / length - 1
        for stack, turn, weight in zip(stacks, matrix.flip(1), weights.tolist(), strict=True):
            self._accumulate(stack, turn, shift.flip(0), weight)
        self.weight += float(weights.sum())

    def _stack(self, kind: str, maps: torch.Tensor, step: float, area: float) -> torch.Tensor:
        """`[B, M, h, w]`: what is read at each voxel."""
        if kind == "averaged":
            return maps[:, 1:-1]
        return second_difference(maps, step, dim=1) * (INVERSION * area)

    def _accumulate(self, stack: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor, weight: float) -> None:
        """Read `[K, M + 2, h, w]` at every voxel and add it up."""
        # On a CPU grid_sample runs in parallel over the batch only.
        batch = torch.get_num_threads() if stack.device.type == "cpu" else 1
        stacks = stack.expand(batch, *stack.shape)
        for points, sums in zip(self.points.split(self.chunk), self.sums.split(self.chunk, dim=1), strict=True):
            count = -(-len(points) // batch)
            grid = F.pad(torch.addmm(shift, points, turn.T), (0, 0, 0, batch * count - len(points)))
            grid = grid.view(batch, 1, 1, count, 3)
            read = F.grid_sample(stacks, grid, padding_mode="border", align_corners=False)[:, :, 0, 0]
            sums.add_(read.movedim(1, 0).flatten(1)[:, : len(points)], alpha=weight)

    def result(self) -> dict[str, torch.Tensor]:
        """A volume `[D, H, W]` for each kind."""
        if self.weight == 0:
            raise ValueError("no direction was added: call add() with the maps of each before result()")
        volumes = self.sums.new_zeros(len(self.kinds), *self.shape)
        volumes[:, self.inside] = self.sums / self.weight
        return dict(zip(self.kinds, volumes, strict=True))


def reconstruct_maps(
    chunks: Iterable[tuple[torch.Tensor, torch.Tensor]],
    shape: Sequence[int],
    *,
    size: int | Sequence[int],
    kind: str = "tomographic",
    spacing: Spacing = 1.0,
    radius: float | None = None,
    first_cell: float | None = None,
) -> torch.Tensor:
    """One volume from an iterator of `(normals [B, 3], maps [B, M + 2, h, w])`; see `MapReconstruction`.

    Where both kinds, several layers, unequal weights or a mask are needed, feed the class itself.

    Returns:
        `[D, H, W]`.
    """
    sums = MapReconstruction(shape, size=size, kinds=(kind,), spacing=spacing, radius=radius, first_cell=first_cell)
    for normals, maps in chunks:
        sums.add(normals, maps)
    return sums.result()[kind]
