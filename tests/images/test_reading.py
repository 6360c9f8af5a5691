from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from common.images import read_grid, read_mask, read_volume
from tests.pipeline import affine_of, save

SHAPE = (6, 8, 5)
VALUES = np.arange(240, dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
def test_nifti_gives_its_array_in_its_own_axes_and_its_affine(tmp_path, suffix):
    affine = affine_of("PIR", (1, 2, 3), SHAPE, 20.0)
    path = tmp_path / f"a{suffix}"
    nib.save((nib.Nifti1Pair if suffix == ".img" else nib.Nifti1Image)(VALUES, affine), path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert read_grid(path)[0] == SHAPE
    np.testing.assert_array_equal(read_grid(path)[1], volume.affine)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_other_formats_lie_where_itk_places_them(tmp_path, suffix):
    affine = affine_of("LPS", (1, 2, 3), SHAPE, 20.0)
    save(tmp_path / "a.nii.gz", VALUES, affine)
    itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_scaled_values_are_read_as_numbers(tmp_path):
    image = nib.Nifti1Image(VALUES, np.eye(4) * [2, 2, 2, 1])
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").array, 2.0 * VALUES - 1000)


@pytest.mark.parametrize(
    ("shape", "read"), [((4, 5, 3, 1), (4, 5, 3)), ((4, 5, 3, 2), (4, 5, 3, 2)), ((4, 5, 3, 1, 2), (4, 5, 3, 2))]
)
def test_channels_are_the_fourth_axis_and_axes_of_one_are_dropped(tmp_path, shape, read):
    path = save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32), np.diag([2, 2, 2, 1]))
    assert read_volume(path).array.shape == read


@pytest.mark.parametrize(
    ("dtype", "message"),
    [([("R", "u1"), ("G", "u1"), ("B", "u1")], r"a.nii.gz: .* in color \(RGB\)"), ("c8", r"a.nii.gz: .* complex")],
)
def test_what_is_no_real_number_is_refused_by_file_and_type(tmp_path, dtype, message):
    path = save(tmp_path / "a.nii.gz", np.zeros(SHAPE, dtype), np.diag([2, 2, 2, 1]))
    with pytest.raises(ValueError, match=message):
        read_volume(path)


def test_unreadable_and_missing_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(255, size=(20, 20, 20)).astype(np.uint8)
    path = Path(save(tmp_path / "a.nii.gz", noise))
    for content in (path.read_bytes()[:3000], b"no volume"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.nii.gz: cannot be read"):
            read_volume(path)
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"link.nii.gz"):
        read_volume(tmp_path / "link.nii.gz")


class TestMasks:
    def test_of_another_axis_order_are_brought_to_the_images(self, tmp_path):
        affine = affine_of("LPS", (1, 2, 3), SHAPE)
        image = nib.Nifti1Image(VALUES, affine)
        nib.save(image, tmp_path / "image.nii.gz")
        nib.save(nib.as_closest_canonical(image), tmp_path / "mask.nii.gz")
        mask = read_mask(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz")
        np.testing.assert_array_equal(mask.array, VALUES)
        np.testing.assert_array_equal(mask.affine, read_volume(tmp_path / "image.nii.gz").affine)

    def test_rounding_of_the_affine_passes_and_another_affine_does_not(self, tmp_path):
        affine = affine_of("LPS", (3, 3, 5), SHAPE)
        save(tmp_path / "image.nii.gz", VALUES, affine)
        save(tmp_path / "mask.nii.gz", VALUES, affine + 3e-3 * np.eye(4, 4, 3))
        assert read_mask(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz").array.shape == SHAPE
        for wrong in (np.eye(4), np.diag([3, 3, 5, 1])):
            save(tmp_path / "mask.nii.gz", VALUES, wrong)
            with pytest.raises(ValueError, match=r"mask.nii.gz and .*image.nii.gz do not lie on one grid"):
                read_mask(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz")
