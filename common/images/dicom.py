"""DICOM series as volumes: slices in order of their position along the normal, placed by what each of them says.

Read by pydicom, not by ITK: ITK's reader takes a series with a slice missing, a tilted gantry or several volumes for
an even stack and says so at most in a warning, and inverts MONOCHROME1 of CT, too.

Choices where the standard leaves one:

- Position and distance of slices come from ImagePositionPatient and ImageOrientationPatient alone. SliceThickness and
  SpacingBetweenSlices count only for a single slice, and under `assume_axial`.
- A tilted gantry is refused: the slices would have to be resampled.
- MONOCHROME1 (the lowest value is white) is inverted within the range of the stored bits, so that what is bright on a
  screen is bright here; not in CT and PET, whose values are quantities.
- Localizers within a series are left out; a multi-frame file is read like a series of its frames.

Tolerances: directions of the slices of a series may differ by 0.001 in each cosine; a tilt may be 0.1 degrees or, over
the whole stack, 0.1 pixels; a slice may lie 0.1 of the spacing off its place in the even stack, in each direction. The
affine runs exactly through the first and the last slice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..files import PathLike
from .dicom_files import Series, find_series
from .dicom_frames import Frame, doubt_about_bits, frame_values, read_frames
from .geometry import LPS_TO_RAS, check_affine
from .volume import Volume

DIRECTION = 1e-3  # of a direction cosine
TILT = 0.1  # degrees
PLACE = 0.1  # of the spacing
ASSUME_AXIAL = "assume_axial"
_MADE = re.compile(r"\b(MIP|MINIP|PROJECTION IMAGE|SUBTRACT\w*|PHASE( MAP)?)\b")  # of ImageType


def read_series(path: PathLike, *, dicom_geometry: str | None = None) -> Volume:
    """Read a DICOM series.

    Args:
        path: the folder that holds one series, or `<folder>/<SeriesInstanceUID>`.
        dicom_geometry: `assume_axial` takes a series whose files have no position or no orientation: sorted by
            InstanceNumber from feet to head, rows to the left, columns to the back.

    Returns:
        Array `[columns, rows, slices]`, float32, after slope and intercept of each slice; affine to RAS+ millimeters.

    Raises:
        FileNotFoundError: there is no such folder or series.
        ValueError: it is no even stack of gray-value slices, or needs a decoder; the message names what and where.
        ImportError: pydicom is not installed.
    """
    series = find_series(path)
    frames, affine, warnings = _stack(series, str(path), dicom_geometry)
    first = frames[0]
    array = np.empty((first.columns, first.rows, len(frames)), dtype=np.float32, order="F")
    slices: dict[Path, list[int]] = {}
    for i, frame in enumerate(frames):
        slices.setdefault(frame.file, []).append(i)
    for file, own in slices.items():
        for i, values in zip(own, frame_values(file, [frames[i] for i in own]), strict=True):
            array[:, :, i] = values.T
    doubt = doubt_about_bits(array, frames, str(path))
    return Volume(array, affine, str(path), (*warnings, *([doubt] if doubt else [])))


def read_series_grid(path: PathLike, *, dicom_geometry: str | None = None) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape `(columns, rows, slices)` and affine of a series, from headers alone; see `read_series`."""
    frames, affine, _ = _stack(find_series(path), str(path), dicom_geometry)
    return (frames[0].columns, frames[0].rows, len(frames)), affine


def series_files(path: PathLike, *, dicom_geometry: str | None = None) -> list[Path]:
    """The files of a series in the order of the volume's last axis; one file where it is multi-frame."""
    frames, _, _ = _stack(find_series(path), str(path), dicom_geometry)
    return _files(frames)


def _files(frames: Sequence[Frame]) -> list[Path]:
    return list(dict.fromkeys(frame.file for frame in frames))


def _stack(series: Series, path: str, dicom_geometry: str | None) -> tuple[list[Frame], np.ndarray, list[str]]:
    """The frames of a series in their order, the affine, and warnings."""
    if dicom_geometry not in (None, ASSUME_AXIAL):
        raise ValueError(f"dicom_geometry must be null or {ASSUME_AXIAL!r}; got {dicom_geometry!r}")
    frames = [frame for file in series.files for frame in read_frames(file)]
    try:
        rest = Counter(series.left_out)
        warnings = [f"left out of the series: {count} {kind}(s)" for kind, count in rest.items()]
        _check_alike(frames, ("rows", "columns"))
        _check_one_kind(frames)
        if any(frame.position is None or frame.orientation is None for frame in frames):
            affine, order, said = _assumed(frames, dicom_geometry)
        else:
            affine, order, said = _placed(frames)
        affine = check_affine(affine, (frames[0].columns, frames[0].rows, len(frames)), path)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    frames = [frames[i] for i in order]
    return frames, affine, [*warnings, *said, *_doubts(frames)]


def _apart(frames: Sequence[Frame], what: str) -> str:
    """How to get one of several things in a series alone."""
    if len(files := _files(frames)) > 1:
        folders = sorted({file.parent.name for file in files})
        return f"put each {what} into a folder of its own{f', or keep one of {folders}' if len(folders) > 1 else ''}"
    return f"all are frames of one file: write each {what} into a NIfTI file of its own (dcm2niix converts)"


def _check_alike(frames: Sequence[Frame], names: Sequence[str], tolerance: float = 0.0) -> None:
    for name in names:
        first = np.asarray(getattr(frames[0], name), dtype=np.float64)  # NaN where a frame does not say
        for frame in frames:
            own = np.asarray(getattr(frame, name), dtype=np.float64)
            if not np.allclose(own, first, rtol=0, atol=tolerance, equal_nan=True):
                raise ValueError(
                    f"two kinds of images in one series: {name} {getattr(frames[0], name)} in {frames[0].name}, but "
                    f"{getattr(frame, name)} in {frame.name}; {_apart(frames, 'kind')}"
                )


def _check_one_kind(frames: Sequence[Frame]) -> None:
    """Refuse a series some of whose values mean something else: raw beside Hounsfield units, inverted ones."""
    first = frames[0]
    for frame in frames:
        if frame.slope == 0:
            raise ValueError(
                f"RescaleSlope 0 in {frame.name}, which leaves nothing of its values; restore the attribute"
            )
        for what, one, other in (
            ("Modality", first.modality, frame.modality),
            ("rescale to a unit", first.slope is not None and first.unit, frame.slope is not None and frame.unit),
            ("MONOCHROME1", first.inverted, frame.inverted),
            ("frame of reference", first.reference, frame.reference),
            ("ConvolutionKernel", first.varies["ConvolutionKernel"], frame.varies["ConvolutionKernel"]),
        ):
            if one != other:
                raise ValueError(
                    f"two kinds of images in one series: {first.name} and {frame.name} differ in {what}; "
                    f"{_apart(frames, 'kind')}"
                )


def _placed(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    lacking = [frame.name for frame in frames if frame.spacing is None or not min(frame.spacing) > 0]
    if lacking:
        raise ValueError(f"no PixelSpacing above 0 in {len(lacking)} of {len(frames)} images, e.g. {lacking[0]}")
    _check_alike(frames, ("orientation",), DIRECTION)
    _check_alike(frames, ("spacing",), 1e-3 * min(frames[0].spacing or (1.0,)))
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    spacing, orientation = frames[0].spacing or (), frames[0].orientation or ()
    thickness, warnings = 0.0, []
    if len(frames) == 1:
        thickness = frames[0].thickness or 1.0
        known = "as thick as its header says" if frames[0].thickness else "of unknown thickness, taken as"
        warnings.append(f"a single slice, {known}: {thickness:g} mm")
    try:
        affine, order = slice_affine(positions, orientation, spacing, [frame.name for frame in frames], thickness)
    except SeveralVolumes as error:
        raise ValueError(f"{error}{_what_varies(frames)}; {_apart(frames, 'volume')}") from error
    return affine, order, warnings


class SeveralVolumes(ValueError):
    """All positions hold the same number of slices: several time points, echoes or reconstructions."""


def slice_affine(
    positions: np.ndarray,
    orientation: Sequence[float],
    spacing: Sequence[float],
    names: Sequence[str],
    thickness: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Where a stack of slices lies (DICOM PS3.3, C.7.6.2.1.1).

    Args:
        positions: `[N, 3]`, ImagePositionPatient.
        orientation: of all of them, ImageOrientationPatient: the direction of a row, then that of a column.
        spacing: PixelSpacing: between rows, then between columns.
        names: of the slices, for messages.
        thickness: millimeters, the third spacing where there is a single slice.

    Returns:
        `[4, 4]` from indices of column, row and slice to RAS+ millimeters; the order of the slices along the normal.

    Raises:
        ValueError: no even stack: the message says where.
    """
    row, column = np.asarray(orientation[:3], dtype=np.float64), np.asarray(orientation[3:], dtype=np.float64)
    lengths = np.linalg.norm([row, column], axis=1)
    if not np.isfinite(positions).all():
        raise ValueError("an ImagePositionPatient that is no number")
    if np.abs(lengths - 1).max() > DIRECTION or abs(row @ column) > DIRECTION:
        raise ValueError(f"ImageOrientationPatient {list(orientation)} is no pair of perpendicular unit vectors")
    normal = np.cross(row, column)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    positions, along, names = positions[order], along[order], [names[i] for i in order]
    step = normal * thickness
    if len(order) > 1:
        _check_doubles(along, names)
        step = (positions[-1] - positions[0]) / (len(order) - 1)
        _check_even(positions, along, step, normal, min(spacing), names)
    affine = np.eye(4)
    affine[:3] = np.stack([row * spacing[1], column * spacing[0], step, positions[0]], axis=1)
    return LPS_TO_RAS @ affine, order


def _check_doubles(along: np.ndarray, names: Sequence[str]) -> None:
    gaps = np.diff(along)
    usual = np.median(gaps[gaps > 0.01]) if (gaps > 0.01).any() else np.inf
    new = gaps > 0.1 * usual
    if new.all():
        return
    counts = np.diff(np.flatnonzero(np.concatenate([[True], new, [True]])))
    if len(set(counts)) == 1:
        raise SeveralVolumes(f"{counts[0]} slices at each of {len(counts)} positions (4D)")
    first = int(np.flatnonzero(~new)[0])
    raise ValueError(
        f"{int((counts - 1).sum())} double slice(s): {names[first]} and {names[first + 1]} both lie at "
        f"{along[first]:.2f} mm along the normal; keep one of each"
    )


def _check_even(
    positions: np.ndarray, along: np.ndarray, step: np.ndarray, normal: np.ndarray, pixel: float, names: Sequence[str]
) -> None:
    n, distance = len(along), float(step @ normal)
    aside = float(np.linalg.norm(step - distance * normal))
    if (n - 1) * aside > PLACE * pixel and aside > np.tan(np.deg2rad(TILT)) * distance:
        raise ValueError(
            f"a tilted gantry: the slices are sheared by {np.rad2deg(np.arctan2(aside, distance)):.1f} degrees against "
            "their normal; resample the series to a straight grid first (dcm2niix does so)"
        )
    off = positions - positions[0] - np.arange(n)[:, None] * step
    off_along = np.abs(off @ normal)
    if off_along.max() > PLACE * distance:
        gaps = np.diff(along)
        usual = float(np.quantile(gaps, 0.25, method="lower"))
        wide = np.flatnonzero(gaps > 1.5 * usual)
        if not len(wide):
            raise ValueError(f"uneven distances between slices, {gaps.min():.3g} to {gaps.max():.3g} mm")
        where = "; ".join(f"{gaps[i]:.3g} mm between {names[i]} and {names[i + 1]}" for i in wide[:3])
        raise ValueError(
            f"{int(np.round(gaps[wide] / usual).sum()) - len(wide)} slice(s) missing in {len(wide)} place(s): {where}, "
            f"where {usual:.3g} mm is usual; add them"
        )
    worst = int(np.argmax(np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)))
    sideways = float(np.linalg.norm(off[worst] - (off[worst] @ normal) * normal))
    if sideways > PLACE * pixel:
        raise ValueError(f"slices shifted sideways: {names[worst]} by {sideways:.2f} mm")


def _what_varies(frames: Sequence[Frame]) -> str:
    varies = {name: len({frame.varies[name] for frame in frames}) for name in frames[0].varies}
    several = [f"{count} of {name}" for name, count in varies.items() if 1 < count < len(frames)]
    return f", with different values: {', '.join(several)}" if several else ""


def _check_may_be_assumed(frames: Sequence[Frame], dicom_geometry: str | None) -> None:
    lacking = [frame for frame in frames if frame.position is None or frame.orientation is None]
    if len(lacking) < len(frames):
        raise ValueError(
            f"{len(lacking)} of {len(frames)} images lack ImagePositionPatient or ImageOrientationPatient, e.g. "
            f"{lacking[0].name}; remove them or restore the attributes"
        )
    kind = f"(Modality {frames[0].modality})"
    if dicom_geometry != ASSUME_AXIAL:
        raise ValueError(
            f"no image {kind} has ImagePositionPatient and ImageOrientationPatient, so that place, order and distance "
            "of the slices are unknown; where they are axial and numbered from feet to head: "
            f"--dicom_geometry {ASSUME_AXIAL}"
        )
    numbers = {frame.number for frame in frames}
    if None in numbers or len(numbers) < len(frames):
        raise ValueError(f"the images {kind} have no InstanceNumber, or two have the same, so that nothing orders them")


def _assumed(frames: Sequence[Frame], dicom_geometry: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    _check_may_be_assumed(frames, dicom_geometry)
    first = frames[0]
    spacing, between = first.spacing or (1.0, 1.0), first.between or first.thickness or 1.0
    _check_alike(frames, ("spacing", "between" if first.between else "thickness"), 1e-3 * min(*spacing, abs(between)))
    order = np.argsort(np.array([frame.number for frame in frames], dtype=np.int64))
    affine = LPS_TO_RAS @ np.diag([spacing[1], spacing[0], between, 1.0])
    size = f"{spacing[1]:g} × {spacing[0]:g} × {between:g} mm"
    guessed = "" if first.spacing and (first.between or first.thickness) else ", partly a guess"
    said = f"no positions (Modality {first.modality}): slices taken as axial by InstanceNumber, spacing {size}{guessed}"
    return affine, order, [said]


def _doubts(frames: Sequence[Frame]) -> Iterator[str]:
    first = frames[0]
    steps = {abs((b.number or 0) - (a.number or 0)) for a, b in pairwise(frames)}
    if len(frames) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        yield f"InstanceNumber goes up in steps of {step}: have slices been left out?"
    if made := _MADE.search(f"{first.varies['ImageType']} {first.varies['FrameType']}"):
        yield f"ImageType says {made[0]}: computed from scans (projection, difference, phase), and no scan?"
    if first.inverted:
        yield "MONOCHROME1: values inverted, so that bright is high"
    if first.modality == "CT":
        yield from _doubts_about_units(frames)


def _doubts_about_units(frames: Sequence[Frame]) -> Iterator[str]:
    first = frames[0]
    if first.slope is None or first.intercept is None or first.unit not in ("", "HU"):
        yield "CT without a rescale to Hounsfield units"
    scales = {(frame.slope, frame.intercept) for frame in frames}
    if 1 < len(scales) <= len(frames) / 2:  # one for each frame is meant
        yield f"{len(scales)} kinds of rescale among the slices of a CT: are some of another series?"
