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
    rows = [[case["image"]] if isinstance(case["image"], str) else case["image"] for case in cases]
    images = [path for row in rows for path in row]
    if not images:
        return NO_CASES
    masks = [case[key] for case in cases for key in ("label", "organ") if case.get(key)]
    home = os.path.abspath(dataset_dir or ".")
    base = _base(images, home)
    names = {path: Path(os.path.relpath(os.path.join(home, path), base)).as_posix() for path in (*images, *masks)}
    modalities = zip(*rows, strict=False)
    found = [_of_modality([names[path] for path in paths], {*names.values()}, base) for paths in modalities]
    return found[0] if len(found) == 1 else found


def in_command(pattern: str | Sequence[str]) -> str:
    """The pattern as it stands between double quotes behind `--image_pattern`."""
    return pattern if isinstance(pattern, str) else f"[{','.join(repr(one) for one in pattern)}]"


def _suffix(path: str) -> str:
    """The ending that tells the kind of a file, as it is written; empty of a DICOM series."""
    known = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    return path[len(path) - len(known) :]


def _base(images: Sequence[str], home: str) -> str:
    """What the pattern is relative to: the folder of the data, or of all images where some lie beside that."""
    if not any(path.startswith(("/", "..")) for path in images):
        return home
    return os.path.commonpath([os.path.dirname(os.path.normpath(os.path.join(home, path))) for path in images])


def _of_modality(paths: Sequence[str], every: Collection[str], base: str) -> str:
    """The pattern of one modality's images: files, or folders of series below `base`."""
    files, series = ([path for path in paths if bool(_suffix(path)) is of_files] for of_files in (True, False))
    if len(files) >= len(series):  # no pattern finds both
        return _pattern(files, every)
    if any(UID.fullmatch(Path(path).name) and not Path(base, path).is_dir() for path in series):
        return DICOM
    return _pattern(series, every) + "/"


def _pattern(paths: Sequence[str], every: Collection[str]) -> str:
    """Of some files, that matches none of the others if it can be helped."""
    suffixes = sorted({_suffix(path) for path in paths})
    if {suffix.lower() for suffix in suffixes} & {*SLIDE_SUFFIXES}:
        return f"**/*{_shared(suffixes)}"
    parts = [path.split("/") for path in sorted({*paths})]
    folders = _folders([part[:-1] for part in parts])
    names = _names(sorted({part[-1] for part in parts}), suffixes)
    patterns = ["/".join([*folders, name]) for name in names]
    others = {*every} - {*paths}
    found = next((one for one in patterns if not any(_matches(one, other) for other in others)), patterns[-1])
    return f"./{found}" if found.startswith(("$", "@", "%")) else found  # which a config would evaluate


def _folders(paths: Sequence[Sequence[str]]) -> list[str]:
    """What stands for the folders of files: `**` where some lie deeper than others."""
    if len({len(path) for path in paths}) > 1:
        return ["**"]
    alone = len(paths) == 1  # of one image, its folder is that of a case
    levels = zip(*paths, strict=True)
    return ["*" if alone or len(set(level)) > 1 else glob.escape(level[0]) for level in levels]


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
