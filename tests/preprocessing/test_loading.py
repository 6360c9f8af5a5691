from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from PIL import Image

from common.preprocessing import LoadCased, check_image
from tests.pipeline import affine_of, save

SHAPE = (6, 8, 5)
AFFINE = affine_of("LPS", (2, 2, 5), SHAPE)
VALUES = np.arange(240, dtype=np.float32).reshape(SHAPE)
GOOD = VALUES.reshape(2, 6, 4, 5)


def turned(values: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in the same places with axes in another order."""
    image = nib.Nifti1Image(values, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axcodes))
    image = image.as_reoriented(turn)
    return np.asanyarray(image.dataobj), image.affine


def test_masks_and_modalities_of_any_axis_order_come_on_the_grid_of_the_first_image(tmp_path):
    case = {
        "image": [save(tmp_path / "a.nii.gz", VALUES, AFFINE), save(tmp_path / "b.nii", *turned(VALUES + 1, "RAS"))]
    }
    for number, key in enumerate(("organ", "label")):
        case[key] = save(tmp_path / f"{key}.nii.gz", *turned(VALUES * (1 + number), "SAL"))
    data = LoadCased(channels=2)(case)
    np.testing.assert_array_equal(data["image"].numpy(), np.stack([VALUES, VALUES + 1]))
    np.testing.assert_array_equal(data["scan"].numpy(), data["image"].numpy())
    np.testing.assert_array_equal(data["organ"].numpy(), VALUES[None])
    np.testing.assert_array_equal(data["label"].numpy(), 2 * VALUES[None])
    for key in ("image", "organ", "label"):
        np.testing.assert_allclose(data[key].affine, AFFINE, atol=1e-6)
    assert data["warnings"] == ""


def test_a_second_modality_may_differ_by_rounding_and_no_more(tmp_path):
    first = save(tmp_path / "a.nii.gz", VALUES, AFFINE)
    near = save(tmp_path / "b.nii.gz", VALUES + 1, AFFINE + 1e-6)
    assert LoadCased(channels=2)({"image": [first, near]})["image"].shape == (2, *SHAPE)
    for key, names in (("image", [first, save(tmp_path / "c.nii.gz", VALUES, np.eye(4))]), ("organ", first)):
        case = {"image": first, key: names} if key == "image" else {"image": first, key: str(tmp_path / "c.nii.gz")}
        with pytest.raises(ValueError, match=r"c.nii.gz and .*a.nii.gz do not lie on one grid"):
            LoadCased(channels=2 if key == "image" else 1)(case)


def test_what_is_doubtful_about_the_files_is_told_once_with_their_names(tmp_path):
    paths = [save(tmp_path / folder / "scan.nii.gz", VALUES + len(folder), np.eye(4)) for folder in ("a", "bc")]
    data = LoadCased(channels=2)({"image": paths})
    assert data["warnings"] == "scan.nii.gz: the affine is the identity: spacing and orientation may have been lost"


@pytest.mark.parametrize(("degrees", "told"), [(25, ""), (40, "tilted by 40 degrees"), (50, "tilted by 40 degrees")])
def test_slices_that_lie_askew_in_the_patient_are_doubted(tmp_path, degrees, told):
    turn, angle = np.eye(4), np.deg2rad(degrees)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    data = LoadCased(channels=1)({"image": save(tmp_path / "a.nii.gz", VALUES, turn @ AFFINE)})
    assert data["warnings"].split(":")[0] == told


@pytest.mark.parametrize(("shift", "told"), [(0.01, ""), (2.0, "sheared: its axes are 22 degrees from square")])
def test_slices_that_are_shifted_against_each_other_are_doubted(tmp_path, shift, told):
    sheared = AFFINE.copy()
    sheared[1, 2] = shift
    data = LoadCased(channels=1)({"image": save(tmp_path / "a.nii.gz", VALUES, sheared)})
    assert data["warnings"].partition(";")[0] == told


def test_one_image_in_the_place_of_two_modalities_is_refused(tmp_path):
    one, copy, other = (save(tmp_path / f"{k}.nii.gz", VALUES + (k == 2), AFFINE) for k in range(3))
    for files in ([one, one], [one, other, copy]):
        with pytest.raises(
            ValueError, match=rf"{files[0]} and {files[-1]} are the same image, given as two modalities"
        ):
            LoadCased(channels=len(files))({"image": files})


def test_a_mask_with_channels_is_refused(tmp_path):
    case = {"image": save(tmp_path / "a.nii.gz", VALUES, AFFINE)}
    case["label"] = save(tmp_path / "mask.nii.gz", np.stack([VALUES, VALUES], axis=-1), AFFINE)
    with pytest.raises(ValueError, match=r"mask.nii.gz: expected a 3D mask, got the shape \[6, 8, 5, 2\]"):
        LoadCased(channels=1)(case)


class TestDoubtAboutType:
    x, y = np.mgrid[:48, :48] - 23.5
    hill = np.repeat(200 * np.exp(-(x**2 + y**2) / 150)[..., None], 4, axis=-1)

    def doubt(self, tmp_path, values: np.ndarray, name: str = "a.nii.gz") -> str:
        return LoadCased(channels=1)(
            {"image": save(tmp_path / name, values, affine_of("LPS", (1, 1, 1), (48, 48, 4)))}
        )["warnings"]

    @pytest.mark.parametrize(
        ("values", "dtype"), [(hill, "int8"), (hill - 20, "uint8"), (hill - 20, "uint16"), (300 * hill, "int16")]
    )
    def test_values_that_came_out_at_the_other_end_of_their_type_are_refused(self, tmp_path, values, dtype):
        stored = values.astype(np.int64).astype(dtype)
        with pytest.raises(ValueError, match=rf"a.nii.gz: \d+% of its edges go from one end of the values of {dtype}"):
            self.doubt(tmp_path, stored)
        for fits in (values.astype(np.int32), values.astype(np.float32)):
            assert self.doubt(tmp_path, fits) == ""

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (hill, "uint8"),
            (hill - 128, "int8"),
            (300 * hill, "uint16"),
            (60 * (hill - 40), "uint8"),
        ],
    )
    def test_images_that_fill_their_type_or_are_cut_off_at_its_ends_pass(self, tmp_path, values, dtype):
        assert self.doubt(tmp_path, values.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)) == ""

    def test_what_only_seems_so_is_doubted_and_a_picture_is_not(self, tmp_path):
        noise = np.random.default_rng(0).integers(256, size=(48, 48, 4)).astype(np.uint8)
        assert self.doubt(tmp_path, noise).startswith(
            "a.nii.gz: 2% of its edges go from one end of the values of uint8"
        )
        Image.fromarray(noise[..., 0]).save(tmp_path / "a.png")
        assert LoadCased(channels=1)({"image": str(tmp_path / "a.png")})["warnings"] == ""


class TestCheckImage:
    @pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 2, 2, 1)])
    def test_volumes_pass_even_of_one_slice(self, shape):
        check_image(MetaTensor(GOOD.ravel()[: np.prod(shape)].reshape(shape)), channels=2)

    def test_slices_are_those_of_the_patient_not_of_the_array(self):
        for axcodes, passes in (("SRA", True), ("RAS", False)):
            image = MetaTensor(GOOD[:, :1], affine=affine_of(axcodes, (1, 1, 5), (1, 4, 5)))
            if passes:
                check_image(image, channels=2)
            else:
                with pytest.raises(ValueError, match=r"axial slices of 1 × 4 voxels"):
                    check_image(image, channels=2)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (GOOD[..., 0], "expected a 3D image, got shape [6, 4]"),
            (GOOD[:, :1], "expected a 3D image, got axial slices of 1 × 4 voxels"),
            (GOOD[..., :0], "expected a 3D image, got shape [6, 4, 0]"),
            (GOOD[:, :, :, :, None], "expected a 3D image, got shape [6, 4, 5, 1]"),
            (GOOD[:1], "expected 2 channel(s), got 1; --channels 1 trains on such images, and weights take as many"),
            (GOOD[[0, 1, 0]], "expected 2 channel(s), got 3 (colors, or a fourth axis); --channels 3 trains on such"),
            (np.where(GOOD == 7, np.nan, GOOD), "holds NaN or infinite values"),
            (np.where(GOOD == 7, -np.inf, GOOD), "holds NaN or infinite values"),
            (np.zeros_like(GOOD), "every voxel is 0, there is nothing to see"),
            (np.full_like(GOOD, 3.5), "every voxel is 3.5"),
            (GOOD + np.float32(1e7), "its values, 10000000 to 10000239, are too far from 0 to be told apart"),
        ],
    )
    def test_nonsense_is_refused_naming_the_file(self, image, message):
        with pytest.raises(ValueError, match=re.escape(f"/data/case_7/flair.nii.gz: {message}")):
            check_image(MetaTensor(image, meta={"filename_or_obj": "/data/case_7/flair.nii.gz"}), channels=2)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (-1, 0)])
def test_a_mask_in_the_place_of_an_image_is_refused(tmp_path, values):
    mask = np.where(VALUES > 100, *values[::-1]).astype(np.float32)
    image = save(tmp_path / "a.nii.gz", mask, AFFINE)
    with pytest.raises(ValueError, match=rf"a.nii.gz: every voxel is {values[0]:g} or {values[1]:g}: a mask in the pl"):
        LoadCased(channels=1)({"image": image})
    beside = {"image": [save(tmp_path / "b.nii.gz", VALUES, AFFINE), image]}
    assert LoadCased(channels=2)(beside)["warnings"] == ""
    dark = save(tmp_path / "c.nii.gz", mask[..., :1], AFFINE)
    assert LoadCased(channels=1)({"image": dark})["warnings"] == ""


def test_labels_in_the_place_of_an_image_are_doubted_and_few_gray_values_are_not(tmp_path):
    labels = np.digitize(VALUES, [60, 120, 200]).astype(np.uint8)
    data = LoadCased(channels=1)({"image": save(tmp_path / "a.nii.gz", labels, AFFINE)})
    assert data["warnings"] == "no values but 0, 1, 2, 3: labels in the place of an image?"
    for name, scan in (("b", VALUES % 22), ("c", labels / np.float32(3)), ("d", labels + 1)):
        assert LoadCased(channels=1)({"image": save(tmp_path / f"{name}.nii.gz", scan, AFFINE)})["warnings"] == ""
