"""Whose the cases of a table are: its column `patient`, or the PatientID of DICOM series; and doubts about either."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.matches import some
from .labels import refuse
from .rows import Row
from .words import NOBODY, as_seen

_SIGNS = r"[\s._/-]+"
_GO_ON = "if they are two people, name them apart, or go on with --patients_as_written"

logger = logging.getLogger(__name__)


def same_person(text: str) -> str:
    """A patient's name without what typing and spreadsheets change.

    Case, blanks and signs between words, what no screen shows, zeros in front, `.0` or `,0` behind.

    Example:
        `P 7`, `p_07` and `P-7` are one; `12-3` and `1-23` are two.
    """
    plain = re.sub(r"^(\d+)(\.0+|,00?)$", r"\1", unicodedata.normalize("NFKC", as_seen(text)).casefold())
    plain = re.sub(rf"(?<=\d){_SIGNS}(?=\d)", "-", plain)
    plain = re.sub(rf"(?<!\d){_SIGNS}|{_SIGNS}(?!\d)", "", plain)
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def patients_of(
    rows: Sequence[Row],
    names: Sequence[str],
    ids: Sequence[str],
    path: Path,
    *,
    image: str,
    copies: Mapping[int, int],
    as_written: bool = False,
) -> list[str]:
    """The patient of each case: as the column says, else by PatientID, else each of its own.

    Args:
        rows: one of each case.
        names: of the cases.
        ids: PatientID of each, empty where there is none; only compared.
        path: the table, for messages.
        image: the column of images.
        copies: numbers of cases that hold the image of an earlier one, and of that one.
        as_written: two ways to write one patient, and one PatientID of two patients, are no error.

    Raises:
        ValueError: a patient is missing, written in two ways, or one PatientID is of two.
    """
    if any(row["patient"] for row in rows):
        check_people(rows, path, as_written=as_written, advice=f"; {_GO_ON}")
        if not as_written:
            _check_ids(rows, ids, path, image)
        return [row["patient"] for row in rows]
    first: dict[str, str] = {}
    patients = [first.setdefault(one, name) if one else name for one, name in zip(ids, names, strict=True)]
    for number, earlier in copies.items():
        patients = [patients[earlier] if patient == patients[number] else patient for patient in patients]
    own = [row.files[image] for row, one in zip(rows, ids, strict=True) if not one]
    if len(own) > 1 and len(set(patients)) == len(patients):
        shared = _shared_folders(own)
        more = f"; images of one folder may be of one patient: {some(shared, 5)}" if shared else ""
        logger.warning("%s: no column 'patient', so each case counts as a patient of its own%s", path, more)
    return patients


def check_people(rows: Sequence[Row], path: Path, *, as_written: bool = False, advice: str = "") -> None:
    """Each row has a patient, written in one way: under two names one would come to lie in two sections.

    Args:
        rows: with a column `patient`.
        path: the table, for messages.
        as_written: two ways to write one patient are no error.
        advice: what else to do about these.

    Raises:
        ValueError: naming the rows.
    """
    people: dict[str, Row] = {}
    problems = []
    for row in rows:
        if not row["patient"] or row["patient"].lower() in NOBODY:
            nobody = (
                f"{row['patient']!r} names nobody; write who it is"
                if row["patient"]
                else "empty, but other rows have one"
            )
            problems.append(f"{row.at('patient')}: {nobody}")
            continue
        other = people.setdefault(same_person(row["patient"]), row)
        if other["patient"] != row["patient"] and not as_written:
            problems.append(
                f"{row.at('patient')}: {row['patient']!r} and {other['patient']!r} in row {other.number} seem to be "
                f"one patient; write both alike{advice}"
            )
    refuse(path, problems)


def _check_ids(rows: Sequence[Row], ids: Sequence[str], path: Path, image: str) -> None:
    first: dict[str, Row] = {}
    problems = []
    for row, one in zip(rows, ids, strict=True):
        other = first.setdefault(one, row) if one else row
        if other["patient"] != row["patient"]:
            problems.append(
                f"{row.at('patient')}: {row['patient']!r}, but {row[image]} has the PatientID of {other[image]} in row "
                f"{other.number}, whose patient is {other['patient']!r}; {_GO_ON}"
            )
    if problems and len(first) == 1:  # as after anonymization
        logger.warning("%s: all DICOM series have one PatientID, so the column 'patient' alone counts", path)
        return
    refuse(path, problems)


def _shared_folders(files: Sequence[Path]) -> list[str]:
    """The innermost folders that hold two or more of the images, but not all of them, with how many."""
    home = os.path.commonpath([file.parent for file in files])
    above = [[folder for folder in file.relative_to(home).parents if folder.name] for file in files]
    count = Counter(folder for folders in above for folder in folders)
    inner = Counter(next((f for f in folders if count[f] > 1), Path()) for folders in above)
    return [f"{folder} ({count[folder]})" for folder in inner if folder.name]
