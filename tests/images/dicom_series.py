"""Small DICOM series, written with pydicom, and the files that come with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

NAME, BIRTH, PATIENT = "Zyxwv^Qrst", "19610402", "MRN-48151623"  # markers that may appear nowhere
AXIAL = (1, 0, 0, 0, 1, 0)
OBLIQUE = (0.8, 0.36, 0.48, -0.6, 0.48, 0.64)


def stack(slices: int = 4, dtype: Any = np.int16) -> np.ndarray:
    """`[3, 5, slices]`, every value another."""
    return np.arange(3 * 5 * slices, dtype=dtype).reshape(3, 5, slices)


def datasets(
    values: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-20.0, -30.0, 40.0),
    spacing: Sequence[float] = (0.8, 0.5, 2.5),
    series: str = "1.2.826.1",
    **attributes: Any,
) -> list[Any]:
    """One dataset a slice.

    Args:
        values: `[rows, columns, slices]` of int16 or uint16, as they are stored.
        orientation: ImageOrientationPatient.
        origin: ImagePositionPatient of the first slice; the next ones follow along the normal.
        spacing: between rows, between columns, between slices.
        attributes: set in every slice.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    slices = []
    for i in range(values.shape[2]):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = pydicom.uid.MRImageStorage, f"{series}.{i + 1}"
        one.Modality, one.SeriesInstanceUID, one.StudyInstanceUID = "MR", series, "1.2.826.9"
        one.PatientName, one.PatientBirthDate, one.PatientID = NAME, BIRTH, PATIENT
        one.ImageType, one.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], i + 1
        one.SliceThickness, one.SpacingBetweenSlices = 99.0, 77.0  # wrong, and never looked at
        one.ImageOrientationPatient = list(orientation)
        one.ImagePositionPatient = [float(x) for x in np.asarray(origin) + i * spacing[2] * normal]
        one.PixelSpacing = list(spacing[:2])
        one.Rows, one.Columns, one.SamplesPerPixel = *values.shape[:2], 1
        one.PhotometricInterpretation, one.BitsAllocated, one.BitsStored, one.HighBit = "MONOCHROME2", 16, 16, 15
        one.PixelRepresentation = int(values.dtype == np.int16)
        one.PixelData = values[:, :, i].tobytes()
        slices.append(one)
    return changed(slices, *range(len(slices)), **attributes)


def changed(slices: list[Any], *numbers: int, **attributes: Any) -> list[Any]:
    """The slices, some of them with other attributes."""
    for number in numbers:
        for name, value in attributes.items():
            setattr(slices[number], name, value)
    return slices


def save(folder: Path, slices: Sequence[Any], name: Callable[[int], str] = "{:03d}.dcm".format) -> Path:
    """Write slices into a folder, made when needed, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are wrong on purpose
        for i, one in enumerate(slices):
            one.save_as(folder / name(i), enforce_file_format=True)
    return folder


def packaged(name: str) -> Path:
    """A file, or a folder, that comes with pydicom."""
    return Path(pydicom.__file__).parent / "data" / "test_files" / name


def alone(tmp_path: Path, name: str) -> Path:
    """A folder that holds one packaged file."""
    folder = tmp_path / name.removesuffix(".dcm")
    folder.mkdir()
    (folder / name).symlink_to(packaged(name))
    return folder
