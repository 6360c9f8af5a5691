"""Files that two cases share, or that hold the same: one image, or one mask, of two cases."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from ..data import Case
from ..files import file_digest, glance
from ..images import is_dicom
from ..images.dicom_files import Header, first_scan
from ..images.sources import files_of
from .labels import refuse, whole_number
from .rows import Row

logger = logging.getLogger(__name__)
Parts = Callable[[Path], Sequence[Path]]


def roles(row: Row, images: Sequence[str]) -> Iterator[str]:
    """What is wrong with a row that names one file twice: a mask that is the image would mark all of it."""
    named: dict[str, str] = {}
    for column in (*images, "organ", "mask"):
        if column in row.files:
            other = named.setdefault(os.path.realpath(row.files[column]), column)
            if other != column and not {other, column} <= {*images}:
                yield f"{row.at(column)}: {row[column]} is in column {other!r}, too"


def check_copies(groups: Sequence[Sequence[Row]], images: Sequence[str], path: Path) -> dict[int, int]:
    """Find images of several cases that hold the same; warn of them.

    Args:
        groups: rows of each case.
        images: columns.
        path: the table, for messages.

    Returns:
        The numbers of cases that hold an image of an earlier one, and the number of that one.

    Raises:
        ValueError: their labels contradict each other, or they are of two patients.
    """
    pairs: dict[int, int] = {}
    copies: list[str] = []
    problems: list[str] = []
    for number, i, earlier, k in find_copies([[row.files[column] for column in images] for row, *_ in groups]):
        row, other, column, of = groups[number][0], groups[earlier][0], images[i], images[k]
        said = f"{row.at(column)}: {row[column]} is a copy of {other[of]} in row {other.number}"
        pairs[number] = earlier
        if _contradict(groups[number], groups[earlier]):
            problems.append(f"{said}, which is labeled otherwise")
        elif row["patient"] and other["patient"] and row["patient"] != other["patient"]:
            problems.append(f"{said}, which is of patient {other['patient']!r}: one image is of one patient")
        else:
            copies.append(said)
    refuse(path, problems)
    if copies:
        logger.warning("%s: %d image(s) are in the table twice, e.g. %s", path, len(copies), copies[0])
    return pairs


def with_copies_together(cases: Sequence[Case]) -> list[Case]:
    """Cases of which those whose images hold the same are one patient's, of the first of them, with a warning.

    Otherwise one could lie among the test cases, and the other among those that were trained on. Masks that mark the
    same in images of two patients are told, too: a mask of another case lies on the grid as well as the right one.

    Args:
        cases: as adapters return them.
    """
    owner = _owners(cases)
    found = [case | {"patient": owner[case["patient"]]} for case in cases]
    _say_masks_of_others(found)
    return found


def _owners(cases: Sequence[Case]) -> dict[Hashable, Hashable]:
    """By each patient the one whose its cases are: the first of those who share an image."""
    files = [[Path(one) for one in np.atleast_1d(case["image"])] for case in cases]
    owner = {case["patient"]: case["patient"] for case in cases}
    copies = []
    for number, i, earlier, k in find_copies(files):
        mine, other = owner[cases[number]["patient"]], owner[cases[earlier]["patient"]]
        if mine != other:
            copies.append(f"{files[number][i]} is a copy of {files[earlier][k]}, of patient {other!r}")
            owner |= {patient: other for patient, one in owner.items() if one == mine}
    if copies:
        logger.warning("%d image(s) are there twice, and their cases now of one patient: %s", len(copies), copies[0])
    return owner


def _say_masks_of_others(cases: Sequence[Case]) -> None:
    # Empty masks are all alike.
    marked = [case for case in cases if "label" in case and any(np.atleast_1d(case.get("cls", 0)))]
    masks = [Path(case["label"]) for case in marked]
    pairs = [(n, k) for n, _, k, _ in find_copies([[mask] for mask in masks])]
    if others := [(n, k) for n, k in pairs if marked[n]["patient"] != marked[k]["patient"]]:
        n, k = others[0]
        logger.warning(
            "%d mask(s) are those of other patients: %s holds the same as %s", len(others), masks[n], masks[k]
        )


def find_copies(images: Sequence[Sequence[Path]]) -> Iterator[tuple[int, int, int, int]]:
    """Images of different cases that hold the same: number of a case, of its image, of an earlier case, of its image.

    Args:
        images: files of each case, see `common.images.read_volume`.
    """
    parts = cache(files_of)
    marks: dict[Hashable, list[tuple[int, int]]] = {}
    found = [(number, i, file, _mark(file, parts)) for number, some in enumerate(images) for i, file in enumerate(some)]
    lengths = {mark[4:] for *_, mark in found if isinstance(mark, bytes)}
    for number, i, file, mark in found:
        marks.setdefault(_as_packed(file, mark, lengths), []).append((number, i))
    first: dict[Hashable, tuple[int, int]] = {}
    content = cache(lambda file: _content(file, parts))
    for mark, number, i in [(mark, *one) for mark, some in marks.items() if mark and len(some) > 1 for one in some]:
        file = images[number][i]
        look = tuple(map(glance, parts(file))) if isinstance(mark, int) else mark
        earlier, k = first.setdefault(look, (number, i))
        if earlier != number and content(file) == content(images[earlier][k]):
            yield number, i, earlier, k


def _mark(file: Path, parts: Parts) -> Hashable:
    """What copies of an image have in common: a series, length and checksum of what is packed, or a size.

    The same image packed twice is two files: the `.gz` around it says when that was, and under which name.
    """
    if is_dicom(file):
        return ("series", file.name if not file.is_dir() else (first_scan(file) or Header()).series)
    if not file.is_file():  # a link to nothing: named where it is read
        return None
    if _packed(file):
        with open(file, "rb") as stream:
            stream.seek(-min(8, file.stat().st_size), os.SEEK_END)
            return stream.read()
    return sum(part.stat().st_size for part in parts(file))


def _as_packed(file: Path, mark: Hashable, lengths: Container[bytes]) -> Hashable:
    """The mark of a `.nii` that is as long as what a `.nii.gz` holds, as if it were packed; else the mark as it is."""
    if not isinstance(mark, int) or file.suffix.lower() != ".nii":
        return mark
    length = (mark % 2**32).to_bytes(4, "little")
    if length not in lengths:
        return mark
    checksum = 0
    with open(file, "rb") as stream:
        while part := stream.read(2**20):
            checksum = zlib.crc32(part, checksum)
    return checksum.to_bytes(4, "little") + length


def _content(file: Path, parts: Parts) -> list[str]:
    """SHA-256 of what an image holds, a file each; those of a series are in no order."""
    if _packed(file):
        with suppress(OSError, EOFError, zlib.error):  # else a damaged one, as it is
            return [file_digest(file, unpack=True)]
    found = [*map(file_digest, parts(file))]
    return sorted(found) if is_dicom(file) else found


def _packed(file: Path) -> bool:
    """Whether a file is packed, and the only one of its image."""
    return file.name.lower().endswith(".nii.gz")


def _contradict(group: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether labels of one image cannot both be right, each of the whole or one a slice."""
    if group[0]["slice"] and other[0]["slice"]:
        labels = {whole_number(row["slice"]): row.cls for row in group}
        return any(labels.get(whole_number(row["slice"]), row.cls) != row.cls for row in other)
    if not (group[0]["slice"] or other[0]["slice"]):
        return group[0].cls != other[0].cls
    slices, whole = (group, other[0].cls) if group[0]["slice"] else (other, group[0].cls)
    found = [row.cls for row in slices if row.cls]
    return whole not in found if whole else bool(found)


def check_masks(rows: Sequence[Row], images: Sequence[str], copies: Mapping[int, int], path: Path) -> None:
    """Refuse a mask that is a file of another case, unless both cases hold one image.

    One organ's mask may be that of all cases, as it is where scans lie in the space of a template.

    Args:
        rows: one of each case.
        images: columns.
        copies: see `check_copies`.
        path: the table, for messages.

    Raises:
        ValueError: naming both rows.
    """
    template = len({os.path.realpath(row.files["organ"]) for row in rows if "organ" in row.files}) == 1
    owner = {os.path.realpath(row.files[column]): (n, column) for n, row in enumerate(rows) for column in images}
    problems = []
    for number, row in enumerate(rows):
        for column in [column for column in ("organ", "mask") if column in row.files]:
            owned, of = owner.setdefault(os.path.realpath(row.files[column]), (number, column))
            if owned not in (number, copies.get(number)) and not (template and column == of == "organ"):
                problems.append(
                    f"{row.at(column)}: {row[column]} is that of {rows[owned].at(of)} as well; each case has a file of "
                    "its own"
                )
    refuse(path, problems)
