"""Rows of a table of labels: its columns, their texts, and the files that they name."""

from __future__ import annotations

import difflib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..images.dicom_files import first_scan, has_series, header_of
from .files import read_rows
from .labels import refuse

COLUMNS = ("image", "label", "patient", "case", "slice", "side", "organ", "mask", "split")
SECTIONS = {
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# What others call the columns that decide who is in which section: left out, they would change it silently.
SAME = {
    "patient": "fallid fallnr fallnummer mrn paciente participant participantid pat patid patient patientenid "
    "patientenkennung patientennr patientennummer patientid patientkennung patientnr patients patno patnr person "
    "personid pid proband probandenid probandenkennung pseudonym sub subj subject subjectid subjekt subjektid sujet",
    "split": "partition phase section set split splits splitting subset train training",
}
# So do these, with no other word beside them: a blood test, or what identifies a series, says something else.
ALONE = {
    "patient": "identifier kennung",
    "split": "for in is test testing usage use used val valid validation",
}
# With these words beside them, a column says something else: `patient age`.
NOT_WHO = "age birth birthdate comment comments date gender height history orientation position race sex size weight"

# What stands where a formula has no result, in English and German.
ERRORS = ("#N/A", "#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!", "#NV", "#BEZUG!", "#WERT!", "#ZAHL!")
_CUT = re.compile(r"\d([.,]\d+)?[eE]\+\d+")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\d\d:\d\d:\d\d")  # cells that are dates or times

logger = logging.getLogger(__name__)


@dataclass
class Row:
    """A row: its number in the spreadsheet, texts by column, its label, and the files it names by column."""

    number: int
    texts: dict[str, str]
    cls: int | list[str] = 0
    files: dict[str, Path] = field(default_factory=dict)

    def at(self, column: str) -> str:
        return f"row {self.number}, column {column!r}"

    def __getitem__(self, column: str) -> str:
        return self.texts.get(column, "")


def read_labeled_rows(path: Path, *, holds: str = "an image and its label") -> tuple[dict[str, str], list[Row]]:
    """Columns that hold texts (in lower case, and as written), and rows; one that begins with `#` is a comment.

    Args:
        path: the table.
        holds: what a row has, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no row, a column twice, or a row with more cells than columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a table, in each row {holds}.")
    (first, written), *lines = read_rows(path) or [(1, [])]
    rest = [(number, cells) for number, cells in lines if not cells[0].startswith("#") or cells[0] in ERRORS]
    if len(rest) < len(lines):
        logger.warning("%s: %d row(s) that begin with # left out", path, len(lines) - len(rest))
    header = [name.lower() for name in written]
    _check_header(header, first, lines, path)
    wide = "more cells than the header has columns; a text that holds the separator needs quotes"
    refuse(path, [f"row {n}: {wide}" for n, cells in rest if any(cells[len(header) :])])
    nameless = {k: f"number {k + 1} (row {n}: {v!r})" for n, cells in rest[::-1] for k, v in _unnamed(header, cells)}
    if nameless:
        logger.warning(
            "%s: columns without a name left out: %s", path, ", ".join(nameless[k] for k in sorted(nameless))
        )
    rows = [Row(n, {k: v for k, v in zip(header, cells, strict=False) if k and v}) for n, cells in rest]
    if not rows:
        raise ValueError(f"{path}: no row with {holds} follows the header.")
    refuse(path, [slip for row in rows for slip in _slips(row)])
    return {k: v for k, v in zip(header, written, strict=True) if any(row[k] for row in rows)}, rows


def _unnamed(header: Sequence[str], cells: Sequence[str]) -> list[tuple[int, str]]:
    """Texts of a row, each with the number of its column, that no name stands above."""
    return [(k, text) for k, (name, text) in enumerate(zip(header, cells, strict=False)) if text and not name]


def _check_header(header: Sequence[str], first: int, lines: Sequence[tuple[int, list[str]]], path: Path) -> None:
    """Refuse a title where the columns' names are expected, and a column that is there twice."""
    below = next((n for n, cells in lines[:10] if any(_is_known(cell.lower()) for cell in cells)), None)
    if below is not None and not any(map(_is_known, header)):
        raise ValueError(
            f"{path}: row {first} does not name the columns, but row {below} does; take out the rows above it."
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: row {first}: the column {twice[0]!r} occurs more than once; rename one.")


def _is_known(column: str) -> bool:
    return column in COLUMNS or column.startswith("image_")


def _slips(row: Row) -> Iterator[str]:
    """What a spreadsheet has done to texts of a row."""
    for column, text in row.texts.items():
        if text in ERRORS and _is_known(column):
            yield f"{row.at(column)}: {text!r} is a spreadsheet's error"
        elif column in ("patient", "case") and _CUT.fullmatch(text):
            yield f"{row.at(column)}: {text!r}, from which a spreadsheet has cut digits; format the column as text"
        elif column in ("patient", "case") and _MOMENT.fullmatch(text):
            yield f"{row.at(column)}: {text!r} is a date to the spreadsheet, not a name; format the column as text"


def image_columns(columns: dict[str, str], modalities: Sequence[str] | None, path: Path) -> dict[str, str]:
    """Names of the modalities by the column that holds their images.

    Raises:
        ValueError: there is no such column, or it is unclear which ones are.
    """
    if modalities:
        return _columns_of(modalities, columns, path)
    prefixed = {name: written[len("image_") :] for name, written in columns.items() if name.startswith("image_")}
    if "image" in columns and prefixed:
        raise ValueError(
            f"{path}: image and {', '.join(prefixed)} are both columns of images; say which are the modalities: "
            f"--modalities {','.join(prefixed.values())}"
        )
    if "image" not in columns and not prefixed:
        raise ValueError(f"{path}: the column 'image' (or 'image_<modality>') is missing; {held(columns, 'image')}")
    return prefixed or {"image": "image"}


def _columns_of(modalities: Sequence[str], columns: dict[str, str], path: Path) -> dict[str, str]:
    """The modalities asked for, by column: `image_<modality>`, `<modality>`, or `image` where there is only one."""
    if len({modality.lower() for modality in modalities}) < len(modalities):
        raise ValueError(f"--modalities {','.join(modalities)}: a modality is named twice.")
    found = {}
    others = ["image"] if len(modalities) == 1 else []
    for modality in modalities:
        names = [f"image_{modality}".lower(), modality.lower(), *others]
        fitting = next((name for name in names if name in columns), None)
        if fitting is None:
            raise ValueError(f"{path}: no column image_{modality} or {modality}; {held(columns, f'image_{modality}')}")
        found[fitting] = modality
    return found


def held(columns: dict[str, str], wanted: str) -> str:
    """Which columns there are, and which of them may be meant, for messages."""
    near = difflib.get_close_matches(wanted, columns, 1, cutoff=0.7)
    meant = f"; is {columns[near[0]]!r} meant?" if near else ""
    return f"columns with texts are {', '.join(columns.values())}{meant}"


def check_columns(columns: dict[str, str], images: dict[str, str], rows: Sequence[Row], path: Path) -> None:
    """Say which columns are left out.

    Raises:
        ValueError: no labels, or a column that seems to hold patients or sections, by its name or texts.
    """
    if "label" not in columns:
        raise ValueError(f"{path}: the column 'label' is missing; {held(columns, 'label')}")
    absent = [name for name in COLUMNS if name not in columns]
    others = []
    for name in [name for name in columns if name not in (*COLUMNS[1:], *images)]:
        sections = {SECTIONS.get(row[name].lower(), "") for row in rows if row[name]}
        near = "split" if "split" in absent and len(sections) > 1 and all(sections) else _meant(name, absent)
        if near in SAME:
            raise ValueError(f"{path}: the column {columns[name]!r} looks like {near!r}; rename it, or take it out.")
        others.append(repr(columns[name]) + (f" (is {near!r} meant?)" if near else ""))
    if others:
        logger.warning("%s: columns left out: %s", path, ", ".join(others))


def _meant(name: str, absent: Sequence[str]) -> str:
    """Which of the absent columns one of another name may be; empty where it is none."""
    words = {*re.findall("[a-z]+", name)}
    alike = [one for one in SAME if words & {*SAME[one].split()} or (words and words <= {*ALONE[one].split()})]
    near = [one for one in alike if one in absent and not words & {*NOT_WHO.split()}]
    if not near and "patient" not in alike:
        near = difflib.get_close_matches(name, absent, 1, cutoff=0.75)
    return near[0] if near else ""


def find_files(rows: Sequence[Row], images: Sequence[str], root: Path, path: Path) -> None:
    """Give each row its files.

    Raises:
        FileNotFoundError: some do not exist; says how many, and where the first three are named.
        ValueError: an image is not named, or is neither a file nor a DICOM series.
    """
    refuse(path, [f"{row.at(column)}: empty" for row in rows for column in images if not row[column]])
    named: dict[Path, str] = {}
    for row in rows:
        for column in (*images, "organ", "mask"):
            if row[column]:
                row.files[column] = _place(row[column], root)
                named.setdefault(row.files[column], row.at(column))
    _check_there(named, root, path)
    scans = {row.files[column] for row in rows for column in images}
    refuse(path, [f"{named[file]}: {file} {why}" for file in named if file in scans and (why := _no_image(file))])


def _check_there(named: Mapping[Path, str], root: Path, path: Path) -> None:
    absent = [file for file in named if not file.exists()]
    missing = [file for file, found in zip(absent, has_series(absent), strict=True) if not found]
    if missing:
        shown = "; ".join(f"{named[file]}: {file}" for file in missing[:3])
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(named)} files do not exist: {shown}{'; …' if len(missing) > 3 else ''}. "
            f"Paths are relative to {root}: is it the right --dataset_dir?"
        )


def _place(text: str, root: Path) -> Path:
    """The file that a text names, as it stands if there is such a file; else with the separators of Windows, or with
    letters and accents together or apart, as other systems write umlauts."""
    ways = [text, text.replace("\\", "/")]
    ways += [unicodedata.normalize(form, way) for form in ("NFC", "NFD") for way in ways]
    file = next((root / way for way in ways if (root / way).exists()), root / ways[1])
    return Path(os.path.normpath(file))


def _no_image(file: Path) -> str:
    """Why a path that exists is no image; empty where it is one."""
    if file.is_dir():
        header = first_scan(file)
        if header is None or header.other:
            return "is a folder without a DICOM scan; name a file, or the folder of a series"
        return ""
    header = header_of(str(file))
    return "is one file of a DICOM series; name its folder" if header is not None and not header.other else ""
