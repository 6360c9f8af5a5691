"""DICOM files of a folder: which of them are scans, and to which series they belong. Each header is read once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from ..files import PathLike

SLICES = (".dcm", ".ima", ".dicom")  # how names of files end that hold slices
PACKED = tuple(f"{end}.{packed}" for end in SLICES for packed in ("gz", "bz2", "xz", "zip"))
UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_GROUPS = "PerFrameFunctionalGroupsSequence"  # of a multi-frame file, with the position of each frame
_TAGS = (
    "SOPClassUID",
    "ImageType",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientIdentityRemoved",
    _GROUPS,
)
COLOR = "picture in color"
SEGMENTATIONS = ("Segmentation", "Label Map Segmentation")
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
# These hold pixels and are no scans: what was computed from scans, or planned on them.
_RESULTS = {
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.68.1": "Surface Scan",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
}


@dataclass(frozen=True)
class Header:
    """What finding needs to know of a file.

    Attributes:
        series: its SeriesInstanceUID.
        other: what it is where it is no scan (`Segmentation`, `localizer`, or why it cannot be read), else empty.
        broken: whether it cannot be read.
        capture: whether it is a Secondary Capture without a position: a scan among its like, alone a screenshot.
        patient: its PatientID, only ever compared.
        private: the parts of the patient's name and the birth date, only ever compared.
        identity_removed: whether the file says that name and id are not the patient's own.
    """

    series: str = ""
    other: str = ""
    broken: bool = False
    capture: bool = False
    patient: str = field(default="", repr=False)
    private: frozenset[str] = field(default=frozenset(), repr=False)
    identity_removed: bool = False


@dataclass(frozen=True)
class Series:
    """The scan files of one series.

    Attributes:
        uid: SeriesInstanceUID.
        folder: the innermost folder that holds all of them.
        files: sorted by name.
        header: of the first file.
        left_out: what other files of the series are that are no scans.
        mixed: whether its files name several PatientIDs.
    """

    uid: str
    folder: Path
    files: tuple[Path, ...]
    header: Header
    left_out: tuple[str, ...] = ()
    mixed: bool = False


@dataclass(frozen=True)
class Tree:
    """The DICOM files below a folder.

    Attributes:
        folder: that folder.
        series: scans by SeriesInstanceUID.
        others: what each series is that holds no scan, by SeriesInstanceUID.
        broken: files that cannot be read, and why.
    """

    folder: Path
    series: dict[str, Series]
    others: dict[str, str]
    broken: dict[Path, str]


def pydicom() -> ModuleType:
    """The package, imported where it is used.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pydicom as package
        import pydicom.pixels
    except ImportError as error:
        raise ImportError("DICOM is read by pydicom: pip install 'weakseg-bundles[dicom]'") from error
    return package


_known: dict[str, tuple[int, int, Header | None]] = {}  # by path: time of change, size, header


def header_of(path: str) -> Header | None:
    """The header of a file, `None` where it is no DICOM; read again only after the file has changed."""
    try:
        status = os.stat(path)
    except OSError:
        return Header(other="a link to a file that does not exist", broken=True)
    stamp = (status.st_mtime_ns, status.st_size)
    known = _known.get(path)
    if known is None or known[:2] != stamp:
        _known[path] = known = (*stamp, _read_header(path))
    return known[2]


def _read_header(path: str) -> Header | None:
    with open(path, "rb") as file:
        start = file.read(132)
    if not start and re.fullmatch(r"(\.\d+)?", Path(path).suffix):  # named as slices are where they have no ending
        return Header(other="an empty file", broken=True)
    # Old files begin without the 128 empty bytes: with a tag of group 2 or 8, little endian.
    marked = start[128:] == b"DICM"
    if not marked and not (start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"):
        if path.lower().endswith(PACKED):
            return Header(other="packed: unpack it", broken=True)
        return Header(other="no DICOM header", broken=True) if path.lower().endswith(SLICES) else None
    try:
        data = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        return _header(data) if marked or data.get("SeriesInstanceUID") else None
    except ImportError:
        raise
    except Exception as error:  # a file cut short fails anywhere in pydicom
        return Header(other=f"a header that cannot be read ({type(error).__name__})", broken=True)


def _header(data: Any) -> Header:
    series = str(data.get("SeriesInstanceUID") or "")
    kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if not data.get("Rows") and (not kind or "Image Storage" in pydicom().uid.UID(kind).name):
        return Header(series, other="a header that ends early", broken=True)
    name = str(data.get("PatientName") or "")
    return Header(
        series,
        _other(data, kind),
        capture=kind.startswith(_CAPTURE) and not data.get("ImagePositionPatient") and _GROUPS not in data,
        patient=str(data.get("PatientID") or "").strip(),
        private=frozenset(
            part for part in (*re.split(r"[\^=\s,]+", name), str(data.get("PatientBirthDate") or "")) if part
        ),
        identity_removed=data.get("PatientIdentityRemoved") == "YES",
    )


def _other(data: Any, kind: str) -> str:
    """What a file is that is no scan; empty for a scan."""
    if kind in _RESULTS:
        return _RESULTS[kind]
    if not data.get("Rows"):
        return "object without pixels"
    if (data.get("SamplesPerPixel") or 1) != 1 or "MONOCHROME" not in str(data.get("PhotometricInterpretation")):
        return COLOR
    parts = [str(part).upper() for part in data.get("ImageType") or ()]
    if "MOSAIC" in parts:  # Siemens: all slices of a volume side by side in one picture
        return "mosaic of slices"
    return "localizer" if "LOCALIZER" in parts else ""


def files_below(folder: PathLike) -> Iterator[str]:
    """Paths of all files below a folder, through links, without hidden ones."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def read_tree(folder: PathLike) -> Tree:
    """All DICOM files below a folder, grouped by SeriesInstanceUID."""
    scans: dict[str, dict[str, Header]] = {}
    others: dict[str, list[str]] = {}
    broken: dict[Path, str] = {}
    files = tqdm(list(files_below(folder)), desc="reading DICOM headers", unit="file", disable=None, delay=5)
    for path in files:
        header = header_of(path)
        if header is None:
            continue
        if header.broken:
            broken[Path(path)] = header.other
        elif header.other:
            others.setdefault(header.series, []).append(header.other)
        else:
            scans.setdefault(header.series, {})[path] = header
    for uid in [uid for uid, own in scans.items() if len(own) == 1 and next(iter(own.values())).capture]:
        others.setdefault(uid, []).append("screenshot")
        del scans[uid]
    series = {uid: _series(uid, own, others.get(uid, ())) for uid, own in scans.items()}
    return Tree(Path(folder), series, {uid: kinds[0] for uid, kinds in others.items() if uid not in scans}, broken)


def _series(uid: str, scans: Mapping[str, Header], left_out: Sequence[str]) -> Series:
    headers = list(scans.values())
    return Series(
        uid,
        Path(os.path.commonpath([os.path.dirname(path) for path in scans])),
        tuple(map(Path, scans)),
        headers[0],
        tuple(left_out),
        mixed=len({header.patient for header in headers}) > 1,
    )


def has_series(paths: Sequence[PathLike]) -> list[bool]:
    """Whether each path names the folder of a series, or one of the series below a folder; each tree is read once."""
    trees: dict[Path, Tree] = {}
    found = []
    for path in map(Path, paths):
        if not path.is_dir() and UID.fullmatch(path.name) and path.parent.is_dir():
            if path.parent not in trees:
                trees[path.parent] = read_tree(path.parent)
            found.append(path.name in trees[path.parent].series)
        else:
            found.append(path.is_dir())
    return found


def find_series(path: PathLike) -> Series:
    """The series that a path names: a folder that holds one, or `<folder>/<SeriesInstanceUID>`.

    Raises:
        FileNotFoundError: there is no such folder or series.
        ValueError: the folder holds several series, no scan, or a file beside the series cannot be read.
    """
    path = Path(path)
    tree, found = _named_by(path)
    if not found:
        kinds = [tree.others[path.name]] if path.name in tree.others else sorted(set(tree.others.values()))
        only = f" (only: {', '.join(kinds)})" if kinds else ""
        unreadable = f"; {_first(tree.broken)}" if tree.broken else ""
        raise FileNotFoundError(f"{path}: no DICOM scan there{only}{unreadable}; expected the files of one series")
    if len(found) > 1:
        uids = ", ".join(f"{series.uid} ({len(series.files)} files)" for series in found[:3])
        more = ", …" if len(found) > 3 else ""
        raise ValueError(
            f"{path} holds {len(found)} series: {uids}{more}; name one of them as {path}/<SeriesInstanceUID>, or find "
            "all by the image_pattern 'dicom'"
        )
    series = found[0]
    if series.mixed:
        raise ValueError(
            f"{path}: files of several patients (PatientID) in one series; put each into a folder, see UIDs"
        )
    beside = {file.parent for file in series.files}
    if broken := {file: why for file, why in tree.broken.items() if file.parent in beside}:
        raise ValueError(f"{_first(broken)}; it may be a slice of the series: mend or remove it")
    return series


def _named_by(path: Path) -> tuple[Tree, list[Series]]:
    """The series that a path names, however many they are, and what lies around them."""
    if path.is_dir():
        tree = read_tree(path)
        return tree, list(tree.series.values())
    if path.exists():
        raise ValueError(f"{path} is one file; a DICOM series is named by its folder")
    if not path.parent.is_dir() or not UID.fullmatch(path.name):
        raise FileNotFoundError(f"{path} is neither the folder of a DICOM series nor <folder>/<SeriesInstanceUID>")
    tree = read_tree(path.parent)
    return tree, [tree.series[path.name]] if path.name in tree.series else []


def _first(broken: dict[Path, str]) -> str:
    path, why = next(iter(broken.items()))
    return f"{path}: {why}"


def first_scan(folder: PathLike) -> Header | None:
    """The header of a scan in a folder (of a broken file if there is no scan), `None` where it holds no DICOM scan."""
    if not os.path.isdir(folder):
        return Header(other="a link to a folder that does not exist", broken=True)
    broken = None
    for path in files_below(folder):
        header = header_of(path)
        if header is not None and not header.other:
            return header
        broken = header if header is not None and header.broken else broken
    return broken
