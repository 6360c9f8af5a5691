"""A pattern that finds images like those of a data set, from their names in its datalist."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..data.matches import DICOM
from ..images.pictures import PICTURES, SLIDE_SUFFIXES
from ..images.reading import OTHERS
from .fit_minutes import cases_of

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", *OTHERS, *PICTURES, *SLIDE_SUFFIXES)
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
NO_CASES = "*.nii.gz"


def pattern_of(content: Mapping[str, Any], dataset_dir: str | Path | None = None) -> str | list[str]:
    """A pattern that finds images like those of the training; of several modalities a list of one each.

    Folders and names that all images share stay, what differs becomes a wildcard; what ends all names alike behind a
    `_`, `-` or `.` stays, too, and so does what begins them where masks or other modalities would match else. DICOM
    takes folders, or `dicom` where the datalist names series. Of files and series together the pattern is of the more.

    Args:
        content: of a datalist.
        dataset_dir: what its paths are relative to: a folder may be named as a series is.

    Example:
        `images/p1.mha` and `images/p2.mha` give `images/*.mha`, `p1/t1/` and `p2/t1/` of DICOM `*/t1/`.
    """
    cases = cases_of(content)
    rows = [[case["image"]] if isinstance(case["image"], str) else list(case["image"]) for case in cases]
    masks = {case[key] for case in cases for key in ("label", "organ") if case.get(key)}
    if beside := any(path.startswith(("/", "..")) for row in rows for path in row):  # beside `dataset_dir`, some or all
        home = os.path.abspath(dataset_dir or ".")
        rows = [[os.path.normpath(os.path.join(home, path)) for path in row] for row in rows]
        masks = {os.path.normpath(os.path.join(home, path)) for path in masks}
    every = {path for row in rows for path in row}
    if not every:
        return NO_CASES
    base = os.path.commonpath([os.path.dirname(path) for path in every]) if beside else "."  # the folder of them all
    found = []
    for both in zip(*rows, strict=False):
        kinds = [[path for path in both if bool(_suffix(path)) is of_files] for of_files in (True, False)]
        column = max(kinds, key=len)  # no pattern finds files and series
        paths, others = ({Path(os.path.relpath(p, base)).as_posix() for p in some} for some in (column, masks | every))
        series = [path for path in column if not _suffix(path)]
        named = any(UID.fullmatch(Path(p).name) and not (Path(dataset_dir or ".") / p).is_dir() for p in series)
        found.append(DICOM if named else _pattern(sorted(paths), others - paths) + ("/" if series else ""))
    return found[0] if len(found) == 1 else found


def in_command(pattern: str | Sequence[str]) -> str:
    """The pattern as it stands between double quotes behind `--image_pattern`."""
    return pattern if isinstance(pattern, str) else f"[{','.join(repr(one) for one in pattern)}]"


def _suffix(path: str) -> str:
    """The ending that tells the kind of a file, as it is written; empty of a DICOM series."""
    known = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    return path[len(path) - len(known) :]


def _pattern(paths: Sequence[str], others: Collection[str]) -> str:
    """Of one modality, that matches none of the other files if it can be helped."""
    suffixes = sorted({_suffix(path) for path in paths})
    if {suffix.lower() for suffix in suffixes} & {*SLIDE_SUFFIXES}:
        return f"**/*{_shared(suffixes)}"
    parts = [path.split("/") for path in paths]
    alone = len(parts) == 1  # of one image, its folder is that of a case
    depths = {len(part) for part in parts}
    folders = ["**"]
    if len(depths) == 1:
        columns = zip(*(part[:-1] for part in parts), strict=True)
        folders = ["*" if alone or len(set(column)) > 1 else glob.escape(column[0]) for column in columns]
    patterns = ["/".join([*folders, name]) for name in _names(sorted({part[-1] for part in parts}), suffixes)]
    return next((one for one in patterns if not any(_matches(one, other) for other in others)), patterns[-1])


def _names(names: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """What may stand for the files' names, from the broadest to the narrowest."""
    if len(names) == 1:
        return [glob.escape(names[0])]
    stems = [name.removesuffix(_suffix(name)) for name in names]
    ending, beginning = _beginning([stem[::-1] for stem in stems])[::-1], _beginning(stems)
    tail = re.search(r"[-_. ].*$", ending)  # digits that all happen to end in are no part of it
    head = re.search(r"^.*[-_. ]", beginning)
    end = (glob.escape(tail[0]) if tail else "") + _shared(suffixes)
    return [f"*{end}", f"{glob.escape(head[0]) if head else ''}*{end}"]


def _shared(suffixes: Sequence[str]) -> str:
    """One pattern for several endings: `.jp*g` for `.jpg` and `.jpeg`."""
    if len(suffixes) == 1:
        return suffixes[0]
    begin = _beginning(suffixes)
    return f"{begin}*{_beginning([suffix[len(begin) :][::-1] for suffix in suffixes])[::-1]}"


def _beginning(texts: Sequence[str]) -> str:
    """What all begin with, letter by letter."""
    return "".join(letters[0] for letters in takewhile(lambda some: len(set(some)) == 1, zip(*texts, strict=False)))


def _matches(pattern: str, path: str) -> bool:
    wanted, parts = pattern.split("/"), path.split("/")
    if wanted[0] == "**":
        return fnmatchcase(parts[-1], wanted[-1])
    return len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted))
