"""Reading what data sets come as: tables of cases, files under several names, volumes in any orientation."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from ..files import PathLike, atomic_path


def read_table(path: PathLike, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, or of the first sheet of an `.xlsx` file, as texts by column name.

    Args:
        path: the file; the first row names the columns.
        columns: columns that must be there.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: `.xlsx` without openpyxl.
        ValueError: a column is missing, or there is no row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a table with the columns {tuple(columns)}.")
    if path.suffix == ".xlsx":
        rows = _read_xlsx(path)
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    for column in columns:
        if not rows or column not in rows[0]:
            raise ValueError(f"{path}: the column {column!r} is missing, or no row follows; expected the owners' file.")
    return rows


def _read_xlsx(path: Path) -> list[dict[str, str]]:
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(f"{path}: reading .xlsx needs openpyxl; install it, or save the sheet as CSV.") from error
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    sheet = [["" if v is None else str(v) for v in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    book.close()
    return [dict(zip(sheet[0], row, strict=False)) for row in sheet[1:] if any(row)]


def first_file(path: Path, *patterns: str) -> str:
    """The first file in `path` that matches one of the patterns, in their order.

    Raises:
        FileNotFoundError: none does.
    """
    for pattern in patterns:
        for found in sorted(path.glob(pattern)):
            return str(found)
    others = f" (nor {', '.join(patterns[1:])})" if patterns[1:] else ""
    raise FileNotFoundError(f"{path}: no file {patterns[0]!r}{others}; complete the case.")


def load_volume(path: PathLike) -> nib.Nifti1Image:
    """A volume with its axes turned to RAS (x to the right, y to anterior, z to superior), voxels in memory.

    Raises:
        ValueError: the file cannot be decoded.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    except (ImageFileError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a complete NIfTI file.") from error


def save_volume(image: nib.Nifti1Image, path: PathLike) -> str:
    """Write a volume atomically, folders included; returns the path."""
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return str(path)


def output_folder(out_dir: PathLike, root: PathLike) -> Path:
    """`out_dir`, absolute, unless it is `root`: the next run would take the files written there for cases.

    Raises:
        ValueError: both are one folder.
    """
    if Path(out_dir).resolve() == Path(root).resolve():
        raise ValueError(f"{out_dir}: the cases to cut lie there; write the parts to another folder.")
    return Path(out_dir).absolute()
