from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest

from common.files import NotWritten
from common.images import read_volume, write_nifti
from tests.pipeline import affine_of

SHAPE = (6, 8, 5)
KEPT = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
KEPT += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim", "descrip")


def moved(affine: np.ndarray) -> np.ndarray:
    return affine + 9.0 * np.eye(4, 4, 3)


def image_file(path, codes, *, unit="mm", kind=nib.Nifti1Image):
    """An image with both forms, which disagree by 9 mm where both codes are set."""
    affine = affine_of("LPS", (2, 3, 4), SHAPE, 15.0)
    image = kind(np.full(SHAPE, 700, np.int16), affine)
    image.header.set_slope_inter(2.0, -1000.0)
    image.header["descrip"] = b"a scan"
    image.header["cal_max"] = 80
    image.set_qform(moved(affine), codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units(unit)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a name"))
    nib.save(image, path)
    return path


def itk_place(path) -> list[np.ndarray]:
    image = itk.imread(str(path), itk.F)
    return [np.asarray(image.GetOrigin()), np.asarray(image.GetSpacing()), itk.array_from_matrix(image.GetDirection())]


@pytest.mark.parametrize("unit", ["mm", "meter"])
@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 4)])
def test_the_result_has_the_images_header_and_lies_on_it_in_nibabel_and_itk(tmp_path, codes, unit):
    scale = 0.001 if unit == "meter" else 1.0
    source = image_file(tmp_path / "scan.nii.gz", codes, unit=unit)
    mask = np.random.default_rng(0).integers(2, size=SHAPE).astype(np.uint8)
    write_nifti(tmp_path / "seg.nii.gz", mask, read_volume(source).affine if scale == 1 else np.eye(4), like=source)
    first, second = nib.load(source), nib.load(tmp_path / "seg.nii.gz")
    for field in KEPT:
        np.testing.assert_array_equal(first.header[field], second.header[field], err_msg=field)
    np.testing.assert_array_equal(first.affine, second.affine)
    for one, other in zip(itk_place(source), itk_place(tmp_path / "seg.nii.gz"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(second.dataobj), mask)
    assert second.header["cal_max"] == 0
    assert len(second.header.extensions) == 0


@pytest.mark.parametrize(("kind", "name"), [(nib.Nifti2Image, "scan.nii"), (nib.Nifti1Pair, "scan.img")])
def test_other_kinds_of_nifti_keep_their_place_too(tmp_path, kind, name):
    source = image_file(tmp_path / name, (1, 1), kind=kind)
    heat = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_nifti(tmp_path / "heat.nii.gz", heat, np.eye(4), like=source)
    written = nib.load(tmp_path / "heat.nii.gz")
    np.testing.assert_array_equal(written.header.get_sform(), nib.load(source).header.get_sform())
    np.testing.assert_array_equal(written.header.get_qform(), nib.load(source).header.get_qform())
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), heat)


def test_without_a_nifti_image_both_forms_are_the_affine(tmp_path):
    affine = affine_of("LPS", (1.0, 2.0, 3.0), SHAPE, degrees=10)
    array = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_nifti(tmp_path / "new" / "a.nii.gz", array, affine, like=tmp_path)
    image = nib.load(tmp_path / "new" / "a.nii.gz")
    data = np.asanyarray(image.dataobj)
    assert data.dtype == np.float32
    np.testing.assert_array_equal(data, array)
    for form in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(form[0], affine, atol=1e-5)
        assert form[1] == 1
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match=r"file/a\.nii cannot be written"):
        write_nifti(tmp_path / "file" / "a.nii", np.zeros((2, 2, 2), np.uint8), np.eye(4))
