"""Cases of a folder by glob patterns."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import PathLike

Case = dict[str, Any]


def _glob(dataset_dir: Path, pattern: str) -> dict[tuple[str, ...], str]:
    """Files that match `pattern`, relative to `dataset_dir`, by the texts that its wildcards stand for."""
    regex = ""
    for part in re.split(r"(\*\*/|\*+|\?|\[[^\]]+\])", pattern):
        if part == "**/":
            regex += "((?:.*/)?)"
        elif part[:1] == "*":
            regex += "([^/]*)"
        elif part == "?":
            regex += "([^/])"
        elif part[:1] == "[":
            regex += "(" + part.replace("[!", "[^") + ")"
        else:
            regex += re.escape(part)
    names = [name.replace(os.sep, "/") for name in sorted(glob.glob(pattern, root_dir=dataset_dir, recursive=True))]
    matches = [re.fullmatch(regex, name) for name in names if (dataset_dir / name).is_file()]
    return {match.groups(): match.string for match in matches if match}


def _partners(
    first: dict[tuple[str, ...], str], other: dict[tuple[str, ...], str], pattern: str
) -> tuple[dict[str, str], list[str]]:
    """Pair files by as many wildcards as both patterns have; also return what is left over in `other`."""
    width = min((len(key) for group in (first, other) for key in group), default=0)
    short: dict[tuple[str, ...], str] = {}
    for key, name in other.items():
        if short.setdefault(key[:width], name) != name:
            raise ValueError(f"{pattern!r}: {short[key[:width]]} and {name} fit one case; make the pattern narrower.")
    pairs = {name: short[key[:width]] for key, name in first.items() if key[:width] in short}
    return pairs, sorted(set(other.values()) - set(pairs.values()))


def _stem(name: str) -> str:
    """File name without its folder and without `.nii`, `.nii.gz` or another single suffix."""
    return re.sub(r"(\.nii(\.gz)?|\.[^.]+)$", "", Path(name).name)


def find_cases(
    dataset_dir: PathLike,
    image_pattern: str | Sequence[str],
    *,
    label_pattern: str | None = None,
    organ_pattern: str | None = None,
) -> list[Case]:
    """List the cases below a folder by glob patterns.

    Files belong together where the wildcards of their patterns stand for the same text: `*/flair.nii.gz` goes
    with `*/mask.nii.gz` of the same folder, `images/*.nii.gz` with `labels/*.nii.gz` of the same name.
    A case is named after its folder (`/` becomes `_`), or after the file where it lies in `dataset_dir` itself;
    where that is not unique, `<folder>_<file stem>`.

    Args:
        dataset_dir: folder that the patterns are relative to.
        image_pattern: one glob pattern, or one per modality; every case must have all of them.
        label_pattern: pattern of the masks; a case without a mask gets no `label`.
        organ_pattern: pattern of masks of the organ; every case must have one.

    Returns:
        Cases sorted by name, with the keys `case`, `patient` (the case name), `image` (absolute path, or a list
        of them where a list of patterns was given) and, if found, `label` and `organ`.

    Raises:
        FileNotFoundError: nothing matches, or a case lacks a modality.
        ValueError: two files fit one case, or two cases get one name.
    """
    root = Path(dataset_dir).absolute()
    patterns = [image_pattern] if isinstance(image_pattern, str) else list(image_pattern)
    found = [_glob(root, pattern) for pattern in patterns]
    for pattern, files in zip(patterns, found, strict=True):
        if not files:
            raise FileNotFoundError(f"no file matches {pattern!r} in {root}; check dataset_dir and the pattern.")
    labels = _partners(found[0], _glob(root, label_pattern), label_pattern)[0] if label_pattern else {}
    organs = _partners(found[0], _glob(root, organ_pattern), organ_pattern)[0] if organ_pattern else {}
    rows = {name: [name] for name in found[0].values()}
    missing = [f"{organ_pattern!r} beside {name}" for name in rows if organ_pattern and name not in organs]
    for pattern, files in zip(patterns[1:], found[1:], strict=True):
        pairs, alone = _partners(found[0], files, pattern)
        missing += [f"{pattern!r} beside {name}" for name in rows if name not in pairs]
        missing += [f"{patterns[0]!r} beside {name}" for name in alone]
        for name, partner in pairs.items():
            rows[name].append(partner)
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing)} image(s) missing: {'; '.join(missing[:3])}. Every case needs one file per "
            "modality, and one of the organ where a pattern asks for it: add the files, or leave the case out."
        )

    folders = {name: Path(name).parent.as_posix().replace("/", "_") for name in rows}
    short = {name: _stem(name) if folders[name] == "." else folders[name] for name in rows}
    count = Counter(short.values())
    cases: list[Case] = []
    for name, images in rows.items():
        unique = count[short[name]] == 1 or folders[name] == "."
        case_name = short[name] if unique else f"{folders[name]}_{_stem(name)}"
        paths = [str(root / image) for image in images]
        case: Case = {"case": case_name, "patient": case_name}
        case["image"] = paths[0] if isinstance(image_pattern, str) else paths
        if name in labels:
            case["label"] = str(root / labels[name])
        if name in organs:
            case["organ"] = str(root / organs[name])
        cases.append(case)
    check_names(cases, str(root))
    return sorted(cases, key=lambda case: case["case"])


def check_names(cases: Iterable[Case], source: str) -> None:
    """Raise `ValueError` where two cases have one name: files of one would replace the other's."""
    twice = [name for name, n in Counter(case["case"] for case in cases).items() if n > 1]
    if twice:
        raise ValueError(f"{source}: the case name(s) {twice[:3]} occur more than once; names must be unique.")
