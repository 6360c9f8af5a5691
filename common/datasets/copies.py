"""Files that two cases of a table share, or that hold the same: one image, or one mask, of two cases."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..files import file_digest, glance
from ..images import is_dicom
from ..images.dicom_files import Header, first_scan
from ..images.sources import files_of
from .labels import refuse, whole_number
from .rows import Row

logger = logging.getLogger(__name__)


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
    marks: dict[Hashable, list[tuple[int, str]]] = {}
    for number, (row, *_) in enumerate(groups):
        for column in images:
            marks.setdefault(_mark(row.files[column]), []).append((number, column))
    first: dict[Hashable, tuple[int, str]] = {}
    contents: dict[Path, list[str]] = {}
    pairs: dict[int, int] = {}
    copies: list[str] = []
    problems: list[str] = []
    for number, column in (one for mark, alike in marks.items() if mark and len(alike) > 1 for one in alike):
        row = groups[number][0]
        earlier, of = first.setdefault(_look(row.files[column]), (number, column))
        other = groups[earlier][0]
        if earlier == number:
            continue
        for file in (row.files[column], other.files[of]):
            contents[file] = contents.get(file) or _content(file)
        if contents[row.files[column]] != contents[other.files[of]]:
            continue
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


def _mark(file: Path) -> Hashable:
    """What copies of an image have in common: a series, length and checksum of what is packed, or a size.

    The same image packed twice is two files: the `.gz` around it says when that was, and under which name.
    """
    if is_dicom(file):
        return ("series", file.name if not file.is_dir() else (first_scan(file) or Header()).series)
    if _packed(file):
        with open(file, "rb") as stream:
            stream.seek(-min(8, file.stat().st_size), os.SEEK_END)
            return stream.read()
    return sum(part.stat().st_size for part in files_of(file))


def _look(file: Path) -> Hashable:
    """The same, of those whose sizes are alike."""
    return _mark(file) if is_dicom(file) or _packed(file) else tuple(map(glance, files_of(file)))


def _content(file: Path) -> list[str]:
    """SHA-256 of what an image holds, a file each; those of a series are in no order."""
    if _packed(file):
        with suppress(OSError, EOFError, zlib.error):  # else a damaged one, as it is
            return [file_digest(file, unpack=True)]
    return sorted(map(file_digest, files_of(file))) if is_dicom(file) else [*map(file_digest, files_of(file))]


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
