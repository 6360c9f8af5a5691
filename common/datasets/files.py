"""Reading what data sets come as: tables of cases, files under several names, volumes in any orientation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..files import PathLike, atomic_path
from ..images import in_axes_of, on_grid, read_volume


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


def load_volume(path: PathLike, *, like: nib.Nifti1Image | None = None) -> nib.Nifti1Image:
    """A volume with its axes turned to RAS (x to the right, y to anterior, z to superior), voxels in memory.

    Args:
        path: see `common.images.read_volume`.
        like: a volume on whose grid this one lies, whose axes it gets.

    Raises:
        ValueError: the file cannot be decoded, or lies on another grid than `like`.
    """
    volume = read_volume(path)
    if like is None:
        array, affine = in_axes_of(volume.array, volume.affine, np.eye(4))
    else:
        placed = on_grid(volume, like.shape[:3], like.affine, image="the first volume of its case")
        array, affine = placed.array, placed.affine
    image = nib.Nifti1Image(array.astype(np.float32) if array.dtype == np.float64 else array, affine)
    image.header.set_xyzt_units("mm")
    return image


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
