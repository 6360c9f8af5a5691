"""Tiles of a slide at one resolution, laid out on a grid of cells, and the tissue in each cell."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries
from torch import Tensor

from common.handlers import MASK_COLOR, TRUTH_COLOR

from .grid import TileGrid
from .slide import Slide, find_tissue

logger = logging.getLogger(__name__)

ROUNDING = 1e-3  # what running sums make of an area of 0


class Tiles:
    """The pixels of tiles, read when asked for: `tiles[i:j]` is `[j − i, 3, tile_px, tile_px]` float32 in [0, 1].

    Args:
        slide: open.
        coordinates: `[N, 2]` x and y of the tiles' corners in pixels of the finest level.
        tile_px: side of a tile.
        mpp: micrometers per pixel of a tile.
        threads: that read at once.
    """

    def __init__(self, slide: Slide, coordinates: np.ndarray, *, tile_px: int, mpp: float, threads: int = 1) -> None:
        self.slide = slide
        self.coordinates = coordinates
        self.tile_px = tile_px
        self.mpp = mpp
        self.threads = threads

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: slice) -> Tensor:
        corners = self.coordinates[index].tolist()
        result = np.empty((len(corners), 3, self.tile_px, self.tile_px), np.float32)
        width, height = (self.tile_px * self.mpp / mpp for mpp in self.slide.mpp)

        def read(number: int) -> None:
            x, y = corners[number]
            pixels = self.slide.region(x, y, width, height, (self.tile_px, self.tile_px))
            np.divide(np.moveaxis(pixels, -1, 0), 255, out=result[number], casting="unsafe")

        if self.threads > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(read, range(len(corners))))
        else:
            for number in range(len(corners)):
                read(number)
        return torch.from_numpy(result)


@dataclass(frozen=True)
class TiledSlide:
    """What `Tiler` finds on a slide.

    Attributes:
        slide: open; closing it is up to who asked for it.
        grid: of all tiles and cells.
        thumbnail: `[H, W, 3]` uint8, and tissue: `[H, W]` bool, both at `thumbnail_mpp`.
        coverage: `[rows, columns]` share of tissue in the cells; 0 in those without stain, and where no tile is kept.
        corners: `[N, 2]` row and column of the first cell of each kept tile.
        tiles: pixels of the kept tiles, with their coordinates.
    """

    slide: Slide
    grid: TileGrid
    thumbnail: np.ndarray
    thumbnail_mpp: float
    tissue: np.ndarray
    coverage: np.ndarray
    corners: np.ndarray
    tiles: Tiles
    _finest: list[Any] = field(default_factory=list, init=False, repr=False)  # view, its micrometers per pixel

    def inside(self, index: slice) -> Tensor:
        """`[n, 1, cells, cells]` share of tissue in the cells of some tiles."""
        n = self.grid.cells
        parts = [self.coverage[r : r + n, c : c + n] for r, c in self.corners[index].tolist()]
        return torch.from_numpy(np.stack(parts)[:, None] if parts else np.empty((0, 1, n, n), np.float32))

    def view(self, longest: int) -> np.ndarray:
        """The slide as a picture, `[H, W, 3]` uint8, its longer side of that many pixels.

        Read from the file where it is finer than all before; else made of the finest so far.
        """
        width, height = (pixels * mpp for pixels, mpp in zip(self.slide.size, self.slide.mpp, strict=True))
        mpp = max(width, height) / longest
        size = (max(1, round(width / mpp)), max(1, round(height / mpp)))
        picture, known = self._finest or (self.thumbnail, self.thumbnail_mpp)
        if mpp < known:
            self._finest[:] = self.slide.thumbnail(mpp), mpp
            return self._finest[0][: size[1], : size[0]]
        box = (0, 0, width / known, height / known)
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box=box))

    def on_view(self, cells: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A map `[rows, columns]` of all cells as it lies on a view of that shape (nearest cell)."""
        extent = [pixels / cell for pixels, cell in zip(self.slide.size, self.grid.cell_px, strict=True)]
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * cells_in / n).astype(int), limit - 1)
            for n, cells_in, limit in zip(shape, extent[::-1], cells.shape, strict=False)
        )
        return np.asarray(cells[rows[:, None], columns[None]])

    def picture(self, *, longest: int = 1600) -> Image.Image:
        """The slide with what is kept: tissue outlined in amber, tiles in cyan, everything else dimmed."""
        rgb = self.view(longest).copy()
        size, n = (rgb.shape[1], rgb.shape[0]), self.grid.cells
        scale = [
            side * cell / whole for side, cell, whole in zip(size, self.grid.cell_px, self.slide.size, strict=True)
        ]
        edges = (self.corners[:, [1, 0, 1, 0]] + [0, 0, n, n]) * np.tile(scale, 2)
        kept = Image.new("1", size)
        for tile in edges.tolist():
            ImageDraw.Draw(kept).rectangle(tile, fill=1)
        rgb[~np.asarray(kept)] //= 2
        tissue = np.asarray(Image.fromarray(self.tissue).resize(size, Image.Resampling.NEAREST))
        rgb[find_boundaries(tissue, mode="inner")] = TRUTH_COLOR
        picture = Image.fromarray(rgb)
        for tile in edges.tolist():
            ImageDraw.Draw(picture).rectangle(tile, outline=MASK_COLOR)
        return picture


class Tiler:
    """Opens slides and chooses their tiles.

    Args:
        tile_px: side of a tile in pixels.
        mpp: micrometers per pixel of a tile.
        stride: from tile to tile, in pixels of a tile; `tile_px` by default: no overlap.
        min_tissue: tiles with a smaller share of stained tissue are left out; the white of a hole does not count.
        tissue_mpp: micrometers per pixel of the thumbnail in which tissue is sought.
        thumbnail_px: on a slide whose longer side would have more pixels at that resolution, it is coarser.
        tissue: options of `find_tissue`.
        mpp_of_file: micrometers per pixel of the files, where they do not say.
        backend: see `Slide`.
        threads: that read tiles.
    """

    def __init__(
        self,
        *,
        tile_px: int = 224,
        mpp: float = 0.5,
        stride: int | None = None,
        min_tissue: float = 0.1,
        tissue_mpp: float = 8.0,
        thumbnail_px: int = 2500,
        tissue: Mapping[str, Any] | None = None,
        mpp_of_file: float | None = None,
        backend: Literal["openslide", "tifffile"] = "openslide",
        threads: int = 1,
    ) -> None:
        self.tile_px = tile_px
        self.mpp = mpp
        self.stride = stride or tile_px
        self.min_tissue = min_tissue
        self.tissue_mpp = tissue_mpp
        self.thumbnail_px = thumbnail_px
        self.tissue = dict(tissue or {})
        self.mpp_of_file = mpp_of_file
        self.backend = backend
        self.threads = threads

    @property
    def recipe(self) -> str:
        """All that decides what the tiles of a file are, as text; for the key of stored features."""
        options = {k: v for k, v in vars(self).items() if k != "threads"}
        return f"stained cells, levels by their means {sorted(options.items())!r}"

    def __call__(self, path: str, *, cells: int) -> TiledSlide:
        """Open a slide and choose its tiles; what is doubtful about them (`TileGrid.doubt`) is said in the console.

        Args:
            path: the file.
            cells: feature vectors along a side of a tile.

        Raises:
            ValueError: damaged, of unknown resolution, or without tissue.
        """
        slide = Slide(path, mpp_of_file=self.mpp_of_file, backend=self.backend)
        try:
            options = {"tile_px": self.tile_px, "mpp": self.mpp, "stride_px": self.stride, "cells": cells}
            grid = TileGrid(slide.size, slide.mpp, **options)
            if grid.doubt:
                logger.warning("%s: %s", path, grid.doubt)
            longest = max(pixels * mpp for pixels, mpp in zip(slide.size, slide.mpp, strict=True))
            mpp = max(self.tissue_mpp, longest / self.thumbnail_px)
            thumbnail = slide.thumbnail(mpp)
            tissue, stain = find_tissue(thumbnail, mpp=mpp, **self.tissue)
            stained = grid.tissue_coverage(stain, mpp)
            corners = _kept(stained, grid, self.min_tissue)
            holes = stained < ROUNDING  # white cells within the tissue
            coverage = grid.tissue_coverage(tissue, mpp) * (_covered(corners, grid) & ~holes)
            if not len(corners):
                raise ValueError(
                    f"{path}: no tissue found ({100 * tissue.mean():.2g} % of the slide, no tile with "
                    f"{self.min_tissue:g} or more): a blank slide, or options of `tissue` that do not fit the stain"
                )
            coordinates = np.round(corners[:, ::-1] * np.asarray(grid.cell_px)).astype(np.int64)
            tiles = Tiles(slide, coordinates, tile_px=self.tile_px, mpp=self.mpp, threads=self.threads)
            return TiledSlide(slide, grid, thumbnail, mpp, tissue, coverage, corners, tiles)
        except BaseException:
            slide.close()
            raise


def _kept(coverage: np.ndarray, grid: TileGrid, least: float) -> np.ndarray:
    """`[N, 2]` row and column of the first cell of each tile with enough tissue, row by row."""
    rows = np.arange(grid.tiles[0]) * grid.step
    columns = np.arange(grid.tiles[1]) * grid.step
    bands = np.stack([coverage[r : r + grid.cells].mean(axis=0) for r in rows])
    means = np.stack([bands[:, c : c + grid.cells].mean(axis=1) for c in columns], axis=1)
    i, j = np.nonzero((means >= least) & (means > 0))
    return np.stack([rows[i], columns[j]], axis=1)


def _covered(corners: np.ndarray, grid: TileGrid) -> np.ndarray:
    """`[rows, columns]` bool of all cells: which lie in one of these tiles."""
    covered = np.zeros(grid.shape, bool)
    for row, column in corners.tolist():
        covered[row : row + grid.cells, column : column + grid.cells] = True
    return covered
