"""Small DICOM series in files, and where their voxels lie."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom

PIXELS = {
    **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 1},
    **{"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelData": bytes(2 * 7 * 6)},
}
SHAPE = (7, 6, 5)  # columns, rows, slices
SPACING = (0.7, 0.8, 2.5)  # between columns, rows, slices
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.8, 0.6, 0), (0.0, 0.0, -1.0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),  # the normal points to the feet
}


def axes(orientation: str) -> np.ndarray:
    """Steps from voxel to voxel along columns, rows and slices in millimeters of LPS+, a column each."""
    across, down = np.asarray(ORIENTATIONS[orientation], dtype=float)
    return np.stack([across, down, np.cross(across, down)], axis=1) * SPACING


def series(tmp_path, orientation: str, **changed) -> list:
    """The files of a series, in the order of its slices."""
    study, whole, frame = (pydicom.uid.generate_uid() for _ in range(3))
    files = []
    for number in range(SHAPE[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, whole, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Jane", "id7", "19700102", "F"
        one.StudyDate, one.StudyTime, one.StudyID, one.Modality = "20200304", "101112", "study5", "CT"
        one.InstanceNumber, one.InstitutionName, one.PatientComments = number + 1, "Hospital", "free text"
        one.private_block(0x0099, "Vendor", create=True).add_new(1, "LO", "private")
        one.Columns, one.Rows, one.PixelSpacing, one.SliceThickness = *SHAPE[:2], [SPACING[1], SPACING[0]], 2.0
        one.ImageOrientationPatient = [x for cosines in ORIENTATIONS[orientation] for x in cosines]
        one.ImagePositionPatient = (np.array([-12.5, 20.0, 31.0]) + number * axes(orientation)[:, 2]).tolist()
        for name, value in changed.items():
            setattr(one, name, value)
        file = tmp_path / f"{number}.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are wrong on purpose
            one.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def affine_of(orientation: str = "axial") -> np.ndarray:
    """To RAS+ millimeters."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes(orientation), [-12.5, 20.0, 31.0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def in_the_world(volume) -> dict[tuple[float, ...], float]:
    """Values by position, in millimeters of LPS+."""
    indices = np.indices(volume.spatial_shape).reshape(3, -1).T
    positions = (volume.affine @ np.c_[indices, np.ones(len(indices))].T)[:3].T.round(3) + 0.0
    return dict(zip(map(tuple, positions), volume.array.ravel().tolist(), strict=True))


def expected(array: np.ndarray, orientation: str) -> dict[tuple[float, ...], float]:
    indices = np.indices(array.shape).reshape(3, -1).T
    positions = (indices @ axes(orientation).T + [-12.5, 20.0, 31.0]).round(3) + 0.0
    return dict(zip(map(tuple, positions), array.ravel().tolist(), strict=True))
