from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import find_cases
from common.images import dicom_output, read_mask, read_volume
from common.images.dicom_codes import DicomCodes
from common.preprocessing import LoadCased

hd = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
import pydicom  # noqa: E402

from tests.images.placed_series import ORIENTATIONS, PIXELS, SHAPE, affine_of, axes, series  # noqa: E402

CODES = DicomCodes("gp_unet_brats", "0.1.0", ("12738006", "SCT", "Brain"), {"tumor": ("108369006", "SCT", "Neoplasm")})
VALUES = np.random.default_rng(0).integers(1, 500, SHAPE).astype("<u2")


def case(folder: Path, orientation: str = "axial") -> Path:
    """A series in a folder, with pixels."""
    (folder / "ct").mkdir(parents=True)
    files = series(folder / "ct", orientation, **PIXELS)
    for number, file in enumerate(files):
        one = pydicom.dcmread(file)
        one["PixelData"].value = VALUES[:, :, number].T.tobytes()
        one.save_as(file)
    return folder / "ct"


def marked() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:5, 1:3], mask[5, 1, 3] = 1, 2
    return mask


def write_seg(image: Path, mask: np.ndarray, orientation: str = "axial") -> Path:
    headers = dicom_output.read_headers(sorted(image.glob("*.dcm")))
    result = dicom_output.segmentation(
        headers, mask, affine_of(orientation), classes=["none", "a", "b"][: mask.max() + 1], codes=CODES
    )
    path = image.parent / "reader.dcm"
    dicom_output.write_dicom(path, result)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_segmentation_is_the_mask_of_its_series_with_all_frames_or_those_that_mark(
    tmp_path, orientation, sparse, monkeypatch
):
    image, whole = case(tmp_path, orientation), hd.seg.Segmentation
    monkeypatch.setattr(hd.seg, "Segmentation", lambda *a, **k: whole(*a, **{**k, "omit_empty_frames": sparse}))
    path = write_seg(image, marked(), orientation)
    data = LoadCased(channels=1)({"image": str(image), "label": str(path)})
    np.testing.assert_array_equal(data["label"][0].numpy(), marked())
    np.testing.assert_allclose(data["label"].affine, data["image"].affine)
    assert (hd.seg.segread(path).NumberOfFrames < 10) == sparse


@pytest.mark.parametrize("orientation", ["axial", "oblique", "feet first"])
@pytest.mark.parametrize("sparse", [False, True])
def test_frames_may_lie_as_unevenly_as_slices_of_a_series(tmp_path, orientation, sparse, monkeypatch):
    image, whole = case(tmp_path, orientation), hd.seg.Segmentation
    for file, off in zip(sorted(image.glob("*.dcm")), (0, 0.08, -0.08, 0.08, 0), strict=True):
        one = pydicom.dcmread(file)
        place = np.asarray(one.ImagePositionPatient, dtype=float) + off * axes(orientation)[:, 2]
        one.ImagePositionPatient = place.round(4).tolist()
        one.save_as(file)
    monkeypatch.setattr(hd.seg, "Segmentation", lambda *a, **k: whole(*a, **{**k, "omit_empty_frames": sparse}))
    path = write_seg(image, marked(), orientation)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_mask(path, image).array, marked())  # of slices that are off, if sparse


def test_frames_that_lie_less_evenly_are_refused_with_the_way_out(tmp_path):
    path = write_seg(case(tmp_path), marked())
    data = pydicom.dcmread(path)
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        place[2] += 0.8 * (place[2] == 36)
    data.save_as(path)
    with pytest.raises(ValueError, match=r"reader\.dcm: .*unevenly spaced: convert it to NIfTI on the image's grid"):
        read_mask(path, tmp_path / "ct")


def test_a_segmentation_is_a_mask_of_the_series_as_nifti_in_other_axes_too(tmp_path):
    image = case(tmp_path)
    path = write_seg(image, np.minimum(marked(), 1))
    volume = read_volume(image)
    turned = nib.Nifti1Image(volume.array, volume.affine).as_reoriented([[2, 1], [0, -1], [1, 1]])
    nib.save(turned, tmp_path / "ct.nii.gz")
    mask = read_mask(path, tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(mask.affine, turned.affine, atol=1e-5)
    assert mask.array.sum() == (marked() > 0).sum()
    assert (np.asarray(turned.dataobj)[mask.array > 0].sum()) == VALUES[marked() > 0].sum()


def test_a_segmentation_of_another_series_or_grid_is_refused_with_the_reason(tmp_path):
    one, other = case(tmp_path / "a"), case(tmp_path / "b")
    path = write_seg(one, marked())
    with pytest.raises(
        ValueError, match=r"reader\.dcm lies in another frame of reference .* is it of another series\?"
    ):
        read_mask(path, other)
    volume = read_volume(one)
    for name, shift, kept in (("near", 0.5, slice(None)), ("short", 0, slice(1))):
        affine = volume.affine.copy()
        affine[0, 3] += shift
        nib.save(nib.Nifti1Image(volume.array[:, :, kept], affine), tmp_path / f"{name}.nii")
        with pytest.raises(ValueError, match=r"do not lie on one grid"):
            read_mask(path, tmp_path / f"{name}.nii")


def test_what_is_no_segmentation_is_no_mask_and_a_segmentation_no_image(tmp_path):
    image = case(tmp_path)
    with pytest.raises(ValueError, match=r"0\.dcm: cannot be read as a mask .* or a DICOM Segmentation"):
        read_mask(image / "0.dcm", image)
    with pytest.raises(ValueError, match="an image is the folder of its series"):
        read_volume(write_seg(image, marked()))


def test_a_pattern_finds_segmentations_beside_their_series(tmp_path):
    path = write_seg(case(tmp_path / "p1"), marked())
    (found,) = find_cases(tmp_path, "*/ct/", label_pattern="*/reader.dcm")
    assert found["label"] == str(path)


def test_frames_that_mark_slices_apart_from_each_other_lie_where_they_were(tmp_path, monkeypatch):
    """Slices 0, 1 and 4 of a series whose positions are rounded: gaps of one slice, and of three."""
    image, whole = case(tmp_path), hd.seg.Segmentation
    for file, off in zip(sorted(image.glob("*.dcm")), (0, 0.06, 0, 0, 0), strict=True):
        one = pydicom.dcmread(file)
        one.ImagePositionPatient = [*one.ImagePositionPatient[:2], round(one.ImagePositionPatient[2] + off, 4)]
        one.save_as(file)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:5, [0, 1, 4]] = 1
    monkeypatch.setattr(hd.seg, "Segmentation", lambda *a, **k: whole(*a, **{**k, "omit_empty_frames": True}))
    path = write_seg(image, mask)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_mask(path, image).array, mask)
