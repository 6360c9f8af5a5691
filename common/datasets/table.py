"""Labels from a table that people keep in a spreadsheet: one row a case, or one row a slice."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..data import Case
from ..data.find import case_names
from ..data.matches import Match, listed
from ..files import PathLike
from ..images import in_axes_of, read_grid
from .copies import check_copies, check_masks, roles
from .headers import check_headers
from .labels import parse_labels, refuse
from .people import patients_of
from .rows import SECTIONS, Row, check_columns, find_files, image_columns, read_labeled_rows
from .sides import parse_side
from .words import NO

_SHARED = ("case", "patient", "side", "organ", "mask", "split")  # of all rows of a case
_NO_NAME = re.compile(r"^\.|[/\\:*?\"<>|\x00-\x1f]")  # what a name of files cannot hold on any system


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
    patients_as_written: bool = False,
) -> tuple[list[Case], tuple[str, ...], tuple[str, ...]]:
    """Read a table of images and labels (`.csv`, `.tsv`, `.xlsx`).

    Columns, in any order: `image` (a file, the folder of a DICOM series, or `<folder>/<SeriesInstanceUID>`), or one
    `image_<modality>` a modality; `label`; and, where there are any, `patient` (cases without it are patients of their
    own, but for DICOM, which says whose it is), `case` (by default named as `find_cases` does), `side` (left, right or
    both, of a positive case; see `common.datasets.sides`), `slice`, `organ`, `mask` (it scores, and nothing else) and
    `split` (training, validation or test; rows without are drawn). Others are left out; so are empty columns, empty
    rows, and rows whose first cell begins with `#`.

    With a number in `slice`, a row is one axial slice of its image. Each slice has one row then, counted along the body
    from the lowest up, whatever the order in the file (of DICOM by position, not by InstanceNumber).

    Args:
        path: the table.
        dataset_dir: folder that paths are relative to; by default that of the table.
        modalities: which of the columns `image_<modality>`, or `<modality>`, in which order; by default all.
        classes, positive_from, multi_label: see `common.datasets.labels.parse_labels`.
        first_slice: number of the first slice.
        slices_from: `top`: slices count from the highest down.
        patients_as_written: patients are as the column says: no error where it seems to write one in two ways, or
            where two have series of one PatientID.

    Returns:
        Cases with absolute paths in the order of the table, class names, and names of the modalities.

    Raises:
        FileNotFoundError: the table or a file that it names does not exist.
        ValueError: a text that is empty, unclear, or contradicts others. Messages name row and column.
    """
    path = Path(path)
    root = Path(os.path.abspath(dataset_dir or path.parent))  # no ".." in it, as in its files: names come from them
    if slices_from not in ("bottom", "top"):
        raise ValueError(f"slices_from must be 'bottom' or 'top'; got {slices_from!r}.")
    columns, rows = read_labeled_rows(path)
    images = image_columns(columns, modalities, path)
    check_columns(columns, images, rows, path)
    texts = [(row.at("label"), row["label"]) for row in rows]
    labels, found_classes = parse_labels(
        texts, path, classes=classes, positive_from=positive_from, multi_label=multi_label
    )
    for row, cls in zip(rows, labels, strict=True):
        row.cls = cls
    scans = list(images)
    find_files(rows, scans, root, path)
    groups = _groups(rows, scans, path)
    firsts = [group[0] for group in groups]
    copies = check_copies(groups, scans, path)
    check_masks(firsts, scans, copies, path)
    image = scans[0]
    found = listed(root, [row.files[image] for row in firsts])
    names = _names(firsts, found, path)
    ids = [match.patient for match in found]
    patients = patients_of(firsts, names, ids, path, image=image, copies=copies, as_written=patients_as_written)
    check_headers(firsts, scans, path)
    cases: list[Case] = []
    for group, name, patient in zip(groups, names, patients, strict=True):
        row = group[0]
        paths = [str(row.files[column]) for column in scans]
        case: Case = {"case": name, "patient": patient, "image": paths[0] if len(paths) == 1 else paths}
        case |= {key: str(row.files[c]) for key, c in (("label", "mask"), ("organ", "organ")) if c in row.files}
        case["cls"] = _by_slice(group, paths[0], first_slice, slices_from == "top", path) if row["slice"] else row.cls
        cases.append(case)
    _name_sides(cases, groups, path)
    _check_sections(cases, groups, path)
    return cases, found_classes, tuple(images.values())


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
        problems += roles(row, images)
        for column in images:
            first, of = owner.setdefault(os.path.realpath(row.files[column]), (row, column))
            if (first, of) != (row, column):
                problems.append(f"{row.at(column)}: {row[column]} is the image of {first.at(of)} as well")
        problems += _join(group)
    refuse(path, problems)
    return list(groups.values())


def _join(group: Sequence[Row]) -> list[str]:
    """Give a case's first row what any row says of the whole case; returns where two contradict each other."""
    problems = []
    for column in _SHARED:
        first = next((row for row in group if row[column]), None)
        if first is None:
            continue
        problems += [
            f"{row.at(column)}: {row[column]!r}, but {first[column]!r} in row {first.number}; rows of one image must "
            "agree"
            for row in group
            if row[column] not in ("", first[column])
        ]
        group[0].texts.setdefault(column, first[column])
        if column in first.files:
            group[0].files[column] = first.files[column]
    return problems


def _names(rows: Sequence[Row], found: Sequence[Match], path: Path) -> list[str]:
    """Names of cases, all different; `rows` are one of each."""
    short = case_names([match for match, row in zip(found, rows, strict=True) if not row["case"]])
    names = [row["case"] or short[match] for match, row in zip(found, rows, strict=True)]
    problems: list[str] = []
    owner: dict[str, int] = {}
    for name, row in zip(names, rows, strict=True):
        if _NO_NAME.search(name):
            problems.append(f"{row.at('case')}: {name!r} cannot be the name of files; use letters, digits, '-' and '_'")
        if owner.setdefault(name, row.number) != row.number:
            problems.append(
                f"row {row.number}: the case name {name!r} is that of row {owner[name]} as well; name cases in a "
                "column 'case'"
            )
    organs = any(row["organ"] for row in rows)
    problems += [f"{row.at('organ')}: empty, but other rows have one" for row in rows if organs and not row["organ"]]
    refuse(path, problems)
    return names


def _by_slice(group: Sequence[Row], image: str, first: int, from_top: bool, path: Path) -> list[int]:
    """Labels of all slices of a case, from bottom to top."""
    numbers = _by_number(group, path)
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


def _by_number(group: Sequence[Row], path: Path) -> dict[int, Row]:
    """The row of each slice."""
    numbers: dict[int, Row] = {}
    problems = []
    for row in group:
        slice_number = re.fullmatch(r"(\d+)([.,]0+)?", row["slice"])
        if not slice_number:
            problems.append(f"{row.at('slice')}: {row['slice']!r} is no whole number")
        elif (other := numbers.setdefault(int(slice_number[1]), row)) is not row:
            problems.append(f"{row.at('slice')}: {row['slice']} is in row {other.number} as well")
    refuse(path, problems)
    return numbers


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f", … ({len(numbers)})" if len(numbers) > 5 else "")


def _name_sides(cases: Sequence[Case], groups: Sequence[Sequence[Row]], path: Path) -> None:
    """Give positive cases the side that `side` names, where there is such a column."""
    problems = []
    given = any(group[0]["side"] for group in groups)
    for case, (row, *more) in zip(cases, groups, strict=True) if given else ():
        if not any(one.cls for one in (row, *more)):
            if row["side"].lower() not in ("", *NO):
                problems.append(f"{row.at('side')}: {row['side']!r}, but the label says that nothing is there")
            continue
        try:
            case["finding_side"] = parse_side(row["side"])
        except ValueError as error:
            problems.append(f"{row.at('side')}: {error if row['side'] else 'empty, but other rows have one'}")
    refuse(path, problems)


def _check_sections(cases: Sequence[Case], groups: Sequence[Sequence[Row]], path: Path) -> None:
    """Give cases the section that `split` names; all cases of a patient have one, or none."""
    problems = []
    owner: dict[str, tuple[Row, str]] = {}
    for case, (row, *_) in zip(cases, groups, strict=True):
        if not row["split"]:
            continue
        section = SECTIONS.get(row["split"].lower(), "")
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
