"""Heat of a slide, stitched on disk cell by cell, as pyramidal TIFF, mask and overlay: memory stays flat."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import find_boundaries

from common.files import atomic_path
from common.handlers import MASK_COLOR, TRUTH_COLOR, with_colorbar

from .tiles import TiledSlide

BLOCK = 512  # cells: heat is worked on in square blocks
TILE = 256  # cells: of the TIFF files
SMALLEST = 512  # cells: a pyramid ends with the first level whose longer side is no longer


class HeatCanvas:
    """Heatmaps of tiles put together: where tiles overlap, their mean; where there is none, 0.

    The cells lie in files, as a slide has too many for the memory. The canvas is a little larger than the grid, so that
    it can be halved exactly for every level of a pyramid.

    Args:
        folder: for the files, which are as large as `rows × columns × (num_labels + 1) × 4` bytes.
        shape: rows and columns of cells.
        num_labels: K.
    """

    def __init__(self, folder: str | os.PathLike[str], shape: tuple[int, int], num_labels: int) -> None:
        self.folder = Path(folder)
        self.shape = shape
        self.levels = 1 + max(0, int(np.ceil(np.log2(max(shape) / SMALLEST))))
        unit = 2 ** (self.levels - 1)
        rows, columns = (-(-side // unit) * unit for side in shape)
        self.heat: Any = on_disk(self.folder / "heat", (num_labels, rows, columns), np.float32)
        self._count: Any = on_disk(self.folder / "count", (rows, columns), np.uint16)

    def add(self, heatmaps: np.ndarray, corners: np.ndarray) -> None:
        """Put tiles in their places.

        Args:
            heatmaps: `[n, K, cells, cells]`.
            corners: `[n, 2]` row and column of their first cells.
        """
        n = heatmaps.shape[-1]
        for heatmap, (row, column) in zip(heatmaps, corners.tolist(), strict=True):
            self.heat[:, row : row + n, column : column + n] += heatmap
            self._count[row : row + n, column : column + n] += 1

    def finish(self) -> np.ndarray:
        """Divide by the number of tiles that met in a cell; the heat `[K, rows, columns]` (a memory map)."""
        for part in blocks(self._count.shape):
            count = self._count[part]
            if count.max(initial=0) > 1:
                self.heat[(slice(None), *part)] /= np.maximum(count, 1)
        return self.heat


def on_disk(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros in a file; zeros that nobody writes take no space."""
    return np.memmap(path, dtype=dtype, mode="w+", shape=shape)


def blocks(shape: Sequence[int], *, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the square blocks that cover an array."""
    for row in range(0, shape[0], size):
        for column in range(0, shape[1], size):
            yield slice(row, row + size), slice(column, column + size)


def smooth_cells(heat: np.ndarray, inside: np.ndarray, sigma: float, out: np.ndarray) -> np.ndarray:
    """Gaussian mean of the heat of the cells inside, block by block; 0 outside.

    Args:
        heat: `[K, rows, columns]`, may be larger than `inside`.
        inside: `[rows, columns]` bool.
        sigma: of the Gaussian, which ends at 3 sigma, in cells.
        out: of the heat's shape, filled and returned; not the heat itself.
    """
    reach = math.ceil(3 * sigma)
    options: dict[str, Any] = {"mode": "constant", "radius": reach}
    for part in blocks(inside.shape):
        wide = tuple(slice(max(p.start - reach, 0), p.stop + reach) for p in part)
        core = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, wide, strict=True))
        weight = inside[wide].astype(np.float32)
        total = np.maximum(ndimage.gaussian_filter(weight, sigma, **options)[core], 1e-6)
        h, w = total.shape
        for label, smoothed in zip(heat, out, strict=True):
            cells = np.asarray(label[wide])[: weight.shape[0], : weight.shape[1]] * weight
            mean = ndimage.gaussian_filter(cells, sigma, **options)[core] / total
            smoothed[part][:h, :w] = np.where(inside[part], mean, 0.0)
    return out


def otsu_of_cells(heat: np.ndarray, inside: np.ndarray) -> float:
    """`common.masks.otsu` of the cells inside, block by block; +inf for a constant map or nothing inside.

    Args:
        heat: `[rows, columns]`, may be larger than `inside`.
        inside: `[rows, columns]` bool.
    """

    def values() -> Iterator[np.ndarray]:
        for part in blocks(inside.shape):
            cells = np.asarray(heat[part][: inside[part].shape[0], : inside[part].shape[1]], np.float64)[inside[part]]
            if cells.size:
                yield cells

    limits = [(cells.min(), cells.max()) for cells in values()]
    if not limits:
        return np.inf
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.inf
    edges = np.linspace(low, high, 257)
    counts = sum(np.histogram(cells, bins=256, range=(low, high))[0] for cells in values())
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))


def class_mask(heat: np.ndarray, inside: np.ndarray, thresholds: Sequence[float], out: np.ndarray) -> np.ndarray:
    """In each cell the class whose heat is highest among those above their thresholds: k + 1 for label k, else 0.

    Args:
        heat: `[K, rows, columns]`, may be larger than `inside`.
        inside: `[rows, columns]` bool; elsewhere the mask is 0.
        thresholds: K.
        out: `[rows, columns]` uint8 of the heat's size, filled and returned.
    """
    limits = np.asarray(thresholds, np.float32).reshape(-1, 1, 1)
    for part in blocks(inside.shape):
        h, w = inside[part].shape
        cells = np.asarray(heat[(slice(None), *part)][:, :h, :w])
        above = np.where(cells > limits, cells, -np.inf)
        found = above.argmax(axis=0) + 1
        out[part][:h, :w] = np.where((above.max(axis=0) > -np.inf) & inside[part], found, 0)
    return out


def _halved(array: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`[..., rows, columns]` at half the size: means of floats, maxima of integers, so that small findings stay."""
    for part in blocks(out.shape[-2:]):
        twice = tuple(slice(2 * p.start, 2 * p.stop) for p in part)
        cells = np.asarray(array[(..., *twice)])
        h, w = cells.shape[-2:]
        pairs = cells.reshape(*cells.shape[:-2], h // 2, 2, w // 2, 2)
        out[(..., *part)] = pairs.mean(axis=(-3, -1)) if array.dtype.kind == "f" else pairs.max(axis=(-3, -1))
    return out


def _tiles_of(array: np.ndarray, change: Any) -> Iterator[np.ndarray]:
    """The tiles of `[planes, rows, columns]` as TIFF orders them, of full size each."""
    for plane in array:
        for part in blocks(plane.shape, size=TILE):
            cells = change(np.asarray(plane[part]))
            yield np.pad(cells, [(0, TILE - side) for side in cells.shape])


def write_pyramid(
    path: str | os.PathLike[str],
    array: np.ndarray,
    *,
    levels: int,
    cell_um: float,
    folder: str | os.PathLike[str],
    names: Sequence[str] = (),
    as_bytes: bool = False,
) -> None:
    """Write cells as a tiled, deflated TIFF pyramid with the size of a cell in its resolution tags.

    With `names`, an OME-TIFF: one channel each, lower levels as sub-images, as Bio-Formats (QuPath, ImageJ) reads them.
    Without, one image after the other, as OpenSlide reads them.

    Args:
        path: the file, written atomically.
        array: `[K, rows, columns]`; both sides divide by `2 ** (levels - 1)`.
        levels: of the pyramid, each half the one before.
        cell_um: micrometers of a cell.
        folder: for levels in the making.
        names: of the K channels.
        as_bytes: write heat in [0, 1] as 0 to 255.

    Raises:
        ValueError: several planes without names.
    """
    if not names and len(array) != 1:
        raise ValueError(f"a pyramid for OpenSlide has one plane, got {len(array)}; write one file each, or give names")
    dtype = np.dtype(np.uint8) if as_bytes else array.dtype
    metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
    metadata |= {f"PhysicalSize{axis}": cell_um for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    options: dict[str, Any] = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack"}

    def change(cells: np.ndarray) -> np.ndarray:
        return (255 * cells.clip(0, 1)).round().astype(np.uint8) if as_bytes else cells

    large = array.nbytes > 2**31
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=large, ome=bool(names)) as file:
        for level in range(levels):
            if level:
                shape = (len(array), array.shape[1] // 2, array.shape[2] // 2)
                array = _halved(array, on_disk(Path(folder) / f"level_{level % 2}", shape, array.dtype))
            first = {"subifds": levels - 1, "metadata": metadata} if names else {"metadata": None}
            file.write(
                _tiles_of(array, change),
                shape=array.shape if names else array.shape[1:],
                dtype=dtype,
                resolution=(1e4 / (cell_um * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                maxworkers=1,
                **options,
                **(first if level == 0 else {"metadata": None}),
            )


def overlay(
    tiled: TiledSlide,
    heat: np.ndarray,
    mask: np.ndarray | None,
    truth: np.ndarray | None = None,
    *,
    longest: int = 1200,
) -> Image.Image:
    """Above the slide with contours, below in gray with the heat over it; one column for each label.

    Args:
        tiled: the slide.
        heat: `[K, rows, columns]` of its cells.
        mask: `[rows, columns]`, k + 1 for label k; outlined in cyan, where there is one.
        truth: `[rows, columns]` bool; outlined in amber.
        longest: pixels of the slide's longer side.
    """
    view = tiled.view(longest).astype(np.float32)
    shape = view.shape[:2]
    gray = view.mean(axis=-1, keepdims=True)  # the colors of stains and of heat would mix
    rows: list[list[np.ndarray]] = [[], []]
    shown = [tiled.on_view(label, shape) for label in heat]
    peak = max(float(label.max()) for label in shown)
    for number, label in enumerate(shown, 1):
        warmth = label / peak if peak > 0 else label
        opacity = 0.65 * np.clip(warmth * 2, 0, 1)[..., None]
        colored = (1 - opacity) * gray + opacity * 255 * matplotlib.colormaps["magma"](warmth)[..., :3]
        plain = view.astype(np.uint8)
        outlines = [] if mask is None else [(tiled.on_view(mask, shape) == number, MASK_COLOR)]
        if truth is not None:
            outlines.insert(0, (tiled.on_view(truth, shape), TRUTH_COLOR))
        for region, color in outlines:
            plain[find_boundaries(region, mode="inner")] = color
        rows[0].append(plain)
        rows[1].append(colored.astype(np.uint8))
    canvas = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    return with_colorbar(canvas, peak, truth is not None, has_mask=mask is not None)
