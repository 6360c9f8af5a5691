from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.datasets import half_lungs, substacks
from common.datasets.parts import lung_gap
from tests.pipeline import affine_of, save, world

SHAPE = (8, 6, 10)


def voxels(path: str) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


def write_case(
    root: Path,
    name: str,
    ras: dict[str, np.ndarray],
    *,
    axcodes: str = "RAS",
    spacing: tuple[float, float, float] = (2.0, 3.0, 4.0),
    degrees: float = 0.0,
) -> dict[int, np.ndarray]:
    """Save arrays of RAS order, axes turned to `axcodes`; return where in the world the first one's values are."""
    affine = affine_of("RAS", spacing, SHAPE, degrees)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    for file, array in ras.items():
        image = nib.Nifti1Image(array, affine).as_reoriented(turn)
        save(root / name / f"{file}.nii.gz", np.asanyarray(image.dataobj), image.affine)
    first = next(iter(ras.values()))
    return dict(zip(first.ravel().tolist(), world(affine, SHAPE).reshape(-1, 3), strict=True))


def numbered() -> np.ndarray:
    """A volume in which no two voxels are alike."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def mask_in(*slices: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 2, list(slices)] = 1
    return mask


def two_lungs() -> np.ndarray:
    """Left at x 0 to 2, right at x 4 to 7 (RAS), in all slices but the first."""
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[0:3, 1:5, 1:] = lungs[4:8, 1:5, 1:] = 1
    return lungs


class TestLungGap:
    def test_is_the_middle_of_the_empty_columns_between(self):
        assert lung_gap(two_lungs()) == 3

    def test_is_where_touching_lungs_are_thinnest_not_the_empty_rim(self):
        lungs = np.zeros((20, 6, 4))
        lungs[4:9] = lungs[10:18] = 1
        lungs[9, 2, 2] = 1
        assert lung_gap(lungs) == 9

    def test_refuses_an_empty_mask(self):
        with pytest.raises(ValueError, match="lung mask is empty"):
            lung_gap(np.zeros((3, 3, 3)))


class TestSubstacks:
    @pytest.mark.parametrize(("axcodes", "degrees"), [("RAS", 0.0), ("LPS", 0.0), ("PIR", 20.0), ("SRA", 0.0)])
    def test_every_voxel_stays_where_it_was_in_the_world(self, tmp_path, axcodes, degrees):
        files = {"flair": numbered(), "mask": mask_in(4, 5, 6)}
        place = write_case(tmp_path / "in", "a", files, axcodes=axcodes, degrees=degrees)
        cases = substacks(tmp_path / "in", tmp_path / "out", min_slices=1)
        seen = []
        for case in cases:
            image = nib.Nifti1Image.from_filename(case["image"])
            values = np.asanyarray(image.dataobj)
            expected = np.array([place[v] for v in values.ravel().tolist()])
            np.testing.assert_allclose(world(image.affine, image.shape).reshape(-1, 3), expected, atol=1e-3)
            np.testing.assert_allclose(nib.Nifti1Image.from_filename(case["label"]).affine, image.affine)
            seen += values.ravel().tolist()
        assert sorted(seen) == sorted(place)

    @pytest.mark.parametrize("axcodes", ["RAS", "LPI", "IRA"])
    def test_label_says_whether_the_parts_own_mask_is_empty(self, tmp_path, axcodes):
        write_case(tmp_path / "in", "a_1", {"flair": numbered(), "mask": mask_in(0, 1, 2, 6, 7)}, axcodes=axcodes)
        cases = substacks(tmp_path / "in", tmp_path / "out", min_slices=2, patient_separator="_")
        # Slices count from the feet, whatever the file's orientation.
        assert [(c["case"], c["cls"]) for c in cases] == [
            ("a_1_s000-002", 1),
            ("a_1_s003-005", 0),
            ("a_1_s006-007", 1),
            ("a_1_s008-009", 0),
        ]
        assert [voxels(c["label"]).any() for c in cases] == [True, False, True, False]
        assert {c["patient"] for c in cases} == {"a"}

    def test_no_part_is_longer_than_asked(self, tmp_path):
        write_case(tmp_path / "in", "a", {"flair": numbered(), "mask": mask_in(*range(7))})
        cases = substacks(tmp_path / "in", tmp_path / "out", min_slices=3, max_slices=4)
        assert [voxels(c["image"]).shape[2] for c in cases] == [3, 4, 3]

    def test_too_little_of_a_finding_is_neither_positive_nor_negative(self, tmp_path):
        organ = np.zeros(SHAPE, np.uint8)
        organ[2:5, 1:4] = 1  # 9 voxels a slice
        write_case(tmp_path / "in", "a", {"flair": numbered(), "mask": mask_in(3, 4, 5), "brain": organ})
        options = {"organ": "brain", "min_slices": 3}
        voxel_ml = 2.0 * 3.0 * 4.0 / 1000

        def labels(**limits):
            return [c["cls"] for c in substacks(tmp_path / "in", tmp_path / "out", **options, **limits)]

        assert labels() == [0, 1, 0]
        assert labels(min_ml=3 * voxel_ml - 1e-6) == labels(min_share=1 / 9 - 1e-6) == [0, 1, 0]
        assert labels(min_ml=3 * voxel_ml + 1e-6) == labels(min_share=1 / 9 + 1e-6) == [0, 0]

    def test_modalities_and_organ_are_cut_likewise(self, tmp_path):
        write_case(
            tmp_path / "in", "a", {"t1": numbered(), "flair": -numbered(), "mask": mask_in(4), "brain": mask_in(0)}
        )
        first = substacks(tmp_path / "in", tmp_path / "out", modalities=("flair", "t1"), organ="brain", min_slices=2)[0]
        flair, t1 = map(voxels, first["image"])
        np.testing.assert_array_equal(flair, -t1)
        np.testing.assert_array_equal(voxels(first["organ"]), mask_in(0)[..., :4])

    def test_says_what_is_wrong_with_a_case(self, tmp_path):
        write_case(tmp_path / "in", "a", {"flair": numbered(), "mask": mask_in(4)})
        with pytest.raises(ValueError, match="no part is left; lower min_slices"):
            substacks(tmp_path / "in", tmp_path / "out", min_slices=6)
        with pytest.raises(ValueError, match="write the parts to another folder"):
            substacks(tmp_path / "in", tmp_path / "in" / ".." / "in")
        with pytest.raises(FileNotFoundError, match=r"no file matches '\*/t2.nii.gz'"):
            substacks(tmp_path / "in", tmp_path / "out", modalities=("t2",))
        mask = tmp_path / "in" / "a" / "mask.nii.gz"
        whole = mask.read_bytes()
        mask.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"mask.nii.gz: cannot be read"):
            substacks(tmp_path / "in", tmp_path / "out")
        elsewhere = affine_of("RAS", (2, 3, 4), SHAPE)
        elsewhere[0, 3] += 40
        save(mask, mask_in(4), elsewhere)
        with pytest.raises(ValueError, match=r"mask.nii.gz and the first volume of its case do not lie on one grid"):
            substacks(tmp_path / "in", tmp_path / "out")
        mask.unlink()
        with pytest.raises(FileNotFoundError, match=r"mask.nii.gz"):
            substacks(tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestHalfLungs:
    @pytest.mark.parametrize("axcodes", ["RAS", "LPS", "AIL"])
    def test_finding_in_the_left_lung_makes_the_left_parts_positive(self, tmp_path, axcodes):
        infection = np.zeros(SHAPE, np.uint8)
        infection[1, 2, 4:] = 1  # x grows to the right: this is the left lung
        files = {"ct": numbered(), "infection": infection, "lung": two_lungs()}
        write_case(tmp_path / "in", "a", files, axcodes=axcodes)
        cases = half_lungs(tmp_path / "in", tmp_path / "out", min_slices=2)
        assert {c["case"]: c["cls"] for c in cases} == {
            "a_left_s001-003": 0,
            "a_left_s004-009": 1,
            "a_right_s001-009": 0,
        }
        assert [voxels(c["label"]).any() for c in cases] == [c["cls"] == 1 for c in cases]

    def test_parts_hold_each_lung_voxel_once_and_in_its_place(self, tmp_path):
        files = {"ct": numbered(), "infection": mask_in(4, 5), "lung": two_lungs()}
        place = write_case(tmp_path / "in", "a", files, axcodes="LPI")
        seen: list[int] = []
        for case in half_lungs(tmp_path / "in", tmp_path / "out", min_slices=1, max_slices=3):
            image = nib.Nifti1Image.from_filename(case["image"])
            inside = voxels(case["organ"]) > 0
            values = np.asanyarray(image.dataobj)[inside].tolist()
            expected = np.array([place[v] for v in values])
            np.testing.assert_allclose(world(image.affine, image.shape)[inside], expected, atol=1e-3)
            seen += values
        assert sorted(seen) == sorted(numbered()[two_lungs() > 0].tolist())

    def test_margin_stays_on_its_side_of_the_plane_between_the_lungs(self, tmp_path):
        lungs = two_lungs()
        lungs[:, [1, 4]] = 0
        write_case(tmp_path / "in", "a", {"ct": numbered(), "infection": mask_in(), "lung": lungs})

        def columns(margin_mm):
            found = half_lungs(tmp_path / "in", tmp_path / "out", margin_mm=margin_mm)
            return [voxels(c["image"]).shape[:2] for c in found]

        assert columns(0) == [(3, 2), (4, 2)]
        assert columns(3.0) == [(3, 4), (5, 4)]  # a voxel of 3 mm before and behind; 2 mm are free right of the plane
        assert columns(100.0) == [(3, 6), (5, 6)]

    @pytest.mark.parametrize("axcodes", ["RAS", "LPI"])
    def test_each_part_says_which_lung_it_is_of_and_how_high_in_it(self, tmp_path, axcodes):
        lungs = two_lungs()
        lungs[4:8, :, 1:5] = 0  # the right lung begins at slice 5, the left one at slice 1
        infection = np.zeros(SHAPE, np.uint8)
        infection[1, 2, 4:] = 1
        files = {"ct": numbered(), "infection": infection, "lung": lungs}
        write_case(tmp_path / "in", "a", files, axcodes=axcodes)
        cases = half_lungs(tmp_path / "in", tmp_path / "out", min_slices=2)
        assert {c["case"]: (c["side"], c["position"]) for c in cases} == {
            "a_left_s001-003": ("left", pytest.approx(1.5 / 9, abs=1e-4)),
            "a_left_s004-009": ("left", pytest.approx(6 / 9, abs=1e-4)),
            "a_right_s005-009": ("right", 0.5),
        }

    def test_scans_with_healthy_slices_are_cut_whole_and_the_others_into_halves(self, tmp_path):
        infection = np.zeros(SHAPE, np.uint8)
        infection[1, 2, 1:] = 1  # in every slice of lung
        write_case(tmp_path / "in", "a", {"ct": numbered(), "infection": infection, "lung": two_lungs()})
        write_case(tmp_path / "in", "b", {"ct": numbered(), "infection": mask_in(4, 5), "lung": two_lungs()})
        options = {"whole": True, "min_slices": 2}
        cases = half_lungs(tmp_path / "in", tmp_path / "out", **options)
        assert {c["case"]: (c["side"], c["cls"]) for c in cases} == {
            "a_left_s001-009": ("left", 1),
            "a_right_s001-009": ("right", 0),
            "b_both_s001-003": ("both", 0),
            "b_both_s004-005": ("both", 1),
            "b_both_s006-009": ("both", 0),
        }

    def test_lungs_are_found_where_no_mask_is_named(self, tmp_path, monkeypatch):
        write_case(tmp_path / "in", "a", {"ct": numbered(), "infection": mask_in(4)})
        asked = {}

        def found(image, **options):
            asked.update(options, image=image)
            return two_lungs() > 0

        monkeypatch.setattr("common.datasets.parts.organ_mask", found)
        cases = half_lungs(tmp_path / "in", tmp_path / "out", organ=None, min_slices=1)
        assert sum(int((voxels(c["organ"]) > 0).sum()) for c in cases) == two_lungs().sum()
        np.testing.assert_array_equal(asked["image"], numbered())
        assert (asked["spacing"], asked["organ"]) == ((2.0, 3.0, 4.0), "lung")

    def test_names_the_case_without_lungs(self, tmp_path):
        write_case(tmp_path / "in", "a", {"ct": numbered(), "infection": mask_in(4), "lung": 0 * two_lungs()})
        with pytest.raises(ValueError, match="case 'a', file 'lung': the lung mask is empty"):
            half_lungs(tmp_path / "in", tmp_path / "out")

    def test_gives_real_scans_negatives_although_every_slice_is_infected(self, tmp_path, real_data):
        for name in ("coronacases_005", "coronacases_006"):
            os.makedirs(tmp_path / "in", exist_ok=True)
            os.symlink((real_data("covid_ct") / name).absolute(), tmp_path / "in" / name)
            assert voxels(str(tmp_path / "in" / name / "infection.nii.gz")).any(axis=(0, 1)).all()
        cases = half_lungs(tmp_path / "in", tmp_path / "out")
        for patient in ("coronacases_005", "coronacases_006"):
            labels = {side: {c["cls"] for c in cases if f"{patient}_{side}" in c["case"]} for side in ("left", "right")}
            assert labels == {"left": {0}, "right": {1}}
        assert all(voxels(c["label"]).any() == c["cls"] for c in cases)
