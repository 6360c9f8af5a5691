"""Where the tiles of a slide and their cells lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ENLARGED = 1.5  # times: from here on tiles show too little of what their resolution promises, and that is said


@dataclass(frozen=True)
class TileGrid:
    """Where tiles and their cells lie. The first begins at the slide's corner; the last may reach beyond its edges.

    A tile has `cells × cells` cells, as many as an encoder gives feature vectors. The stride is a whole number of
    cells, so that cells of overlapping tiles coincide and all of them make one regular grid.

    Attributes:
        size: `(width, height)` of the slide's finest level in pixels.
        slide_mpp: `(x, y)` micrometers per pixel of it.
        tile_px: side of a tile in pixels of its own resolution.
        mpp: micrometers per pixel of a tile.
        stride_px: from tile to tile, in the tile's pixels.
        cells: cells along a side of a tile.

    Raises:
        ValueError: the stride is not a whole number of cells, or leaves gaps.
    """

    size: tuple[int, int]
    slide_mpp: tuple[float, float]
    tile_px: int = 224
    mpp: float = 0.5
    stride_px: int = 224
    cells: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.stride_px <= self.tile_px:
            raise ValueError(f"stride must lie between 1 and tile_px={self.tile_px}; got {self.stride_px}.")
        if (self.stride_px * self.cells) % self.tile_px:
            raise ValueError(
                f"stride={self.stride_px} is not a whole number of cells: the encoder makes {self.cells} of tile_px="
                f"{self.tile_px} pixels; use a multiple of {self.tile_px // math.gcd(self.tile_px, self.cells)}."
            )

    @property
    def step(self) -> int:
        """Cells from tile to tile."""
        return self.stride_px * self.cells // self.tile_px

    @property
    def cell_um(self) -> float:
        """Side of a cell in micrometers."""
        return self.tile_px * self.mpp / self.cells

    @property
    def cell_px(self) -> tuple[float, float]:
        """`(x, y)` extent of a cell in pixels of the slide's finest level."""
        return (self.cell_um / self.slide_mpp[0], self.cell_um / self.slide_mpp[1])

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles that cover the slide."""
        stride, tile = self.step * self.cell_um, self.tile_px * self.mpp
        extent = (self.size[1] * self.slide_mpp[1], self.size[0] * self.slide_mpp[0])
        rows, columns = (max(0, math.ceil((side - tile) / stride - 1e-6)) + 1 for side in extent)
        return (rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        rows, columns = self.tiles
        return ((rows - 1) * self.step + self.cells, (columns - 1) * self.step + self.cells)

    @property
    def doubt(self) -> str:
        """What is doubtful about tiles of this slide, or nothing: a slide much coarser than they are is blurred."""
        coarsest = max(self.slide_mpp)
        if coarsest <= ENLARGED * self.mpp:
            return ""
        times = f"enlarged {coarsest / self.mpp:.3g} times to {self.mpp:g}"
        return f"pixels of {coarsest:.3g} µm {times}: a finer scan, or a training with --mpp"

    def tissue_coverage(self, tissue: np.ndarray, mpp: float) -> np.ndarray:
        """Share of each cell's area that is tissue.

        Args:
            tissue: `[H, W]` bool, with its first pixel at the slide's corner.
            mpp: micrometers per pixel of it.

        Returns:
            `[rows, columns]` float32 in [0, 1]; what lies beyond the slide is no tissue.
        """
        covered = tissue
        for axis, cells in enumerate(self.shape):
            # Areas between fractional edges are differences of the running sum, which is linear within a pixel.
            total = np.insert(covered.cumsum(axis=axis, dtype=np.float32), 0, 0, axis=axis)
            edges = np.minimum(np.arange(cells + 1) * (self.cell_um / mpp), covered.shape[axis])
            below = np.minimum(edges.astype(int), covered.shape[axis] - 1)
            part = (edges - below).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
            at = total.take(below, axis=axis) * (1 - part) + total.take(below + 1, axis=axis) * part
            covered = np.diff(at, axis=axis) * np.float32(mpp / self.cell_um)
        return covered.clip(0, 1)
