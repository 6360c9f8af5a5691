"""What a pattern matches below a folder: files, folders of DICOM series, or all series of a tree."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from ..images.dicom_files import COLOR, SEGMENTATIONS, SLICES, Header, Series, Tree, first_scan, header_of, read_tree
from .outputs import is_result

DICOM = "dicom"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """An image or mask that a pattern matched.

    Attributes:
        name: path relative to the data's folder: a file, the folder of a DICOM series, or `<folder>/<UID>`.
        stem: file name without its folder and without `.nii`, `.nii.gz` or another single suffix; or of the folder.
        wildcards: the texts that the pattern's wildcards stand for; `None` where there is no pattern.
        homes: folders in which the other files of its case may lie, each with the wildcards of its name therein.
        case: name of the case, where its path does not give it.
        header: of a DICOM series.
    """

    name: str
    stem: str
    wildcards: tuple[str, ...] | None
    homes: tuple[tuple[str, tuple[str, ...]], ...]
    case: str = ""
    header: Header = field(default=Header(), repr=False)

    @property
    def patient(self) -> str:
        """PatientID, only to be compared."""
        return self.header.patient

    @property
    def short_uid(self) -> str:
        """A short form of the SeriesInstanceUID."""
        return f"series_{hashlib.sha256(self.header.series.encode()).hexdigest()[:10]}"

    def is_private(self, name: str) -> bool:
        """Whether a case's name would tell who the patient is."""
        if self.header.identity_removed:
            return False
        words = _words(name)
        runs = {"".join(words[i:j]) for i, j in combinations(range(len(words) + 1), 2)}
        told = self.header.private | ({self.patient} if self.wildcards is None else set())
        texts = {"".join(_words(text)) for text in told} - {""}
        # Short Latin texts are parts of too many words; a name in Chinese may be one letter.
        return any(text in runs or ((len(text) > 3 or not text.isascii()) and text in "".join(words)) for text in texts)


def _words(text: str) -> list[str]:
    """What letters and digits a text holds between other signs, however these are written or encoded."""
    return [word for word in re.split(r"[\W_]+", unicodedata.normalize("NFKC", text).casefold()) if word]


def matches(root: Path, pattern: str, key: str) -> list[Match]:
    """What a pattern matches below `root`, sorted; results of earlier runs are left out.

    Args:
        root: the data's folder.
        pattern: glob relative to it; one that ends with `/` matches folders of DICOM series.
        key: name of the pattern's setting, for messages.

    Raises:
        ValueError: the pattern matches single DICOM files, or folders within each other.
    """
    everything = sorted(glob.glob(pattern.rstrip("/"), root_dir=root, recursive=True))
    globbed = _without_loops(root, everything) if "**" in pattern else everything
    names = [name.replace(os.sep, "/").rstrip("/") or "." for name in globbed]
    if pattern.endswith("/"):
        folders = [name for name in names if (root / name).is_dir() or _dangling(root / name)]
        return _folders_of_series(root, folders, pattern, key)
    _say_other_letters(root, pattern, everything, key)
    files = [name for name in names if (root / name).is_file() or _dangling(root / name)]
    return _files(root, _without_results(root, files, pattern), pattern, key)


def _files(root: Path, names: Sequence[str], pattern: str, key: str) -> list[Match]:
    if names and _is_slice(root / names[0]):
        raise ValueError(
            f"{key} {pattern!r} matches single files of DICOM series, e.g. {names[0]}; give the folders of the "
            "series, as '*/', or 'dicom' for all series below dataset_dir; masks are read from NIfTI"
        )
    _say_twins(root, names)
    return [_match(name, pattern) for name in names]


def _folders_of_series(root: Path, names: Sequence[str], pattern: str, key: str) -> list[Match]:
    for name in names:
        above = next((folder for folder in map(str, Path(name).parents) if folder in names and folder != name), None)
        if above is not None:
            raise ValueError(f"{key} {pattern!r} matches {above} and {name} within; use 'dicom'")
    headers = {name: first_scan(root / name) for name in names}
    empty = [name for name, header in headers.items() if header is None]
    if empty:
        logger.warning("%s: %d folder(s) without a DICOM scan left out: %s", root, len(empty), some(empty, 3))
    bare = pattern.rstrip("/")
    return [_match(name, bare, header) for name, header in headers.items() if header is not None]


def listed(root: Path, paths: Sequence[Path]) -> list[Match]:
    """Images named one by one, which exist: files, folders of a DICOM series, or `<folder>/<SeriesInstanceUID>`.

    One that does not lie below `root` is called by its folder and its own name.
    """
    trees: dict[Path, Tree] = {}
    found = []
    for path in paths:
        base = root if path.is_relative_to(root) else path.parent.parent
        name = path.relative_to(base).as_posix()
        if path.is_dir():
            found.append(_match(name, glob.escape(name), first_scan(path) or Header()))
        elif path.exists():
            found.append(_match(name, glob.escape(name)))
        else:
            if path.parent not in trees:
                trees[path.parent] = read_tree(path.parent)
            found.append(_series_match(base, trees[path.parent].series[path.name], False))
    return found


def _match(name: str, pattern: str, header: Header | None = None) -> Match:
    parent = Path(name).parent.as_posix()
    expression = re.fullmatch(_expression(pattern), name)
    texts = expression.groups() if expression else ()
    own = texts[re.compile(_expression(os.path.dirname(pattern))).groups :]
    if header is None:
        stem = re.sub(r"(\.nii(\.gz)?|\.[^.]+)$", "", Path(name).name, flags=re.IGNORECASE)
        return Match(name, stem, texts, ((parent, own),))
    return Match(name, Path(name).name, texts, ((name, ()), (parent, own)), header=header)


def _expression(pattern: str) -> str:
    """A regular expression with one group for each wildcard of a glob pattern."""
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
    return regex


def _without_loops(root: Path, names: list[str]) -> list[str]:
    """Each file once, by its shortest path: a link to a folder above would give it again and again."""
    places: dict[tuple[str, str], str] = {}
    for name in sorted(names, key=len):
        parent, own = os.path.split(root / name)
        places.setdefault((os.path.realpath(parent), own), name)
    return sorted(places.values())


def _say_other_letters(root: Path, pattern: str, names: list[str], key: str) -> None:
    """Warn of files that a pattern would match but for upper and lower case, as `A.NII.GZ`."""
    folder, own = os.path.split(pattern)
    parts = re.split(r"(\[[^\]]+\])", own)
    loose = "".join(
        p if p[:1] == "[" else re.sub("[a-z]", lambda a: f"[{a[0]}{a[0].upper()}]", p.lower()) for p in parts
    )
    others = sorted({*glob.glob(os.path.join(folder, loose), root_dir=root, recursive=True)} - {*names})
    others = _without_loops(root, [name for name in others if (root / name).is_file()])
    if others:
        logger.warning(
            "%s: %d file(s) left out that match %s %r but for upper and lower case: %s",
            root,
            len(others),
            key,
            pattern,
            some(others, 3),
        )


def _say_twins(root: Path, names: Sequence[str]) -> None:
    """Warn of NIfTI files beside which the same lies packed, or unpacked, which may have been edited since."""
    others = {name: name[:-3] if name.endswith(".nii.gz") else f"{name}.gz" for name in names if ".nii" in name[-7:]}
    twins = [f"{name} and not {other}" for name, other in others.items() if (root / other).is_file()]
    if twins:
        what = "%s: %d file(s) are there twice; read is %s: keep the right one"
        logger.warning(what, root, len(twins), some(twins, 3))


def _dangling(path: Path) -> bool:
    """A link to nothing: taken, so that it is named where it is read."""
    return path.is_symlink() and not path.exists()


def _without_results(root: Path, names: list[str], pattern: str) -> list[str]:
    results = {name for name in names if is_result(root / name)}
    if results:
        logger.warning(
            "%s: %d file(s) that match %r are results of an earlier run and left out: %s; to use them, move them to a "
            "folder of their own, without predictions.csv",
            root,
            len(results),
            pattern,
            some(sorted(results), 3),
        )
    return [name for name in names if name not in results]


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM, but no picture in color, which may be a slide, and no Segmentation, a mask."""
    header = header_of(str(path)) if path.suffix.lower() in ("", *SLICES) and path.is_file() else None
    return header is not None and header.other not in (COLOR, *SEGMENTATIONS)


def some(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, the first of many: `a, b, …`."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def series_of_tree(root: Path) -> list[Match]:
    """All series below `root`: each as the folder that holds it alone, or as `<folder>/<SeriesInstanceUID>`."""
    tree = read_tree(root)
    if tree.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(tree.others.values()).items())
        logger.warning("%s: %d series that are no scans left out: %s", root, len(tree.others), kinds)
    if tree.broken:
        broken = [f"{path.relative_to(root)} ({why})" for path, why in tree.broken.items()]
        logger.warning("%s: %d broken DICOM file(s): %s", root, len(broken), some(broken, 3))
    owners: dict[Path, set[str]] = {}
    for series in tree.series.values():
        for folder in {file.parent for file in series.files}:
            for above in (folder, *folder.parents):
                owners.setdefault(above, set()).add(series.uid)
    found = [_series_match(root, series, len(owners[series.folder]) == 1) for series in tree.series.values()]
    return sorted(found, key=lambda match: match.name)


def _series_match(root: Path, series: Series, alone: bool) -> Match:
    if not alone and not series.uid:
        raise ValueError(f"{series.files[0]}: no SeriesInstanceUID, and other series in its folder; give it a folder")
    folder = series.folder.relative_to(root)
    name = folder if alone else folder / series.uid
    homes = ((folder.as_posix(), ()), (folder.parent.as_posix(), ()))
    match = Match(name.as_posix(), folder.name, None, homes, header=series.header)
    in_words = folder.as_posix().replace("/", "_")
    case = in_words if alone and in_words != "." else f"{in_words}_{match.short_uid}".removeprefix("._")
    return Match(match.name, match.stem, None, homes, case, series.header)
