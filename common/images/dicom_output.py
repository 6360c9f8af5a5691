"""Results as DICOM objects that refer to the series they were computed from.

A mask becomes a Segmentation (DICOM PS3.3, A.51), a heatmap a Parametric Map (A.75), both by highdicom. They belong to
the patient and the study of the series and lie in its frame of reference; what DICOM demands of the patient and the
study is copied, nothing else, least of all private or free text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import PathLike, atomic_path, writing
from .dicom_codes import DicomCodes
from .geometry import LPS_TO_RAS, check_one_grid

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from highdicom.seg import Segmentation
    from pydicom import Dataset

MANUFACTURER = "weakseg-bundles"

# What DICOM demands of every object (types 1 and 2), taken over from the series.
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName")
_PLACE = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")
_FRAMES = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_LOSS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_REST = (*_FRAMES, *_UIDS, *_LOSS, "Modality", "SliceThickness", "PositionReferenceIndicator")


def dicom_results(
    series: str,
    affine: np.ndarray,
    mask: np.ndarray,
    heatmap: np.ndarray,
    *,
    classes: Sequence[str],
    codes: DicomCodes,
) -> tuple[dict[str, Dataset], str]:
    """Mask and heatmap of a series as DICOM objects.

    Args:
        series: path of the image, see `common.images.read_volume`.
        affine: of the image.
        mask, heatmap: `[columns, rows, slices]`, as the image was read.
        classes, codes: see `segmentation`.

    Returns:
        The objects by suffix of their file, and why there are none, which is empty otherwise.

    Raises:
        ImportError: highdicom is not installed.
        ValueError: the arrays do not belong to the series.
    """
    from .dicom import ASSUME_AXIAL, series_files

    headers = read_headers(series_files(series, dicom_geometry=ASSUME_AXIAL))
    if len(headers) > 1 and any(_FRAMES[-1] in header for header in headers):
        return {}, f"no DICOM results: the series is {len(headers)} files of frames, and results refer to one"
    demanded = (*_UIDS, *(("FrameOfReferenceUID",) if _multiframe(headers) else _PLACE))
    if missing := sorted({name for header in headers for name in demanded if header.get(name) in (None, "")}):
        return {}, f"no DICOM results: the series has no {', '.join(missing)}"
    return {
        "seg.dcm": segmentation(headers, mask, affine, classes=classes, codes=codes),
        "heatmap.dcm": parametric_map(headers, heatmap, affine, codes=codes),
    }, ""


def read_headers(files: Sequence[PathLike]) -> list[Dataset]:
    """What results take over from the files of a series, in their order; pixels are not read.

    Raises:
        ImportError: highdicom is not installed.
    """
    _highdicom()
    from pydicom import dcmread
    from pydicom.config import disable_value_validation

    tags = ["SpecificCharacterSet", *_PATIENT, *_STUDY, *_PLACE, *_REST]
    with disable_value_validation():  # warnings would show the values, birth dates included
        return [dcmread(file, stop_before_pixels=True, specific_tags=tags) for file in files]


def segmentation(
    headers: Sequence[Dataset], mask: np.ndarray, affine: np.ndarray, *, classes: Sequence[str], codes: DicomCodes
) -> Segmentation:
    """A mask as Segmentation, a segment a class. All frames are kept: an empty mask, too, covers the whole series.

    Args:
        headers: of the series, see `read_headers`: one a slice, or that of a multi-frame file.
        mask: `[columns, rows, slices]`, `k` where class `k` is.
        affine: of the image, `[4, 4]` RAS+ millimeters.
        classes: names; the first is "nothing there" and gets no segment.
        codes: see there.

    Raises:
        ValueError: the mask has another shape or place than the series, or values without a class.
    """
    hd = _highdicom()
    from pydicom.sr.codedict import codes as dicom

    if unknown := sorted(set(np.unique(mask).tolist()) - set(range(len(classes)))):
        raise ValueError(f"the mask holds {unknown[0]}, expected 0…{len(classes) - 1} for {list(classes)}")
    family = dicom.DCM.ArtificialIntelligence
    algorithm = hd.AlgorithmIdentificationSequence(name=codes.name, version=codes.version, family=family)
    regions = [hd.sr.CodedConcept(*codes.anatomy)] if codes.anatomy else None
    descriptions = []
    for number, name in enumerate(classes[1:], start=1):
        category, kind = (hd.sr.CodedConcept(*code) for code in codes.finding(name))
        described = (number, name[:64], category, kind, "AUTOMATIC", algorithm)
        descriptions.append(hd.seg.SegmentDescription(*described, anatomic_regions=regions))
    placed = _placed(headers, mask.astype(np.uint8), affine)
    result = hd.seg.Segmentation(
        _anonymous(headers, placed),
        **placed,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        **_common(codes, number=9001, description="Segmentation"),
        omit_empty_frames=False,
        content_label="MASK",
    )
    return _identified(result, headers[0])


def parametric_map(
    headers: Sequence[Dataset], heatmap: np.ndarray, affine: np.ndarray, *, codes: DicomCodes
) -> ParametricMap:
    """A heatmap as Parametric Map, its values as they are (32-bit floats without a unit).

    Args:
        headers, affine, codes: see `segmentation`.
        heatmap: `[columns, rows, slices]`.

    Raises:
        ValueError: the heatmap has another shape or place than the series.
    """
    hd = _highdicom()
    from pydicom.sr.codedict import codes as dicom

    low, high = float(heatmap.min()), float(heatmap.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation="Evidence for a finding",
        unit=dicom.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    window = hd.VOILUTTransformation(
        window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
    )
    placed = _placed(headers, heatmap.astype(np.float32), affine)
    result = hd.pm.ParametricMap(
        _anonymous(headers, placed),
        **placed,
        **_common(codes, number=9002, description="Heatmap"),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        derived_pixel_contrast="NONE",
        content_label="HEATMAP",
    )
    result.Laterality = ""  # type 2C, which highdicom leaves out
    return _identified(result, headers[0])


def write_dicom(path: PathLike, result: Dataset) -> None:
    """Write a DICOM object; the file appears whole or not at all."""
    from pydicom.config import disable_value_validation

    with writing(path), atomic_path(path) as temporary, disable_value_validation():
        result.save_as(temporary, enforce_file_format=True)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError:
        raise ImportError("writing DICOM results needs highdicom: pip install 'weakseg-bundles[dicom]'") from None
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies
    return highdicom


def _multiframe(headers: Sequence[Dataset]) -> bool:
    return len(headers) == 1 and "PerFrameFunctionalGroupsSequence" in headers[0]


def _placed(headers: Sequence[Dataset], array: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Where the array `[columns, rows, slices]` lies, as highdicom wants it: `[slices, rows, columns]`, in LPS+.

    Slices that are files have the positions of these. Frames of one file may have any order there: they get positions
    by the affine, and highdicom finds the frame at each.
    """
    hd = _highdicom()
    first = headers[0]
    frames = np.ascontiguousarray(array.T)
    lps = LPS_TO_RAS @ affine
    if _multiframe(headers):
        system = {"coordinate_system": "PATIENT", "frame_of_reference_uid": first.FrameOfReferenceUID}
        return {"pixel_array": hd.Volume(frames, lps[:, [2, 1, 0, 3]], **system)}
    across, down = np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3))
    start, end = (np.asarray(header.ImagePositionPatient, dtype=float) for header in (first, headers[-1]))
    row_mm, column_mm = map(float, first.PixelSpacing)
    step = (end - start) / (len(headers) - 1) if len(headers) > 1 else lps[:3, 2]
    placed = np.eye(4)
    placed[:3] = np.stack([across * column_mm, down * row_mm, step, start], axis=1)
    shape = (int(first.Columns), int(first.Rows), len(headers))
    check_one_grid(array.shape, lps, shape, placed, what="the image and the files of its series")
    distance = abs(float(step @ np.cross(across, down)))
    thickness = float(first.get("SliceThickness") or distance)
    return {"pixel_array": frames, "pixel_measures": hd.PixelMeasuresSequence(first.PixelSpacing, thickness, distance)}


def _common(codes: DicomCodes, *, number: int, description: str) -> dict[str, Any]:
    hd = _highdicom()
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "series_number": number,
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": codes.name[:64],
        "software_versions": codes.version,
        "device_serial_number": f"{codes.name[:40]}-{codes.version}"[:64],
        "series_description": f"{description} ({codes.name})"[:64],
    }


def _anonymous(headers: Sequence[Dataset], placed: dict[str, Any]) -> list[Dataset]:
    """The headers without patient and study: highdicom's messages would show their values.

    Those of slices have a thickness, which highdicom takes for granted and not every MR has: that of `_placed`.
    """
    from pydicom import Dataset

    measures = placed.get("pixel_measures")
    without = []
    for header in headers:
        one = Dataset()
        for name in (*_PLACE, *_REST):
            if name in header:
                one.add(header[name])
        if measures is not None and not one.get("SliceThickness"):
            one.SliceThickness = measures[0].SliceThickness
        for name in (*_PATIENT, *_STUDY):
            setattr(one, name, None)
        without.append(one)
    return without


def _identified(result: Any, header: Dataset) -> Any:
    """The result with the patient and the study of the series; a value that DICOM forbids becomes empty."""
    from pydicom.config import RAISE, disable_value_validation
    from pydicom.valuerep import validate_value

    with disable_value_validation():
        for name in (*_PATIENT, *_STUDY):
            value = header.get(name)
            try:
                validate_value(result[name].VR, value, RAISE)
            except ValueError:
                value = None
            if name == "PatientSex" and value not in ("M", "F", "O"):
                value = None
            setattr(result, name, value)
        if "SpecificCharacterSet" in header:
            result.SpecificCharacterSet = header.SpecificCharacterSet
    return result
