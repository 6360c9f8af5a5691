"""2D images, PNG, JPEG and TIFF: read as volumes of one slice, results written as pictures of the same size."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from ..files import PathLike, atomic_path, writing
from .geometry import LPS_TO_RAS
from .volume import Volume

TIFF = (".tif", ".tiff")
# Of files that are whole slides; TIFF may be pictures.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
PICTURES = (".png", ".jpg", ".jpeg", *TIFF)
LARGEST = 10_000  # pixels along a side of a TIFF that is a picture: those of cameras and scanners of films have fewer
_KEPT = ("uint16", "int16", "int32", "float32")  # by Pillow, of gray TIFF with more than 8 bits
_MODES = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "P": "RGB"}


def is_picture(path: PathLike) -> bool:
    """Whether an image's path names a 2D image: PNG, JPEG or TIFF."""
    return str(path).lower().endswith(PICTURES)


def is_slide_file(path: PathLike) -> bool:
    """Whether a TIFF is stored as whole slides are: pages of several sizes, or a side of more than 10,000 pixels.

    Pages of one size are no levels: a stack is no slide.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with tifffile.TiffFile(path) as file:
            _check_end(file)
            return _several_sizes(file) or max(file.pages.first.shape) > LARGEST
    except Exception as error:  # of what is damaged, tifffile raises whatever its parts do
        raise ValueError(f"{path}: cannot be read ({error}); expected a whole TIFF file") from error


def read_picture(path: PathLike) -> Volume:
    """Read a picture as one axial slice: columns run to the patient's left, rows to the back, pixels count as 1 mm.

    Transparency is dropped, and of a picture in color whose channels are all alike one is kept. What a file says about
    turning it for display (EXIF) is not done, so that results lie on its pixels as they are stored.

    Args:
        path: PNG, JPEG or TIFF; gray or in color, 8 or 16 bits (in color as TIFF alone), or floating point.

    Returns:
        `[W, H, 1]`, or `[W, H, 1, 3]` in color.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be decoded, holds several pages, or is a PNG of 16 bits in color or with transparency.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    pixels = _pixels(str(path))
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return Volume(np.swapaxes(pixels, 0, 1)[:, :, None], LPS_TO_RAS.copy(), str(path))


def picture_grid(path: PathLike) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape `(W, H, 1)` and affine of a picture."""
    return read_picture(path).array.shape[:3], LPS_TO_RAS.copy()


def _pixels(path: str) -> np.ndarray:
    """Rows, columns and, in color, channels."""
    try:
        deep = _deep(path) if path.lower().endswith(TIFF) else None
        if deep is not None:
            return deep
        with Image.open(path) as picture:
            _check_pages(getattr(picture, "n_frames", 1))
            if picture.mode in ("RGB", "RGBA") and any(";16" in str(part[3]) for part in picture.tile):
                raise ValueError(
                    "16 bits in color or with transparency, of which 8 would be left: save it as gray, or as TIFF"
                )
            return np.asarray(picture.convert(_MODES[picture.mode]) if picture.mode in _MODES else picture)
    except (OSError, ValueError, SyntaxError, tifffile.TiffFileError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected one whole PNG, JPEG or TIFF picture") from error


def _deep(path: str) -> np.ndarray | None:
    """A TIFF picture that Pillow would cut off: in color with more than 8 bits, or of another type; None for others."""
    with tifffile.TiffFile(path) as file:
        if len(file.pages) > 1 and _several_sizes(file):
            raise ValueError(
                "it holds pages of several sizes, as whole slides do, which wsi_inference.json reads; of a picture, "
                "save one"
            )
        _check_pages(len(file.pages))
        page = file.pages.first
        if page.dtype in ("uint8", "bool"):
            return None
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:  # which Pillow turns round in 8 bits alone
            raise ValueError("its lowest value is white: save it with black as 0")
        if page.samplesperpixel < 2 and page.dtype in _KEPT:
            return None
        pixels = page.asarray()
        return np.moveaxis(pixels, 0, -1) if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else pixels


def _several_sizes(file: tifffile.TiffFile) -> bool:
    return len(file.series) > 1 or file.series[0].is_pyramidal


def _check_end(file: tifffile.TiffFile) -> None:
    """Refuse a file that is cut off behind a page: of a slide the levels are missing, and tifffile goes without."""
    tiff, handle = file.tiff, file.filehandle
    handle.seek(file.pages[-1].offset)
    (tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
    handle.seek(tags * tiff.tagsize, 1)
    (following,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
    if following >= handle.size:
        raise ValueError("it is cut off")


def _check_pages(count: int) -> None:
    if count > 1:
        raise ValueError(f"it holds {count} pages: save each as a file of its own")


def write_mask_picture(path: PathLike, mask: np.ndarray) -> None:
    """Write a mask `[W, H, 1]` as a gray PNG whose pixels are the label values: 0 is background."""
    _save(path, Image.fromarray(_rows(mask).astype(np.uint8)))


def write_heat_picture(path: PathLike, heatmap: np.ndarray) -> None:
    """Write a heatmap `[W, H, 1]` for the eye: PNG in color, 0 and less black, the largest heat brightest."""
    import matplotlib  # slow to import, for pictures only

    heat = np.maximum(_rows(heatmap), 0)
    colored = matplotlib.colormaps["magma"](heat / max(float(heat.max()), 1e-12))[..., :3]
    _save(path, Image.fromarray((255 * colored).astype(np.uint8)))


def write_raw_picture(path: PathLike, heatmap: np.ndarray) -> None:
    """Write a heatmap `[W, H, 1]` as it is: TIFF of 32-bit floats."""
    with writing(path), atomic_path(path) as temporary:
        tifffile.imwrite(temporary, _rows(heatmap).astype(np.float32), compression="zlib")


def _rows(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array[:, :, 0], 0, 1)


def _save(path: PathLike, picture: Image.Image) -> None:
    with writing(path), atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
