"""Labels from a table that people keep in a spreadsheet: one row a case, or one row a slice."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..data import Case
from ..data.find import case_names
from ..data.matches import listed
from ..files import PathLike, file_digest
from ..images import in_axes_of, read_grid
from .labels import parse_labels, refuse
from .rows import Row, check_columns, find_files, image_columns, read_labeled_rows

_SHARED = ("case", "patient", "organ", "mask", "split")  # of all rows of a case
_SECTIONS = {
    **dict.fromkeys(("training", "train"), "training"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NO_NAME = re.compile(r"^\.|[/\\:*?\"<>|\x00-\x1f]")  # what a name of files cannot hold on any system

logger = logging.getLogger(__name__)


def labeled_table(
    path: PathLike,
    dataset_dir: PathLike | None = None,
    *,
    modalities: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    positive_from: float | None = None,
    multi_label: bool = False,
    first_slice: int = 0,
    slices_from: Literal["bottom", "top"] = "bottom",
) -> tuple[list[Case], tuple[str, ...], tuple[str, ...]]:
    """Read a table of images and labels (`.csv`, `.tsv`, `.xlsx`).

    Columns, in any order: `image` (a file, the folder of a DICOM series, or `<folder>/<SeriesInstanceUID>`), or one
    `image_<modality>` a modality; `label`; and, where there are any, `patient` (cases without it are patients of their
    own, but for DICOM, which says whose it is), `case` (by default named as `find_cases` does), `slice`, `organ`,
    `mask` (it scores, and nothing else) and `split` (training, validation or test; rows without are drawn). Others are
    left out; so are empty columns, empty rows, and rows whose first cell begins with `#`.

    With a number in `slice`, a row is one axial slice of its image. Each slice has one row then, counted along the body
    from the lowest up, whatever the order in the file (of DICOM by position, not by InstanceNumber).

    Args:
        path: the table.
        dataset_dir: folder that paths are relative to; by default that of the table.
        modalities: which of the columns `image_<modality>`, or `<modality>`, in which order; by default all.
        classes, positive_from, multi_label: see `common.datasets.labels.parse_labels`.
        first_slice: number of the first slice.
        slices_from: `top`: slices count from the highest down.

    Returns:
        Cases with absolute paths in the order of the table, class names, and names of the modalities.

    Raises:
        FileNotFoundError: the table or a file that it names does not exist.
        ValueError: a text that is empty, unclear, or contradicts others. Messages name row and column.
    """
    path = Path(path)
    root = Path(dataset_dir or path.parent).absolute()
    if slices_from not in ("bottom", "top"):
        raise ValueError(f"slices_from must be 'bottom' or 'top'; got {slices_from!r}.")
    columns, rows = read_labeled_rows(path)
    images = image_columns(columns, modalities, path)
    check_columns(columns, images, path)
    texts = [(row.at("label"), row["label"]) for row in rows]
    labels, names = parse_labels(texts, path, classes=classes, positive_from=positive_from, multi_label=multi_label)
    for row, cls in zip(rows, labels, strict=True):
        row.cls = cls
    find_files(rows, list(images), root, path)
    groups = _groups(rows, list(images), path)
    _check_copies(groups, list(images), path)
    cases = _named(groups, list(images), root, path)
    numbers = (first_slice, slices_from == "top")
    for case, group in zip(cases, groups, strict=True):
        paths = [str(group[0].files[column]) for column in images]
        case["image"] = paths[0] if len(paths) == 1 else paths
        for key, column in (("label", "mask"), ("organ", "organ")):
            files = [str(row.files[column]) for row in group if column in row.files]
            case |= {key: files[0]} if files else {}
        case["cls"] = _by_slice(group, paths[0], *numbers, path) if group[0]["slice"] else group[0].cls
    _check_sections(cases, groups, path)
    return cases, names, tuple(images.values())


def _groups(rows: Sequence[Row], images: Sequence[str], path: Path) -> list[list[Row]]:
    """Rows of each case: one, or those of the slices of one image; checked to agree."""
    groups: dict[tuple, list[Row]] = {}
    problems = []
    for row in rows:
        files = tuple(row.files[column] for column in images)
        if row["slice"] and isinstance(row.cls, list):
            problems.append(f"{row.at('label')}: several labels at once are for whole cases, not for slices")
        groups.setdefault((*files, "slices" if row["slice"] else row.number), []).append(row)
    owner: dict[str, tuple[Row, str]] = {}
    for group in groups.values():
        row = group[0]
        problems += _roles(row, images)
        for column in images:
            first, of = owner.setdefault(os.path.realpath(row.files[column]), (row, column))
            if (first, of) != (row, column):
                problems.append(f"{row.at(column)}: {row[column]} is the image of {first.at(of)} as well")
        for column in _SHARED:
            given = [other for other in group if other[column]]
            problems += [
                f"{other.at(column)}: {other[column]!r}, but {given[0][column]!r} in row {given[0].number}; rows of "
                "one image must agree"
                for other in given
                if other[column] != given[0][column]
            ]
            for other in given[:1]:
                row.texts.setdefault(column, other[column])
    refuse(path, problems)
    return list(groups.values())


def _check_copies(groups: Sequence[Sequence[Row]], images: Sequence[str], path: Path) -> None:
    """Warn of files of several cases that hold the same; refuse them where labels contradict each other."""
    sizes: dict[int, list[tuple[Row, str]]] = {}
    for row, *_ in groups:
        for column in images:
            if row.files[column].is_file() and (size := row.files[column].stat().st_size):
                sizes.setdefault(size, []).append((row, column))
    first: dict[bytes, tuple[Row, str]] = {}
    copies: list[str] = []
    problems: list[str] = []
    for row, column in (one for alike in sizes.values() if len(alike) > 1 for one in alike):
        other, of = first.setdefault(_glance(row.files[column]), (row, column))
        if other is row or file_digest(row.files[column]) != file_digest(other.files[of]):
            continue
        said = f"{row.at(column)}: {row[column]} is a copy of {other[of]} in row {other.number}"
        whole = not (row["slice"] or other["slice"])
        (problems if whole and row.cls != other.cls else copies).append(said)
    refuse(path, [f"{said}, which is labeled otherwise" for said in problems])
    if copies:
        logger.warning("%s: %d image(s) are in the table twice, e.g. %s", path, len(copies), copies[0])


def _glance(file: Path) -> bytes:
    """Digest of a file's beginning and end, which rarely are those of another one."""
    with open(file, "rb") as opened:
        start = opened.read(1 << 16)
        opened.seek(-min(file.stat().st_size, 1 << 12), os.SEEK_END)
        return hashlib.sha256(start + opened.read()).digest()


def _roles(row: Row, images: Sequence[str]) -> Iterator[str]:
    """What is wrong with a row that names one file twice: a mask that is the image would mark all of it."""
    named: dict[str, str] = {}
    for column in (*images, "organ", "mask"):
        if column in row.files:
            other = named.setdefault(os.path.realpath(row.files[column]), column)
            if other != column and not {other, column} <= {*images}:
                yield f"{row.at(column)}: {row[column]} is in column {other!r}, too"


def same_person(text: str) -> str:
    """A patient's name without what typing and spreadsheets change: case, blanks, zeros in front, `.0` behind."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^(\d+)\.0+$", r"\1", plain))


def _named(groups: Sequence[Sequence[Row]], images: Sequence[str], root: Path, path: Path) -> list[Case]:
    """Cases with their names and patients."""
    found = listed(root, [group[0].files[images[0]] for group in groups])
    short = case_names([match for match, group in zip(found, groups, strict=True) if not group[0]["case"]])
    has_patients = any(group[0]["patient"] for group in groups)
    cases: list[Case] = []
    problems: list[str] = []
    owner: dict[str, int] = {}
    of_id: dict[str, str] = {}
    people: dict[str, tuple[str, int]] = {}
    for match, (row, *_) in zip(found, groups, strict=True):
        name = row["case"] or short[match]
        if _NO_NAME.search(name):
            problems.append(f"{row.at('case')}: {name!r} cannot be the name of files; use letters, digits, '-' and '_'")
        if owner.setdefault(name, row.number) != row.number:
            problems.append(
                f"row {row.number}: the case name {name!r} is that of row {owner[name]} as well; name cases in a "
                "column 'case'"
            )
        if has_patients and not row["patient"]:
            problems.append(f"{row.at('patient')}: empty, but other rows have one")
        written, number = people.setdefault(same_person(row["patient"]), (row["patient"], row.number))
        if written != row["patient"]:
            problems.append(
                f"{row.at('patient')}: {row['patient']!r} and {written!r} in row {number} seem to be one patient; "
                "write both alike, or name two people apart"
            )
        # Without the column, a DICOM series says whose it is.
        patient = row["patient"] or (of_id.setdefault(match.patient, name) if match.patient else name)
        cases.append({"case": name, "patient": patient})
    organs = [group[0] for group in groups if group[0]["organ"]]
    problems += [f"{g[0].at('organ')}: empty, but other rows have one" for g in groups if organs and not g[0]["organ"]]
    refuse(path, problems)
    if not has_patients and len({case["patient"] for case in cases}) == len(cases) > 1:
        logger.warning("%s: no column 'patient', so each case counts as a patient of its own", path)
    return cases


def _by_slice(group: Sequence[Row], image: str, first: int, from_top: bool, path: Path) -> list[int]:
    """Labels of all slices of a case, from bottom to top."""
    numbers: dict[int, Row] = {}
    problems = []
    for row in group:
        slice_number = re.fullmatch(r"(\d+)([.,]0+)?", row["slice"])
        if not slice_number:
            problems.append(f"{row.at('slice')}: {row['slice']!r} is no whole number")
        elif (other := numbers.setdefault(int(slice_number[1]), row)) is not row:
            problems.append(f"{row.at('slice')}: {row['slice']} is in row {other.number} as well")
    refuse(path, problems)
    try:
        shape, affine = read_grid(image)
    except ValueError as error:
        raise ValueError(f"{path}: row {group[0].number}: its slices cannot be counted: {error}") from error
    depth = in_axes_of(np.broadcast_to(0, shape), affine, np.eye(4))[0].shape[2]
    wanted = range(first, first + depth)
    lacking = [n for n in wanted if n not in numbers]
    more = [n for n in sorted(numbers) if n not in wanted]
    if lacking or more:
        rows = f"rows {group[0].number} to {group[-1].number}, column 'slice'"
        what = [f"{word} {_some(some)}" for word, some in (("without a row:", lacking), ("not there:", more)) if some]
        shifted = len(numbers) == depth == max(numbers) - min(numbers) + 1
        hint = f"; does the table count from {min(numbers)}? --first_slice {min(numbers)}" if shifted else ""
        raise ValueError(f"{path}: {rows}: {image} has slices {first} to {wanted[-1]}; {', '.join(what)}{hint}")
    labels = [row.cls for _, row in sorted(numbers.items(), reverse=from_top)]
    return [cls for cls in labels if isinstance(cls, int)]


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f", … ({len(numbers)})" if len(numbers) > 5 else "")


def _check_sections(cases: Sequence[Case], groups: Sequence[Sequence[Row]], path: Path) -> None:
    """Give cases the section that `split` names; all cases of a patient have one, or none."""
    problems = []
    owner: dict[str, tuple[Row, str]] = {}
    for case, (row, *_) in zip(cases, groups, strict=True):
        if not row["split"]:
            continue
        section = _SECTIONS.get(row["split"].lower(), "")
        if not section:
            problems.append(f"{row.at('split')}: {row['split']!r}; expected training, validation or test, or nothing")
            continue
        case["section"] = section
        first, other = owner.setdefault(case["patient"], (row, section))
        if section != other:
            problems.append(
                f"{row.at('split')}: patient {case['patient']!r} is in {section} here, and in {other} in row "
                f"{first.number}"
            )
    refuse(path, problems)
