"""Files that a table names, by their headers: whether they can be read, and masks lie on their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

from ..images import in_axes_of, is_dicom, read_grid
from ..images.dicom_files import header_of
from ..images.geometry import LPS_TO_RAS, check_one_grid
from ..images.pictures import SLIDE_SUFFIXES, TIFF, is_picture, is_slide_file
from ..images.reading import DICOM_FILES, OTHERS
from .labels import refuse
from .rows import Row

# They, and their outlines, are opened where they are used.
SLIDES = (*SLIDE_SUFFIXES, ".czi")
_OUTLINES = ".xml"

Grid = tuple[tuple[int, ...], np.ndarray]


def check_headers(rows: Sequence[Row], images: Sequence[str], path: Path) -> None:
    """Refuse files that cannot be read, and masks and further modalities that do not lie on the image.

    Only headers are read; those of `.mha`, `.nrrd` and of all files of a series only where a mask must lie on them.

    Args:
        rows: one of each case, with its files.
        images: columns.
        path: the table, for messages.

    Raises:
        ValueError: naming row, column and file.
    """
    problems = []
    for row in tqdm(rows, desc="reading headers", unit="case", disable=None, delay=5):
        columns = [column for column in (*images, "organ", "mask") if column in row.files]
        grid: Grid | None = None
        image = row.files[images[0]]
        masked = any(column not in images for column in columns)
        for column in columns:
            file = row.files[column]
            try:
                if file.is_file() and not file.stat().st_size:
                    raise ValueError(f"{file} is an empty file")
                if column not in images and file.name.lower().endswith(_OUTLINES) and _may_be_slide(image):
                    continue
                if column == "mask" and _is_slide(image):
                    raise ValueError(f"{file} cannot score a whole slide: outlines are polygons in ASAP's XML")
                own = _grid(file, mask=column not in images, needed=masked)
                if column == images[0]:
                    grid = own
                elif grid is not None and own is not None:
                    _check_on(file, own, image, grid)
            except (ValueError, FileNotFoundError) as error:
                problems.append(f"{row.at(column)}: {error}")
    refuse(path, problems)


def _may_be_slide(file: Path) -> bool:
    return file.name.lower().endswith((*SLIDES, *TIFF))


def _is_slide(file: Path) -> bool:
    name = file.name.lower()
    return name.endswith(SLIDES) or (name.endswith(TIFF) and is_slide_file(file))


def _grid(file: Path, *, mask: bool, needed: bool) -> Grid | None:
    """Shape and affine of a file that can be read; None where it is not known, or not asked for."""
    ending = file.name.lower()
    if ending.endswith(SLIDES):
        return None
    if mask and ending.endswith(DICOM_FILES):  # a Segmentation holds some slices of its image
        header = header_of(str(file))
        if header is None or header.broken:
            raise ValueError(f"{file}: {header.other if header else 'no DICOM file'}; a mask is a Segmentation")
        return None
    if is_dicom(file):
        return read_grid(file, dicom_geometry="assume_axial") if needed else None
    if is_picture(file):
        return _picture_grid(file)
    if ending.endswith(OTHERS) and not needed:
        return None
    shape, affine = read_grid(file)
    if len(shape) < 3:
        raise ValueError(f"{file}: expected a 3D image, got the shape {list(shape)}")
    return shape, affine


def _picture_grid(file: Path) -> Grid | None:
    if file.name.lower().endswith(TIFF):
        if is_slide_file(file):
            return None
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            return (page.imagewidth, page.imagelength, 1), LPS_TO_RAS
    try:
        with Image.open(file) as picture:
            return (*picture.size, 1), LPS_TO_RAS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); expected a PNG or JPEG picture") from error


def _check_on(file: Path, grid: Grid, image: Path, like: Grid) -> None:
    array, moved = in_axes_of(np.broadcast_to(0, grid[0]), grid[1], like[1])
    check_one_grid(array.shape, moved, *like, what=f"{file} and {image}", header=grid[1])
