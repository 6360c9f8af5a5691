"""Cases of a folder by glob patterns, or by its DICOM series."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import PathLike
from .matches import DICOM, Match, matches, series_of_tree, some

Case = dict[str, Any]
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".7z", ".rar")
LONGEST_NAME = 200  # bytes of a case's name: with what is appended, a file's may have 255
logger = logging.getLogger(__name__)


def find_cases(
    dataset_dir: PathLike,
    image_pattern: str | Sequence[str],
    *,
    label_pattern: str | None = None,
    organ_pattern: str | None = None,
    skip_incomplete: bool = False,
) -> list[Case]:
    """List the cases below a folder by glob patterns.

    Files belong together where they lie in one folder and the wildcards of their names stand for the same text
    (`site_*/ct.nii.gz` with `*/lung.nii.gz`), or, where no two patterns meet in a folder, where all wildcards do:
    `images/*.nii.gz` with `labels/*.nii.gz` of the same name. A case is named after its folder (`/` becomes `_`), or
    after the file where it lies in `dataset_dir` itself; where that is not unique, `<folder>_<file stem>`.

    DICOM: a pattern that ends with `/` matches folders that hold one series each (`*/`, `*/flair/`); `dicom` finds all
    series of a tree of mixed files. There a case is named after the folder that holds it alone, else `<folder>_<short
    form of its SeriesInstanceUID>`; by that form alone where its name would hold the patient's name (or id, with
    `dicom`) and the files do not say that the identity was removed. Cases with one PatientID share `patient`, the
    name of the first of them.

    Results of earlier runs are never taken, links to nothing are: such a case fails where it is read.

    Args:
        dataset_dir: folder that the patterns are relative to.
        image_pattern: one glob pattern, or one per modality; every case must have all of them. Or `dicom`.
        label_pattern: pattern of the masks; a case without a mask gets no `label`.
        organ_pattern: pattern of masks of the organ; every case must have one.
        skip_incomplete: leave out cases that lack a modality or their organ, with a warning.

    Returns:
        Cases sorted by name, with the keys `case`, `patient` (the case name, but for DICOM), `image` (absolute path,
        or a list of them where a list of patterns was given) and, if found, `label` and `organ`.

    Raises:
        FileNotFoundError: nothing matches, or a case lacks a modality or its organ.
        ValueError: two files fit one case, two cases get one name, a mask is a case, too, or a pattern matches single
            DICOM slices, or is none.
    """
    root = Path(dataset_dir).absolute()
    patterns = _patterns(image_pattern)
    found = _images(root, patterns)
    wanted = {"label": label_pattern, "organ": organ_pattern}
    masks = {key: _masks(root, found[0], key, pattern, patterns[0]) for key, pattern in wanted.items() if pattern}
    rows, lacking = _rows(found, patterns)
    with_organ = masks.get("organ", rows)
    missing = [f"{organ_pattern!r} beside {match.name}" for match in rows if match not in with_organ] + lacking
    complete = [match for match, row in rows.items() if len(row) == len(patterns) and match in with_organ]
    if missing and skip_incomplete and complete:
        logger.warning("%s: cases left out, of which %d image(s) are missing: %s", root, len(missing), some(missing))
    elif missing:
        raise FileNotFoundError(
            f"{root}: {len(missing)} image(s) missing: {'; '.join(missing[:3])}. Every case needs one file per "
            "modality, and one of the organ where a pattern asks for it: add the files, or leave the case out."
        )
    names = case_names(found[0])
    first_of: dict[str, str] = {}  # the name of a patient's first case, by PatientID
    cases: list[Case] = []
    for match in sorted(complete, key=names.__getitem__):
        name = names[match]
        case: Case = {"case": name, "patient": first_of.setdefault(match.patient, name) if match.patient else name}
        paths = [str(root / image.name) for image in rows[match]]
        case["image"] = paths[0] if isinstance(image_pattern, str) else paths
        case |= {key: str(root / pairs[match].name) for key, pairs in masks.items() if match in pairs}
        cases.append(case)
    check_names(cases, str(root))
    return cases


def _patterns(image_pattern: str | Sequence[str]) -> list[str]:
    if not image_pattern or not all(isinstance(p, str) for p in image_pattern):
        raise ValueError(f"image_pattern must be a pattern, or a list of one per modality; got {image_pattern!r}")
    patterns = [image_pattern] if isinstance(image_pattern, str) else list(image_pattern)
    if DICOM in patterns and len(patterns) > 1:
        raise ValueError(f"image_pattern {patterns}: 'dicom' is a case a series; give folders instead, as '*/flair/'")
    return patterns


def _images(root: Path, patterns: Sequence[str]) -> list[list[Match]]:
    found = [series_of_tree(root) if p == DICOM else matches(root, p, "image_pattern") for p in patterns]
    for pattern, files in zip(patterns, found, strict=True):
        if not files:
            what = "DICOM scan" if pattern == DICOM else "folder with a DICOM scan" if pattern[-1:] == "/" else "file"
            archives = [str(path.relative_to(root)) for path in root.rglob("*") if path.name.lower().endswith(ARCHIVES)]
            packed = f"; unpack {some(sorted(archives))} first" if archives else ""
            raise FileNotFoundError(
                f"no {what} matches {pattern!r} in {root}; check dataset_dir and the pattern{packed}."
            )
    return found


def _masks(root: Path, images: Sequence[Match], key: str, pattern: str, image_pattern: str) -> dict[Match, Match]:
    """The masks of images; those that fit none are told, and those that are images refused."""
    masks, alone = pair(images, matches(root, pattern, f"{key}_pattern"), pattern)
    taken = {mask.name for mask in masks.values()}.union(alone)
    if own := next((match for match in images if match.name in taken), None):
        raise ValueError(
            f"{own.name} is matched as image and as {key}, by {image_pattern!r} and {pattern!r}; make one of them "
            "narrower"
        )
    if key == "label" and alone and 0 < len(masks) < len(images):
        lacking = next(match.name for match in images if match not in masks)
        told = "%s: %d mask(s) of %r fit no case, e.g. %s, while %s has none"
        logger.warning(told, root, len(alone), pattern, alone[0], lacking)
    return masks


def _rows(found: Sequence[Sequence[Match]], patterns: Sequence[str]) -> tuple[dict[Match, list[Match]], list[str]]:
    """The modalities of each case, by the first of them, as far as they are there; and what lacks beside what."""
    rows = {match: [match] for match in found[0]}
    lacking = []
    for pattern, files in zip(patterns[1:], found[1:], strict=True):
        pairs, alone = pair(found[0], files, pattern)
        lacking += [f"{pattern!r} beside {match.name}" for match in rows if match not in pairs]
        lacking += [f"{patterns[0]!r} beside {name}" for name in alone]
        for match, partner in pairs.items():
            rows[match].append(partner)
    return rows, lacking


def pair(first: Sequence[Match], other: Sequence[Match], pattern: str) -> tuple[dict[Match, Match], list[str]]:
    """Pair files of a case by their folder, else by their wildcards; also return what is left over in `other`.

    Raises:
        ValueError: two files of `other` fit one of `first`.
    """
    for keys_of in (_by_folder, _by_wildcards):
        width = min((len(key[-1]) for match in (*first, *other) for key in keys_of(match)), default=0)
        index: dict[tuple, list[Match]] = {}
        for match in other:
            for key in keys_of(match):
                index.setdefault((*key[:-1], key[-1][:width]), []).append(match)
        pairs = {}
        for match in first:
            fitting = [index[k] for key in keys_of(match) if (k := (*key[:-1], key[-1][:width])) in index]
            if fitting and len(fitting[0]) > 1:
                names = " and ".join(m.name for m in fitting[0][:2])
                raise ValueError(f"{pattern!r}: {names} fit one case; make the pattern narrower.")
            if fitting:
                pairs[match] = fitting[0][0]
        if pairs:
            break
    taken = {match.name for match in pairs.values()}
    return pairs, sorted(match.name for match in other if match.name not in taken)


def _by_folder(match: Match) -> list[tuple]:
    return list(match.homes)


def _by_wildcards(match: Match) -> list[tuple]:
    return [] if match.wildcards is None else [(match.wildcards,)]


def case_names(found: Sequence[Match]) -> dict[Match, str]:
    """A name for each case: of its folder, of its file, or of both, see `find_cases`."""
    folders = {match: _in_words(Path(match.name).parent.as_posix()) for match in found}
    short = {match: folders[match] or match.stem for match in found}
    count = Counter(short.values())
    names = {}
    for match in found:
        unique = count[short[match]] == 1 or not folders[match]
        name = match.case or (short[match] if unique else f"{folders[match]}_{match.stem}")
        names[match] = match.short_uid if match.is_private(name) else _shortened(name)
    return names


def _in_words(folder: str) -> str:
    """A folder's path as one word, empty for the data's folder; a leading dot would hide the results."""
    return folder.replace("/", "_").lstrip("._")


def _shortened(name: str) -> str:
    """The name, or the end of one that is too long for the name of a file, with a digest of the whole."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    end = name.encode()[-LONGEST_NAME // 2 :].decode(errors="ignore")
    return f"{hashlib.sha256(name.encode()).hexdigest()[:10]}_{end}"


def check_names(cases: Iterable[Case], source: str) -> None:
    """Raise `ValueError` where two cases have one name, or one that names no file: files would replace others.

    Names that differ in upper and lower case only, or in how accents are written, are one on many systems.
    """
    images: dict[str, list[str]] = {}
    for case in cases:
        images.setdefault(str(case["case"]), []).append(str(case["image"]))
    alike: dict[str, str] = {}
    for name in images:
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"{source}: the case name {name[:40]!r}… is too long to name files; give a shorter one")
        other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise ValueError(f"{source}: the case names {other!r} and {name!r} would name the same files; rename one.")
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ValueError(f"{source}: the case name {name!r} names a file's path; give a name without / and \\.")
        if any(unicodedata.category(sign) == "Cc" for sign in name):
            raise ValueError(f"{source}: the case name {name!r} has a line break or the like; rename it")
        if len(images[name]) > 1:
            raise ValueError(
                f"{source}: the case name {name!r} occurs more than once, for {' and '.join(images[name][:2])}; "
                "names must be unique: rename one, or make the pattern narrower."
            )


def map_paths(case: Case, change: Any) -> Case:
    """`case` with `change` applied to every path of `image`, `label` and `organ`."""
    paths = {key: case[key] for key in ("image", "label", "organ") if case.get(key)}
    return case | {k: [change(p) for p in v] if isinstance(v, list) else change(v) for k, v in paths.items()}


def with_paths_relative(case: Case, root: Path) -> Case:
    """A case as a datalist has it: its paths relative to a folder, with `/`."""
    return map_paths(case, lambda p: Path(os.path.relpath(p, root)).as_posix())
