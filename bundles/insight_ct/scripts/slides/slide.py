"""Whole slides: parts of them at any resolution, and where their tissue is."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import tifffile
from monai.data import WSIReader
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from common.masks import clean

logger = logging.getLogger(__name__)

# No microscope's pixel is smaller or larger; 72 dots per inch (353 µm), which many writers put by default, is outside.
PLAUSIBLE_MPP = (0.02, 100.0)
# A level that is coarser than asked for by less than this is taken as it is: pyramids round their sizes.
ALMOST = 1.02


class Slide:
    """An open slide of known resolution. Use it in a `with` block, or `close` it.

    MONAI's `WSIReader` opens. OpenSlide reads single tiles of a pyramid. tifffile decodes a whole level, so the slide's
    finest level then stays in memory: for small files that OpenSlide does not open, e.g. TIFF without tiles.

    Args:
        path: the file.
        mpp_of_file: micrometers per pixel of the finest level, for a file that does not say, or says it wrong; where
            the file says another, a warning tells.
        backend: `openslide` or `tifffile`.

    Attributes:
        size: `(width, height)` of the finest level in pixels.
        mpp: `(x, y)` micrometers per pixel of the finest level.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the backend is not installed.
        ValueError: no slide, damaged, or of unknown resolution.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mpp_of_file: float | None = None,
        backend: Literal["openslide", "tifffile"] = "openslide",
    ) -> None:
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"{self.path} does not exist; check dataset_dir and the datalist or image_pattern.")
        try:
            self._reader = WSIReader(backend)
        except ImportError:
            raise ImportError(f"reading slides needs {backend}: pip install 'weakseg-bundles[wsi]'") from None
        self._backend = backend
        self._whole: np.ndarray | None = None
        with self._named_errors():
            self._wsi = self._reader.read(self.path)
            if backend == "tifffile":
                if (kind := self._wsi.series[0].dtype) != np.uint8:  # MONAI's reader would wrap 16 bits modulo 256
                    raise ValueError(f"its pixels are {kind}")
                self._whole = self._finest()
            levels = range(self._reader.get_level_count(self._wsi) if backend == "openslide" else 1)
            height, width = self._reader.get_size(self._wsi, 0)
            sizes = [self._reader.get_size(self._wsi, level) for level in levels]
        self.size = (int(width), int(height))
        # Per axis: the mean that openslide gives is off by a pixel or more at the far edge of a small level.
        self._downsamples = [(width / w, height / h) for h, w in sizes]
        self._means = self._wsi.level_downsamples if backend == "openslide" else (1.0,)
        self.mpp = self._resolution(mpp_of_file)

    def _finest(self) -> np.ndarray:
        """`[H, W, 3]` uint8: all of the finest level."""
        extra = self._wsi.series[0].keyframe.extrasamples
        alpha = extra[:1] in ((tifffile.EXTRASAMPLE.ASSOCALPHA,), (tifffile.EXTRASAMPLE.UNASSALPHA,))
        pixels = self._reader.get_data(self._wsi, level=0, mode="RGBA" if alpha else "RGB")[0]
        pixels = np.moveaxis(pixels, 0, -1).astype(np.uint8)
        return _on_white(pixels, multiplied=extra[0] == tifffile.EXTRASAMPLE.ASSOCALPHA) if alpha else pixels

    @contextmanager
    def _named_errors(self, part: str = "") -> Iterator[None]:
        # "from None", here and below: an evaluator reports the first cause of an error, which names no file.
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{self.path}: {part or 'it'} cannot be read ({reason}); {_advice(error, self._backend)}"
            ) from None

    def _resolution(self, given: float | None) -> tuple[float, float]:
        own = self._own_resolution()
        plausible = own is not None and all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in own)
        if given is not None:
            if own and plausible and not np.allclose(own, given, rtol=0.1):
                logger.warning("%s: says %.4g × %.4g µm per pixel; mpp_of_file makes it %g", self.path, *own, given)
            return (float(given), float(given))
        if own is None:
            raise ValueError(
                f"{self.path}: the file does not say how large a pixel is; give the micrometers per pixel of its "
                "finest level: --mpp_of_file 0.25"
            )
        if not plausible:
            raise ValueError(
                f"{self.path}: {own[0]:.4g} × {own[1]:.4g} µm cannot be the size of a pixel; give the micrometers per "
                "pixel of the finest level: --mpp_of_file 0.25"
            )
        return own

    def _own_resolution(self) -> tuple[float, float] | None:
        """What the file says, x and y; None where it says nothing, or no unit."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # MONAI takes pixels without a unit for micrometers, with a warning
                y, x = self._reader.get_mpp(self._wsi, 0)
        except Exception:
            return None
        return (float(x), float(y))

    def close(self) -> None:
        self._wsi.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def region(self, x: float, y: float, width: float, height: float, shape: tuple[int, int]) -> np.ndarray:
        """A part of the slide, averaged down to `shape` from the coarsest level that still has its resolution.

        Args:
            x, y: left and upper edge in pixels of the finest level; fractions count.
            width, height: likewise. What lies beyond the slide, or was not scanned, is white.
            shape: `(rows, columns)` of the result.

        Returns:
            `[rows, columns, 3]` uint8.
        """
        scale = min(width / shape[1], height / shape[0]) * ALMOST
        level = max(i for i, d in enumerate(self._downsamples) if i == 0 or max(d) <= scale)
        dx, dy = self._downsamples[level]
        left, top = math.floor(x / dx + 1e-6), math.floor(y / dy + 1e-6)
        right, bottom = math.ceil((x + width) / dx - 1e-6), math.ceil((y + height) / dy - 1e-6)
        pixels = self._pixels(left, top, right - left, bottom - top, level)
        box = (x / dx - left, y / dy - top, (x + width) / dx - left, (y + height) / dy - top)
        box = tuple(np.clip(box, 0, [right - left, bottom - top] * 2).tolist())
        if pixels.shape[:2] == tuple(shape):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box))

    def _pixels(self, left: int, top: int, width: int, height: int, level: int) -> np.ndarray:
        """`[height, width, 3]` uint8 at a level; left and top in pixels of that level."""
        if self._whole is not None:
            part = self._whole[max(top, 0) : top + height, max(left, 0) : left + width, :3]
            missing = ((0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0))
            return np.pad(part, missing, constant_values=255)
        dx, dy = self._downsamples[level]
        with self._named_errors(f"its part at x {round(left * dx)}, y {round(top * dy)}"):
            # OpenSlide divides a place by its mean, whichever the axis: on a long strip the difference is of tiles.
            place = (round(left * self._means[level]), round(top * self._means[level]))
            rgba = np.asarray(self._wsi.read_region(place, level, (width, height)))
        return _on_white(rgba)

    def thumbnail(self, mpp: float, *, block: int = 128) -> np.ndarray:
        """The whole slide, averaged down.

        Args:
            mpp: micrometers per pixel of the result.
            block: it is read in parts of so many pixels of the result, so that a slide without pyramid fits, too.

        Returns:
            `[rows, columns, 3]` uint8; pixel (i, j) begins `i * mpp` below and `j * mpp` right of the slide's corner.
        """
        px, py = mpp / self.mpp[0], mpp / self.mpp[1]
        rows, columns = math.ceil(self.size[1] / py), math.ceil(self.size[0] / px)
        result = np.empty((rows, columns, 3), np.uint8)
        for i in range(0, rows, block):
            for j in range(0, columns, block):
                part = result[i : i + block, j : j + block]
                h, w = part.shape[:2]
                part[...] = self.region(j * px, i * py, w * px, h * py, (h, w))
        return result


def _on_white(rgba: np.ndarray, *, multiplied: bool = False) -> np.ndarray:
    """`[H, W, 3]` uint8 of colors and alpha; `multiplied`: the file has the colors times alpha."""
    if rgba[..., 3].min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:] / np.float32(255)
    colors = rgba[..., :3] * (1 if multiplied else alpha) + 255 * (1 - alpha)
    return colors.clip(0, 255).round().astype(np.uint8)


def _advice(error: Exception, backend: str) -> str:
    """What to do about an error of a reader."""
    if isinstance(error, ImportError) or "imagecodecs" in str(error):
        return "its compression needs imagecodecs: pip install 'weakseg-bundles[wsi]'"
    if "Unsupported TIFF compression" in str(error):
        return "OpenSlide does not know its compression: save it in JPEG, or use backend tifffile for a small file"
    if type(error).__name__ == "OpenSlideUnsupportedFormatError":
        return "it is no slide, or of a format that OpenSlide does not know: use backend tifffile for a small TIFF file"
    if "not a TIFF file" in str(error):
        return f"backend {backend} reads TIFF files alone: use backend openslide"
    if any(words in str(error) for words in ("its pixels are", "color channel")):
        return "save it as one RGB page with 8 bits a color, channels last"
    return "it is damaged or cut off: copy it anew, or leave it out"


def find_tissue(
    thumbnail: np.ndarray,
    *,
    mpp: float,
    saturation: Sequence[float] = (0.03, 0.12),
    darkest: float = 0.12,
    pen: bool = True,
    blur_um: float = 40.0,
    closing_um: float = 32.0,
    min_area_mm2: float = 0.01,
    max_hole_mm2: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Where a stained slide holds tissue: colored, and neither pen nor edge of the glass.

    The median-filtered saturation above Otsu's threshold is stain. Closing it, and dropping small objects and holes,
    gives the tissue. Otsu's method always splits, be the slide blank or all tissue, so its threshold is kept within
    bounds.

    Args:
        thumbnail: `[H, W, 3]` uint8.
        mpp: micrometers per pixel of it.
        saturation: bounds of the threshold, 0 to 1.
        darkest: pixels with a brightness (the largest of the three colors) below are no tissue: black pen, edges.
        pen: leave out what is greener than red and strongly colored: blue and green pen. Hematoxylin and eosin both
            let more red than green through. Red pen stays.
        blur_um: size of the median filter.
        closing_um: radius of the closing.
        min_area_mm2: smaller objects are dropped.
        max_hole_mm2: smaller holes are filled.

    Returns:
        The tissue, and the stain within it, which leaves the white of its holes out; `[H, W]` bool each.
    """
    rgb = np.asarray(thumbnail)
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    color = (255 * (high - low).astype(np.uint16) // np.maximum(high, 1)).astype(np.uint8)
    usable = high > 255 * darkest
    if pen:
        red, green = rgb[..., 0].astype(np.int16), rgb[..., 1].astype(np.int16)
        usable &= ~((green > red + 10) & (color > 51))
    size = max(1, round(blur_um / mpp)) | 1
    color = ndimage.median_filter(np.where(usable, color, 0).astype(np.uint8), size=size)
    bounds = 255 * np.asarray(saturation, dtype=float)
    threshold = float(np.clip(threshold_otsu(color), *bounds)) if np.ptp(color) else bounds[0]
    pixels_per_mm2 = 1e6 / mpp**2
    stain = (color > threshold) & usable
    closed = clean(stain, closing_radius=round(closing_um / mpp))
    sizes = {"min_size": min_area_mm2, "max_hole": max_hole_mm2}
    tissue = clean(closed, **{name: round(area * pixels_per_mm2) for name, area in sizes.items()})
    return tissue, stain & tissue
