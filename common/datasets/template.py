"""An empty table of labels, to be filled in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..files import PathLike, atomic_path, write, writing

# What a column holds, and an example.
_COLUMNS = {
    "image": ("file, or folder of a DICOM series, below the data's folder", "P01/flair.nii.gz"),
    "label": ("yes or no; or a grade; or names of classes, several with ;", "yes"),
    "patient": ("all images of a patient stay together", "P01"),
    "case": ("name of the results", "P01_2019"),
    "slice": ("number of the slice, where a row is a slice: from 0 at the bottom", ""),
    "side": ("left, right or both, of the patient, where a yes lies, for --halves", ""),
    "organ": ("mask of the organ", ""),
    "mask": ("mask of the finding; it only scores", "P01/mask.nii.gz"),
    "split": ("training, validation or test; else it is drawn", ""),
}


def write_template(path: PathLike) -> None:
    """Write a table of labels without a case (`.csv`, `.tsv` or `.xlsx`): the columns, and two rows of comments.

    Raises:
        FileExistsError: there is such a file.
        ImportError: `.xlsx` without openpyxl.
        ValueError: another suffix.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; name a new file for the template.")
    rows = [list(_COLUMNS), *(list(row) for row in zip(*_COLUMNS.values(), strict=True))]
    for row, word in zip(rows[1:], ("delete or keep: ", "for example: "), strict=True):
        row[0] = f"# {word}{row[0]}"
    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        _write_xlsx(path, rows)
    elif suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",").writerows(rows)
        write(path, "\ufeff" + text.getvalue())  # Excel takes a file without the mark for another encoding
    else:
        raise ValueError(f"{path}: a table is a .csv, .tsv or .xlsx file.")


def _write_xlsx(path: Path, rows: list[list[str]]) -> None:
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(f"{path}: writing .xlsx needs openpyxl: pip install 'weakseg-bundles[xlsx]'.") from error
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for column in "ABCDEFGHI":
        book.active.column_dimensions[column].width = 24
    with writing(path), atomic_path(path) as temporary:
        book.save(temporary)
