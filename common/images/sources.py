"""Which files an image is read from: one, those of a DICOM series, or one and what lies beside it."""

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
_FOLDER_BESIDE = ".mrxs"  # MIRAX: a thumbnail, and all else in a folder of its name
_NUMBERED = re.compile(r"(.*)%(0?\d*)[diu](.*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(\s+\d+)?")


def files_of(path: PathLike) -> list[Path]:
    """The files that an image, or a mask, is read from: first the one of the path, or those of a DICOM series.

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
    elif path.name.lower().endswith(_FOLDER_BESIDE):
        beside = sorted(path.with_suffix("").glob("*"))
    elif path.name.lower().endswith(_NAMES_ITS_DATA) and path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            texts = re.split("[\n=:]", file.read(1 << 16))
        beside = [path.parent / name for text in texts for name in _numbered(text.strip())]
    return [path, *(file for file in beside if file != path and os.path.isfile(file))]


def _numbered(text: str) -> list[str]:
    """The names that a header gives by a pattern, first and last number and step (`slice%03d.raw 1 20 1`), or one."""
    found = _NUMBERED.fullmatch(text)
    if found is None:
        return [text]
    before, width, after = found.groups()[:3]
    first, last, step = map(int, found.groups()[3:6])
    numbers = range(first, last + (1 if step > 0 else -1), step or 1)
    return [f"{before}{number:{width}d}{after}" for number in numbers]
