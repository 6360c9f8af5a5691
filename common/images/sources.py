"""Which files an image is read from: one, those of a DICOM series, or a header and the voxels beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib

from ..files import PathLike
from .dicom_files import find_series
from .reading import is_dicom

_PAIR = re.compile(r".*\.(hdr|img)(\.gz)?", re.IGNORECASE)
_NAMES_ITS_DATA = (".mhd", ".nhdr")


def files_of(path: PathLike) -> list[Path]:
    """The files that an image, or a mask, is read from: first the one of the path, or those of a DICOM series.

    Numbered files that a `.nhdr` names by a pattern (`slice%03d.raw`) are not among them.

    Args:
        path: see `common.images.read_volume`.

    Raises:
        FileNotFoundError, ValueError: see `common.images.dicom_files.find_series`; a single file need not exist.

    Example:
        `files_of("p1/flair.hdr")` has `p1/flair.hdr` and, where it is there, `p1/flair.img`.
    """
    path, beside = Path(path), []
    if is_dicom(path):
        return [*find_series(path).files]
    if _PAIR.fullmatch(path.name):
        holders = nib.Spm99AnalyzeImage.filespec_to_file_map(path).values()  # `.mat` as well, which turns the others
        beside = [Path(holder.filename or path) for holder in holders]
    elif path.name.lower().endswith(_NAMES_ITS_DATA) and path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            beside = [path.parent / text.strip() for text in re.split("[\n=:]", file.read(1 << 16))]
    return [path, *(file for file in beside if file != path and os.path.isfile(file))]
