from __future__ import annotations

import gzip
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.images import mask_on_grid, read_grid, read_mask, read_volume
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


def test_one_wrong_bit_in_a_compressed_file_is_found(tmp_path):
    noise = np.random.default_rng(0).normal(100, 10, (20, 20, 20)).astype(np.int16)
    path = Path(save(tmp_path / "a.nii.gz", noise))
    whole = path.read_bytes()
    for place in range(400, len(whole) - 8, 1500):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a.nii.gz: cannot be read"):
            read_volume(path)


@pytest.mark.parametrize("change", [{"datatype": 999}, {"quatern_b": 1.0, "quatern_c": 0.5}, {"dim": [3, 6, -8, 5]}])
def test_headers_that_say_what_cannot_be_are_named(tmp_path, change):
    path = _with_header(tmp_path / "a.nii", change)
    with pytest.raises(ValueError, match=r"a.nii: cannot be read"):
        read_volume(path)


def test_an_error_is_one_line_and_an_ending_that_is_not_known_in_capitals_is_told(tmp_path):
    path = Path(save(tmp_path / "a.nii", VALUES))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a.nii: cannot be read \([^\n]*damaged\?\); expected a complete NIfTI file$"):
        read_volume(path)
    with pytest.raises(ValueError, match=r"b.Nii: .*; expected a complete NIfTI file, its ending in small letters$"):
        read_volume(path.rename(tmp_path / "b.Nii"))


def test_voxels_do_not_begin_within_the_header(tmp_path):
    for ending in (".nii", ".nii.gz"):
        path = Path(save(tmp_path / f"a{ending}", VALUES))
        content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
        content[108:112] = bytes(4)  # vox_offset
        path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
        for read in (read_volume, read_grid):
            with pytest.raises(ValueError, match=r"the voxels begin within it, at byte 0 \(vox_offset\); write 352"):
                read(path)


@pytest.mark.parametrize("change", [{"dim": [3, 6, 8, 4]}, {"datatype": 2, "bitpix": 8}])
def test_a_file_does_not_go_on_behind_the_voxels_of_its_header(tmp_path, change):
    """Four of five slices, or half of each number, would be an image as well."""
    path = _with_header(tmp_path / "a.nii", change)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read \(\d+ bytes follow its last voxel: more"):
            read_volume(tmp_path / name)
    path.write_bytes(_with_header(path, {}).read_bytes() + bytes(95))  # less than a slice: where blocks are filled up
    np.testing.assert_array_equal(read_volume(path).array, VALUES)


def test_a_header_that_says_terabytes_is_named(tmp_path):
    path = _with_header(tmp_path / "a.nii", {"dim": [3, 20000, 20000, 20000], "pixdim": [1, 0.04, 0.04, 0.04]})
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
            read_volume(tmp_path / name)


def test_a_spacing_of_0_is_no_millimeter_where_it_counts(tmp_path):
    for codes in ({"qform_code": 0}, {"qform_code": 1}):
        path = _with_header(tmp_path / "a.nii", {"pixdim": [1, 2, 2, 0], **codes})
        with pytest.raises(ValueError, match=r"a.nii: no spacing in the header \(pixdim \[2.0, 2.0, 0.0\]\)"):
            read_volume(path)
    flat = _with_header(tmp_path / "a.nii", {"pixdim": [1, 2, 2, 0]}, VALUES[..., :1])
    assert read_volume(flat).array.shape == (6, 8, 1)


def _with_header(path: Path, changes: dict, values: np.ndarray = VALUES) -> Path:
    image = nib.Nifti1Image(values, None)
    image.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
    for name, value in changes.items():
        image.header[name] = value if np.isscalar(value) else [*value, *image.header[name][len(value) :]]
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    path.write_bytes(image.header.binaryblock + bytes(4) + values.tobytes("F"))
    return path


def test_formats_that_do_not_say_where_they_lie_are_doubted(tmp_path):
    nib.save(nib.AnalyzeImage(VALUES, np.diag([-2.0, 2, 2, 1])), tmp_path / "a.img")
    assert "orientation is a guess" in " ".join(read_volume(tmp_path / "a.img").warnings)
    image = itk.image_from_array(np.ascontiguousarray(VALUES.T))
    itk.imwrite(image, str(tmp_path / "a.mha"))
    assert "spacing, orientation and origin" in " ".join(read_volume(tmp_path / "a.mha").warnings)
    image.SetOrigin([1, 2, 3])
    itk.imwrite(image, str(tmp_path / "a.mha"))
    assert read_volume(tmp_path / "a.mha").warnings == ()


def test_nrrd_in_other_units_is_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(VALUES.T)), str(path))
    for unit, passes in (("mm", True), ("um", False)):
        head, rest = path.read_bytes().split(b"\n\n", 1)
        lines = [line for line in head.split(b"\n") if not line.startswith(b"space units")]
        path.write_bytes(
            b"\n".join([*lines, b"space units: " + b" ".join([b'"%s"' % unit.encode()] * 3)]) + b"\n\n" + rest
        )
        if passes:
            read_volume(path)
        else:
            with pytest.raises(ValueError, match=r"a.nrrd: its unit is um"):
                read_volume(path)


def test_a_spacing_that_itk_takes_as_a_millimeter_is_refused(tmp_path):
    image = itk.image_from_array(np.ascontiguousarray(VALUES.T))
    image.SetOrigin([1, 2, 3])
    for name, there, instead in (
        ("a.mha", b"ElementSpacing = 1 1 1\n", b""),
        ("a.nrrd", b"space directions: (1,0,0) (0,1,0) (0,0,1)", b"spacings: 1 1 nan"),
    ):
        itk.imwrite(image, str(tmp_path / name))
        content = (tmp_path / name).read_bytes()
        assert there in content
        (tmp_path / name).write_bytes(re.sub(rb"space( origin)?: .*\n", b"", content.replace(there, instead)))
        with pytest.raises(ValueError, match=rf"{name}: no spacing in the header, or one that is no number; write the"):
            read_volume(tmp_path / name)


def test_one_file_of_dicom_says_what_is_read_in_its_place(tmp_path):
    (tmp_path / "seg.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ValueError, match=r"seg.dcm is one file of DICOM: an image is the folder of its series"):
        read_volume(tmp_path / "seg.dcm")


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
        for wrong, shown in (
            (np.eye(4), "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]"),  # as in the file, not as turned to the image
            (np.diag([3, 3, 5, 1]), "[[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 5, 0]]"),
        ):
            save(tmp_path / "mask.nii.gz", VALUES, wrong)
            message = rf"mask.nii.gz and .*image.nii.gz do not lie on one grid: .* Affines: {re.escape(shown)} and"
            with pytest.raises(ValueError, match=message):
                read_mask(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.nan, "NaN or infinite"),
            (0.3, r"fractions \(0.3 to 1\): probabilities"),
            (-1, r"values of -1 beside 0: marked \(255 in eight bits with a sign is -1\), or not"),
        ],
    )
    def test_what_is_no_label_is_refused_in_a_mask_and_taken_in_an_organs_map(self, tmp_path, value, message):
        values = (VALUES > 100).astype(np.float32)
        values[0] = value
        save(tmp_path / "image.nii.gz", VALUES, np.diag([2, 2, 2, 1]))
        path = save(tmp_path / "mask.nii.gz", values, np.diag([2, 2, 2, 1]))
        with pytest.raises(ValueError, match=rf"mask.nii.gz: a mask with {message}"):
            read_mask(path, tmp_path / "image.nii.gz")
        grid = read_grid(tmp_path / "image.nii.gz")
        mask_on_grid(read_volume(path), *grid, image="image.nii.gz", probabilities=True)

    def test_any_two_values_are_a_mask_and_so_are_several_labels(self, tmp_path):
        save(tmp_path / "image.nii.gz", VALUES, np.diag([2, 2, 2, 1]))
        for values in (np.float32(0.004) * (VALUES > 100), (VALUES % 4).astype(np.float32)):
            path = save(tmp_path / "mask.nii.gz", values, np.diag([2, 2, 2, 1]))
            np.testing.assert_array_equal(read_mask(path, tmp_path / "image.nii.gz").array, values)

    def test_what_interpolation_leaves_of_nothing_is_not_marked(self, tmp_path):
        marked = VALUES > 100
        save(tmp_path / "image.nii.gz", VALUES, np.diag([2, 2, 2, 1]))
        path = save(tmp_path / "mask.nii.gz", np.where(marked, 1.0002, 1e-4), np.diag([2, 2, 2, 1]))
        np.testing.assert_array_equal(read_mask(path, tmp_path / "image.nii.gz").array, marked)

    def test_without_background_is_refused_but_in_a_slice_of_one_label(self, tmp_path):
        for labels, slices, passes in ((1, 5, False), (2, 5, False), (2, 1, False), (1, 1, True)):
            values = VALUES[..., :slices]
            save(tmp_path / "image.nii.gz", values, np.diag([2, 2, 2, 1]))
            path = save(tmp_path / "mask.nii.gz", np.rint(1 + values % labels), np.diag([2, 2, 2, 1]))
            if passes:
                assert read_mask(path, tmp_path / "image.nii.gz").array.all()
            else:
                with pytest.raises(
                    ValueError, match=r"mask.nii.gz: every corner of the mask is marked \(inside out\?\); write 0"
                ):
                    read_mask(path, tmp_path / "image.nii.gz")

    def test_one_that_is_inside_out_is_refused(self, tmp_path):
        save(tmp_path / "image.nii.gz", VALUES)
        for marked in (slice(0, 3), slice(1, 3)):
            mask = np.zeros(SHAPE, np.uint8)
            mask[marked, :4] = 1
            assert read_mask(save(tmp_path / "mask.nii.gz", mask), tmp_path / "image.nii.gz").array.any()
            save(tmp_path / "mask.nii.gz", 1 - mask)
            if marked.start:
                with pytest.raises(ValueError, match=r"mask.nii.gz: every corner of the mask is marked"):
                    read_mask(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz")

    def test_a_jpeg_is_refused_since_its_edges_are_blurred(self, tmp_path):
        values = np.zeros((16, 16), np.uint8)
        values[5:11, 5:11] = 255
        Image.fromarray(values).save(tmp_path / "image.png")
        Image.fromarray(values).save(tmp_path / "mask.jpg")
        with pytest.raises(ValueError, match=r"mask.jpg: .*JPEG has blurred"):
            read_mask(tmp_path / "mask.jpg", tmp_path / "image.png")
