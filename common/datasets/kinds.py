"""The kind of each case from a table, e.g. a grade: what a mask marks, and does not name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import Case
from ..data.matches import some
from ..data.splits import signs_of
from ..files import PathLike
from .labels import found_kinds, parse_labels, refuse, whole_number
from .people import check_people
from .rows import ERRORS, Row, held, read_labeled_rows

logger = logging.getLogger(__name__)


def with_kinds(
    cases: Sequence[Case],
    path: PathLike,
    *,
    column: str = "kind",
    classes: Sequence[str] | None = None,
    root: PathLike | None = None,
) -> tuple[list[Case], tuple[str, ...]]:
    """Give findings the kind that a table says of their case: labels that are positive get its class, others stay 0.

    A row is of a case by its name (column `case`), or of all cases of a patient (column `patient`, without `case`);
    with both columns, it says whose the case is. Kinds are names or grades. No other column is read.

    Args:
        cases: with `cls` from 0, for the volume or a slice; those without `cls` stay as they are.
        path: the table, as `read_rows` reads it.
        column: holds the kinds.
        classes: names, the negative one first; by default `none` and the kinds of these cases, grades by size, names
            by the alphabet.
        root: folder of the data; rows of a case that has a folder there, but was not read, are told, and no error.

    Returns:
        The cases whose kind is known, and the class names. A warning names the others.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is missing, a row is of no case, two contradict each other, a kind is not among `classes`,
            or none though there is a finding, naming row and column; or no case is left.

    Example:
        `cls` of `[0, 1, 1]` and `[1, 0, 0]`, of cases of grade 3 and 2, become `[0, 2, 2]` and `[1, 0, 0]`, and the
        classes are `("none", "2", "3")`.
    """
    path, column = Path(path), column.lower()
    columns, rows = read_labeled_rows(path, holds=f"a case and its {column}")
    key = _key(columns, column, path)
    by_name = _by_name(rows, key, column, path)
    _check_there(by_name, key, {str(case[key]) for case in cases}, root, path)
    chosen = _with_rows(cases, by_name, key, column, path)
    known = [*{row.number: row for _, row in chosen}.values()]
    labels, names = _classes(known, column, classes, path)
    if key == "case" and "patient" in columns:
        check_people(known, path)
        chosen = [(case | {"patient": row["patient"]}, row) for case, row in chosen]
    wrong = [(c, r) for c, r in chosen if labels[r.number] == 0 and "cls" in c and True in signs_of(c["cls"])]
    refuse(path, [f"{r.at(column)}: {r[column]!r}, but case {c['case']!r} holds a finding" for c, r in wrong])
    return [case | _label(case, labels[row.number]) for case, row in chosen], names


def _key(columns: dict[str, str], column: str, path: Path) -> str:
    """The column that says of whom a row is."""
    key = "patient" if "patient" in columns and "case" not in columns else "case"
    lacking = next((name for name in (key, column) if name not in columns), None)
    if lacking is not None:
        other = "; --kind names another" if lacking == column else ""
        raise ValueError(f"{path}: the column {lacking!r} is missing{other}; {held(columns, lacking)}")
    return key


def _by_name(rows: Sequence[Row], key: str, column: str, path: Path) -> dict[str, Row]:
    """The row of each case, or patient."""
    refuse(path, [f"{row.at(key)}: empty" for row in rows if not row[key]])
    refuse(path, [f"{r.at(column)}: {r[column]!r} is a spreadsheet's error" for r in rows if r[column] in ERRORS])
    found: dict[str, Row] = {}
    problems = []
    for row in rows:
        first = found.setdefault(row[key], row)
        if first[column] != row[column]:
            problems.append(
                f"{row.at(column)}: {row[column]!r}, but {first[column]!r} in row {first.number}; {key} {row[key]!r} "
                "has one"
            )
        elif key == "case" and first is not row:
            problems.append(f"{row.at(key)}: {row[key]!r} is in row {first.number}, too")
    refuse(path, problems)
    return found


def _check_there(by_name: dict[str, Row], key: str, there: set[str], root: PathLike | None, path: Path) -> None:
    absent = [name for name in by_name if name not in there]
    unread = [name for name in absent if root is not None and Path(root, name).is_dir()]
    problems = []
    for name in absent:
        if name not in unread:
            near = difflib.get_close_matches(name, there, 1)
            meant = f"; is {near[0]!r} meant?" if near else ""
            problems.append(f"{by_name[name].at(key)}: the data have no {key} {name!r}{meant}")
    refuse(path, problems)
    if unread:
        logger.warning("%s: %d row(s) of a %s without such images: %s", path, len(unread), key, some(unread))


def _with_rows(
    cases: Sequence[Case], by_name: dict[str, Row], key: str, column: str, path: Path
) -> list[tuple[Case, Row]]:
    """The cases whose kind is known, each with its row; a warning names the others."""
    chosen = [(case, row) for case in cases if (row := by_name.get(str(case[key]))) and row[column]]
    if not chosen:
        raise ValueError(f"{path}: no case of the data has a text in the column {column!r}.")
    known = {case["case"] for case, _ in chosen}
    left = [str(case["case"]) for case in cases if case["case"] not in known]
    if left:
        logger.warning("%s: %d case(s) left out, without a %s: %s", path, len(left), column, some(left))
    return chosen


def _classes(
    rows: Sequence[Row], column: str, classes: Sequence[str] | None, path: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class of each row, by its number, and the names of all."""
    texts = [(row.at(column), row[column]) for row in rows]
    refuse(path, [f"{place}: {text!r} names several; a case has one kind" for place, text in texts if ";" in text])
    names = tuple(classes) if classes else ("none", *found_kinds(texts, path))
    if len(names) < 2:
        raise ValueError(f"{path}: the column {column!r} names no kind; {rows[0].at(column)}: {rows[0][column]!r}.")
    # A kind is named: where grades are classes, the number of a class would be taken for a grade.
    numbers = [(place, text) for place, text in texts if (n := whole_number(text)).isdecimal() and n != "0"]
    wrong = [(place, text) for place, text in numbers if whole_number(text) not in names]
    refuse(path, [f"{place}: {text!r} is unknown; accepted: {', '.join(names)}" for place, text in wrong])
    labels, names = parse_labels(texts, path, classes=names)
    return {row.number: label for row, label in zip(rows, labels, strict=True) if isinstance(label, int)}, names


def _label(case: Case, kind: int) -> dict[str, Any]:
    cls = case.get("cls")
    if cls is None:
        return {}
    if isinstance(cls, list) and any(isinstance(one, str) for one in cls):
        raise ValueError(f"case {case['case']!r} has the labels {cls}; a kind is for one yes or no a slice or a case.")
    return {"cls": [kind * int(one > 0) for one in cls] if isinstance(cls, list) else kind * int(cls > 0)}
