"""Frames of DICOM files: what each says of itself, and its values. No name or birth date is ever read from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dicom_attributes import Lookup, floats, number, rescale_of, whole
from .dicom_files import pydicom
from .wrapped import MOST_SLICES, doubt_about_ends

if TYPE_CHECKING:
    from pydicom import Dataset

# Their values tell the volumes of a series with several images at one position apart.
_VARYING = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoTime",
    "TriggerTime",
    "DiffusionBValue",
    "ImageType",
    "ConvolutionKernel",
)
_VARYING_GROUPS = {  # the same of the frames of one file, and the functional group that holds it
    "EffectiveEchoTime": "MREchoSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "FrameType": "MRImageFrameTypeSequence",
}
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "RealWorldValueMappingSequence")
_PIXELS = ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames")
_BITS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData")
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_TAGS = (
    "Modality",
    "InstanceNumber",
    "FrameOfReferenceUID",
    *_VARYING,
    *_PLACE,
    *_GROUPS,
    *_RESCALE,
    *_PIXELS,
    *_BITS,
    *_OFFSETS,
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
_QUANTITIES = ("CT", "PT")


@dataclass(frozen=True)
class Frame:
    """One slice of a file.

    Attributes:
        file: where it is.
        index: its number among the file's frames, from 0.
        name: of the file, and of the frame where there are several, for messages.
        rows, columns: its size.
        spacing: PixelSpacing, between rows and between columns, millimeters.
        position, orientation: ImagePositionPatient and ImageOrientationPatient, or `None`.
        between, thickness: SpacingBetweenSlices and SliceThickness, or `None`.
        number: InstanceNumber, or the number of the frame.
        modality: `CT`, `MR`, ...
        slope, intercept, unit: of the rescale, else of the real-world values; slope and intercept are `None` where
            there is neither.
        reference: FrameOfReferenceUID, or empty.
        inverted: MONOCHROME1 in a modality whose values are no quantities.
        stored: the lowest and the highest number that its bits can hold.
        varies: what tells it from another one at its position.
    """

    file: Path
    index: int
    name: str
    rows: int
    columns: int
    spacing: tuple[float, ...] | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    between: float | None
    thickness: float | None
    number: int | None
    modality: str
    slope: float | None
    intercept: float | None
    unit: str
    reference: str
    inverted: bool
    stored: tuple[int, int]
    varies: dict[str, str]


def read_frames(file: Path) -> list[Frame]:
    """The frames of a file, from its header alone.

    Raises:
        ValueError: it is in color, or an attribute cannot be read.
    """
    data = _read(file, stop_before_pixels=True)
    photometric = str(data.get("PhotometricInterpretation") or "")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(
            f"{file}: PhotometricInterpretation {photometric or 'is missing'}; expected gray values (MONOCHROME2), not "
            "a picture in color: leave the series out"
        )
    try:
        return _frames(data, file)
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file}: a DICOM attribute cannot be read ({error})") from error


def _read(file: Path, **options: Any) -> Dataset:
    try:
        return pydicom().dcmread(file, specific_tags=list(_TAGS), force=True, **options)
    except ImportError:
        raise
    except Exception as error:  # a file cut short fails anywhere in pydicom
        raise ValueError(f"{file}: cannot be read as DICOM ({error}); copy it again") from error


def _frames(data: Dataset, file: Path) -> list[Frame]:
    count = int(data.get("NumberOfFrames") or 1)
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or [None] * count
    if len(per_frame) != count:
        raise ValueError(f"{count} frames, but {len(per_frame)} functional groups")
    stored = _stored(data)
    return [_frame(data, own, index, count, file, stored) for index, own in enumerate(per_frame)]


def _stored(data: Dataset) -> tuple[int, int]:
    """The lowest and the highest number that the bits of a pixel can hold."""
    high, stored = whole(data.get("HighBit")), whole(data.get("BitsStored"))
    if high is not None and stored is not None and high >= stored:  # of files before 2006; pydicom cuts their top bits
        raise ValueError(f"HighBit {high} of {stored} BitsStored: values that do not begin at bit 0; convert the file")
    bits = stored or whole(data.get("BitsAllocated")) or 16
    lowest = -(2 ** (bits - 1)) if data.get("PixelRepresentation") else 0
    return lowest, lowest + 2**bits - 1


def _frame(data: Dataset, own: Dataset | None, index: int, count: int, file: Path, stored: tuple[int, int]) -> Frame:
    place = Lookup(data, own, count)
    modality = str(data.get("Modality") or "unknown")
    slope, intercept, unit = rescale_of(Lookup(data, own, 1))
    return Frame(
        file,
        index,
        f"{file.name} frame {index + 1}" if count > 1 else file.name,
        int(data.Rows),
        int(data.Columns),
        floats(place("PixelMeasuresSequence", "PixelSpacing", shared=True), 2),
        floats(place("PlanePositionSequence", "ImagePositionPatient"), 3),
        floats(place("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        number(place("PixelMeasuresSequence", "SpacingBetweenSlices", shared=True)),
        number(place("PixelMeasuresSequence", "SliceThickness", shared=True)),
        index + 1 if count > 1 else whole(data.get("InstanceNumber")),
        modality,
        slope,
        intercept,
        unit,
        str(data.get("FrameOfReferenceUID") or ""),
        data.PhotometricInterpretation == "MONOCHROME1" and modality not in _QUANTITIES,
        stored,
        {name: str(data.get(name)) for name in _VARYING}
        | {name: str(place(group, name, shared=True)) for name, group in _VARYING_GROUPS.items()},
    )


def frame_values(file: Path, frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    """Values of some frames of a file, `[rows, columns]` float32: decoded, not inverted, in the rescale's unit.

    Padding (PixelPaddingValue, to PixelPaddingRangeLimit) that is brighter than the darkest pixel becomes that one.

    Raises:
        ValueError: the pixels cannot be decoded, the message names the package that would; or there are too many.
    """
    data = _read(file)
    stored = _decoded(data, file).reshape(-1, int(data.Rows), int(data.Columns))
    low_and_high = -1 if data.PixelRepresentation else 2 ** int(data.BitsStored) - 1
    for frame in frames:
        plane = stored[frame.index]
        padding = _padding(data, plane, file)
        if frame.inverted:
            plane = low_and_high - plane.astype(np.int64)
        if padding.any() and not padding.all():
            plane = np.where(padding, np.minimum(plane, plane[~padding].min()), plane)
        if "ModalityLUTSequence" in data:
            plane = pydicom().pixels.apply_modality_lut(plane, data)
        elif frame.slope is not None:
            plane = plane * np.float64(frame.slope) + np.float64(frame.intercept or 0.0)
        yield plane.astype(np.float32)


def _padding(data: Dataset, plane: np.ndarray, file: Path) -> np.ndarray:
    """Bool, which pixels of a frame fill it up beyond what was measured."""
    try:
        first, last = (whole(data.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: PixelPaddingValue cannot be read ({error}); take it out") from error
    if first is None:
        return np.zeros(plane.shape, dtype=bool)
    ends = np.array([first, first if last is None else last]).astype(plane.dtype)  # -2000 may be written as 63536
    return (plane >= ends.min()) & (plane <= ends.max())


def doubt_about_bits(array: np.ndarray, frames: Sequence[Frame], path: str) -> str:
    """Whether stored numbers came out at the other end of their bits: PixelRepresentation or BitsStored is wrong.

    Args:
        array: `[columns, rows, slices]`, values of the frames.
        frames: of the slices, in their order.
        path: of the series, for the message.

    Raises:
        ValueError: they certainly did.
    """
    some = range(0, len(frames), -(-len(frames) // MOST_SLICES))
    low, high = frames[0].stored
    planes = np.stack([(array[..., i] - (frames[i].intercept or 0.0)) / (frames[i].slope or 1.0) for i in some], -1)
    if planes.min() < low - 1 or planes.max() > high + 1:  # a table made others of them
        return ""
    what = f"{'signed' if low < 0 else 'unsigned'} numbers of {(high - low + 1).bit_length() - 1} bits"
    advice = "PixelRepresentation or BitsStored is wrong, or something is burned in; export the series again"
    return doubt_about_ends(planes.round(), (low, high), what=what, path=path, advice=advice)


def _decoded(data: Dataset, file: Path) -> np.ndarray:
    uid = pydicom().uid
    if "TransferSyntaxUID" not in data.file_meta:  # a file of before 1996
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    syntax = data.file_meta.TransferSyntaxUID
    native = syntax in uid.AllTransferSyntaxes and not syntax.is_encapsulated
    if native and "BitsAllocated" in data:
        _check_count(data, file)
    try:
        return data.pixel_array
    except Exception as error:  # every decoder has its own
        if native:
            raise ValueError(f"{file}: the pixels cannot be read ({error}); copy the file again") from error
        packages = {
            "pyjpegls": uid.JPEGLSTransferSyntaxes,
            "pylibjpeg pylibjpeg-openjpeg": (
                *uid.JPEG2000TransferSyntaxes,
                *(uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL),
            ),
            "pylibjpeg pylibjpeg-libjpeg": uid.JPEGTransferSyntaxes,
        }
        fitting = [package for package, syntaxes in packages.items() if syntax in syntaxes]
        raise ValueError(
            f"{file}: its pixels are compressed ({syntax.name}) and cannot be decoded here; "
            f"{f'pip install {fitting[0]}' if fitting else 'decompress it first (gdcmconv --raw)'}; or it is damaged"
        ) from error


def _check_count(data: Dataset, file: Path) -> None:
    """Refuse pixels, not compressed, of a frame more than the header counts."""
    frame = int(data.Rows) * int(data.Columns) * int(data.BitsAllocated) // 8
    count, held = int(data.get("NumberOfFrames") or 1), len(data.get("PixelData") or b"")
    if held >= (count + 1) * frame:
        raise ValueError(
            f"{file}: pixels of {held // frame} frames, but {count} by the header; is NumberOfFrames lost?"
        )
