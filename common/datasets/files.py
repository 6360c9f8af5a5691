"""Reading what data sets come as: tables of cases, files under several names, volumes in any orientation."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import nibabel as nib
import numpy as np

from ..data.matches import some
from ..files import PathLike, atomic_path
from ..images import in_axes_of, on_grid, read_volume

logger = logging.getLogger(__name__)


def read_rows(path: PathLike) -> list[tuple[int, list[str]]]:
    """Rows of a table as texts without surrounding blanks; rows without a text are left out.

    Text in UTF-8, or in UTF-16 with its mark, cells between commas, semicolons or tabs: whichever gives the first row
    most cells, or a line `sep=;` above it, which is no row, says. Or the first sheet of an Excel file (`.xlsx`)
    that is not hidden; a warning names it where others hold something, too.

    Args:
        path: the file.

    Returns:
        The number of each row, counted from 1 as a spreadsheet does, and its cells.

    Raises:
        ImportError: `.xlsx` without openpyxl.
        ValueError: it is no table of text, or cells of several rows are merged.
    """
    path = Path(path)
    rows = _read_xlsx(path) if path.suffix.lower() in (".xlsx", ".xlsm") else _read_text(path)
    stripped = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1)]
    return [(number, row) for number, row in stripped if any(row)]


def _read_text(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8; save the table as 'CSV UTF-8' or as .xlsx.") from error
    named = re.match(r'"?sep=([,;\t|])"?\r?\n', text)  # Excel's way to name the separator, in a line of its own
    text = text[named.end() :] if named else text
    delimiter = named[1] if named else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        line = reader.line_num + bool(named)
        raise ValueError(f"{path}: line {line}: {error}; are there quotes that do not close?") from error


def _delimiter(text: str) -> str:
    """What gives most cells of the first row that it divides at all: a title may stand above."""
    for line in (line for line in text.splitlines()[:10] if line.strip()):
        cells = {sign: len(next(csv.reader([line], delimiter=sign), [])) for sign in ",;\t"}
        if max(cells.values()) > 1:
            return max(cells, key=lambda sign: cells[sign])
    return ","


def _read_xlsx(path: Path) -> list[list[str]]:
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(
            f"{path}: reading .xlsx needs openpyxl: pip install 'weakseg-bundles[xlsx]', or save the sheet as CSV."
        ) from error
    try:
        book, written = (openpyxl.load_workbook(path, read_only=True, data_only=values) for values in (True, False))
    except (BadZipFile, KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as .xlsx ({error}); save the table again, or as CSV.") from error
    visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets[:1]
    sheets = {sheet.title: _cells(sheet) for sheet in visible}
    name, *others = [title for title, cells in sheets.items() if any(map(any, cells))] or [*sheets][:1]
    if others:
        logger.warning("%s: the sheet %r is read, and not %s", path, name, ", ".join(map(repr, others)))
    rows, formulas = sheets[name], _cells(written[name])
    for one in (book, written):
        one.close()
    for number, (row, code) in enumerate(zip(rows, formulas, strict=True), 1):
        if any(text.startswith("=") and not value for text, value in zip(code, row, strict=True)):
            raise ValueError(
                f"{path}: row {number}: a formula that was never computed; open the file, and save it again."
            )
    _check_looks(path, name, rows)
    return rows


def _cells(sheet: Any) -> list[list[str]]:
    sheet.reset_dimensions()  # some programs write a size that is not the sheet's
    return [[_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]


def _check_looks(path: Path, name: str, rows: Sequence[Sequence[str]]) -> None:
    """Warn of hidden rows, and refuse a text that stands for several rows: all but the first of them are empty."""
    with ZipFile(path) as file:  # how rows look is told only where all else is read, too
        sheets = [file.read(one) for one in file.namelist() if "/worksheets/" in one]
    if not any(b"mergeCell " in sheet or b'hidden="' in sheet for sheet in sheets):
        return
    import openpyxl

    sheet, header = openpyxl.load_workbook(path)[name], next(filter(any, rows), [])
    hidden = [str(n) for n, row in enumerate(rows, 1) if any(row) and sheet.row_dimensions[n].hidden]
    if hidden:
        what = "%s: rows that the sheet hides, or filters out, are read as the others: %s; delete what is not meant"
        logger.warning(what, path, some(hidden))
    for cells in sheet.merged_cells.ranges:
        text = _text(sheet.cell(cells.min_row, cells.min_col).value)
        if text and cells.max_row > cells.min_row:
            column = header[cells.min_col - 1] if cells.min_col <= len(header) else ""
            raise ValueError(
                f"{path}: column {column!r}: the cells {cells.coord} are merged, so that {text!r} stands in row "
                f"{cells.min_row} alone; unmerge them, and write it into each row."
            )


def _text(value: object) -> str:
    """A cell of a sheet, where every number may be a float, and has 15 digits at most."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and abs(value) >= 1e15 and (isinstance(value, float) or value % 10 == 0):
        return f"{value:.14e}"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_table(path: PathLike, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table that a data set comes with, as texts by column name, see `read_rows`.

    Args:
        path: the file; the first row names the columns.
        columns: columns that must be there.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: `.xlsx` without openpyxl.
        ValueError: a column is missing, or there is no row.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a table with the columns {tuple(columns)}.")
    header, *rows = [row for _, row in read_rows(path)] or [[]]
    for column in columns:
        if column not in header or not rows:
            raise ValueError(f"{path}: the column {column!r} is missing, or no row follows; expected the owners' file.")
    return [{k: v for k, v in zip_longest(header, row[: len(header)], fillvalue="") if k} for row in rows]


def told_by(path: PathLike, key: str, value: str) -> dict[str, str]:
    """What a table says of each one, by two of its columns, see `read_table`; where one is empty, nothing.

    Raises:
        ValueError: two rows say different things of one.

    Example:
        `told_by("registry.csv", "study_file", "category")`
    """
    told: dict[str, str] = {}
    for row in read_table(path, (key, value)):
        name, text = row[key], row[value]
        if name and text and told.setdefault(name, text) != text:
            raise ValueError(f"{path}: {name} is listed twice, with {value} {told[name]!r} and {text!r}.")
    return told


def one_file(path: Path, *patterns: str) -> str:
    """The file in `path` that matches a pattern: the first pattern that any file matches.

    Raises:
        FileNotFoundError: none does.
        ValueError: see `only`.
    """
    for pattern in patterns:
        if found := sorted(path.glob(pattern)):
            return str(only(found))
    others = f" (nor {', '.join(patterns[1:])})" if patterns[1:] else ""
    raise FileNotFoundError(f"{path}: no file {patterns[0]!r}{others}; complete the case.")


def only(files: Sequence[Path]) -> Path:
    """The file, where there is one alone: not the same packed beside it, say, which may have been edited since.

    Raises:
        ValueError: naming two.
    """
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} are one file of one case; they may differ: keep the right one.")
    return files[0]


def up_to_date(written: Iterable[PathLike], sources: Iterable[PathLike]) -> bool:
    """Whether files are all there, and none of what they were made from has been changed or replaced since."""
    made = [Path(path) for path in written]
    if not all(path.is_file() for path in made):
        return False
    # The status changes, too, where an older file takes the place of one, whose own time is before that of the result.
    changed = max(max(found.st_mtime_ns, found.st_ctime_ns) for found in (Path(path).stat() for path in sources))
    return changed < min(path.stat().st_mtime_ns for path in made)


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


def check_3d(image: nib.Nifti1Image, path: PathLike) -> None:
    """Refuse an image that is no volume of one channel.

    Raises:
        ValueError: it has another number of axes than three.
    """
    if image.ndim != 3:
        raise ValueError(f"{path}: expected a 3D volume, got the shape {image.shape}.")


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
