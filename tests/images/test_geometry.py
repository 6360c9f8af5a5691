from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest

from common.images import check_affine, check_one_grid, in_axes_of, nifti_affine
from common.images.geometry import axis_of_slices
from tests.pipeline import affine_of, world

SHAPE = (6, 8, 5)


def header(sform=None, qform=None, *, codes=(1, 1), unit: str | None = "mm", spacing=(1, 1, 1)) -> nib.Nifti1Header:
    made = nib.Nifti1Header()
    made.set_data_shape(SHAPE)
    made.set_zooms(spacing)
    made.set_sform(sform, codes[0] if sform is not None else 0)
    made.set_qform(qform, codes[1] if qform is not None else 0)
    if unit is not None:
        made.set_xyzt_units(unit)
    return made


LPS = affine_of("LPS", (2, 3, 4), SHAPE)


class TestForms:
    @pytest.mark.parametrize("forms", [{"sform": LPS}, {"qform": LPS}, {"sform": LPS, "qform": LPS}])
    def test_the_form_that_is_set_counts(self, forms):
        affine, warnings = nifti_affine(header(**forms), "a.nii")
        np.testing.assert_allclose(affine, LPS, atol=1e-5)
        assert warnings == ()

    def test_the_sform_counts_before_a_qform_elsewhere_and_the_distance_is_told(self):
        moved = LPS.copy()
        moved[0, 3] += 8.0
        affine, warnings = nifti_affine(header(LPS, moved), "a.nii")
        np.testing.assert_allclose(affine, LPS)
        assert warnings == ("sform and qform are up to 8.0 mm apart: the sform is used",)

    def test_another_spacing_of_the_qform_is_told(self):
        _, (warning,) = nifti_affine(header(LPS, affine_of("LPS", (1, 1, 4), SHAPE)), "a.nii")
        assert "(spacing 2 × 3 × 4 and 1 × 1 × 4 mm)" in warning

    def test_forms_of_other_axis_directions_are_an_error_that_shows_both(self):
        sform, qform = affine_of("LAS", (2, 2, 5), SHAPE), affine_of("RAI", (1, 1, 3), SHAPE)
        with pytest.raises(ValueError, match=r"a.nii: sform and qform disagree .* LAS \[.* against RAI \["):
            nifti_affine(header(sform, qform), "a.nii")

    def test_forms_turned_by_half_a_right_angle_agree_although_their_names_may_not(self):
        forms = [affine_of("RAS", (1, 1, 1), SHAPE, degrees) for degrees in (44.9999, 45.0001)]
        assert nifti_affine(header(*forms), "a.nii")[1] == ()

    def test_without_any_form_the_guess_is_nibabels_and_told(self):
        affine, (warning,) = nifti_affine(header(spacing=(2, 2, 5)), "a.nii")
        assert nib.aff2axcodes(affine) == ("L", "A", "S")
        assert warning == "no affine in the header: the orientation is a guess, the spacing 2 × 2 × 5 mm from pixdim"

    def test_an_identity_is_told_since_it_is_what_lost_headers_hold(self):
        assert "identity" in nifti_affine(header(np.eye(4)), "a.nii")[1][0]

    @pytest.mark.parametrize("form", ["sform", "qform"])
    def test_one_that_places_nothing_is_named_beside_one_that_does(self, form):
        made = header(LPS, LPS)
        if form == "sform":
            made["srow_x"] = made["srow_y"] = made["srow_z"] = 0
        else:
            made["qoffset_x"] = np.nan
        with pytest.raises(ValueError, match=rf"a.nii: the {form} .* places no volume.*set its code to 0"):
            nifti_affine(made, "a.nii")


class TestUnits:
    @pytest.mark.parametrize(("unit", "factor"), [("meter", 0.001), ("micron", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
    def test_are_honored_in_either_form(self, unit, factor):
        in_unit = LPS.copy()
        in_unit[:3] *= factor
        for forms in ({"sform": in_unit}, {"qform": in_unit}):
            np.testing.assert_allclose(nifti_affine(header(**forms, unit=unit), "a.nii")[0], LPS, rtol=1e-5)

    def test_a_code_that_the_standard_lacks_counts_as_millimeters(self):
        made = header(LPS)
        made["xyzt_units"] = 5
        np.testing.assert_allclose(nifti_affine(made, "a.nii")[0], LPS)


@pytest.mark.parametrize(
    ("spacing", "shape"), [((0.0005, 1, 1), SHAPE), ((1, 500, 1), SHAPE), ((50, 50, 50), (256, 256, 20))]
)
def test_an_impossible_spacing_is_named(spacing, shape):
    affine = affine_of("RAS", spacing, shape)
    with pytest.raises(
        ValueError, match=rf"a.nii: an impossible spacing of {' × '.join(f'{s:g}' for s in spacing)} mm"
    ):
        check_affine(affine, shape, "a.nii")


@pytest.mark.parametrize("wrong", [np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])])
def test_an_affine_that_places_no_volume_is_refused(wrong):
    with pytest.raises(ValueError, match=r"a.nii: the affine .* places no volume"):
        check_affine(wrong, SHAPE, "a.nii")


class TestOneGrid:
    @pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0])
    @pytest.mark.parametrize("axcodes", ["RAS", "PIR", "SAL", "LPI"])
    def test_axes_of_another_order_are_turned_and_every_voxel_stays_in_place(self, axcodes, degrees):
        like = affine_of("LPS", (2, 3, 4), SHAPE, degrees)
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(axcodes)
        )
        stored = nib.orientations.apply_orientation(np.arange(240).reshape(SHAPE), turn)
        affine = like @ nib.orientations.inv_ornt_aff(turn, SHAPE)
        array, moved = in_axes_of(stored, affine, like)
        np.testing.assert_array_equal(array, np.arange(240).reshape(SHAPE))
        check_one_grid(array.shape, moved, SHAPE, like, what="mask and image")
        np.testing.assert_allclose(world(moved, SHAPE), world(like, SHAPE), atol=1e-9)

    @pytest.mark.parametrize(("voxels", "passes"), [(1e-3, True), (0.09, True), (0.11, False)])
    def test_corners_may_lie_a_tenth_of_a_voxel_apart(self, voxels, passes):
        moved = LPS.copy()
        moved[1, 3] += voxels * 3
        if passes:
            check_one_grid(SHAPE, moved, SHAPE, LPS, what="mask and image")
        else:
            with pytest.raises(ValueError, match=r"mask and image do not lie on one grid: .* 0.11 voxels apart"):
                check_one_grid(SHAPE, moved, SHAPE, LPS, what="mask and image")

    @pytest.mark.parametrize("affine", [np.eye(4), np.diag([3.0, 3.0, 5.0, 1.0])])
    def test_an_affine_of_its_own_is_refused_showing_both(self, affine):
        array, moved = in_axes_of(np.zeros(SHAPE), affine, LPS)
        with pytest.raises(ValueError, match=re.escape("Affines: [[")):
            check_one_grid(array.shape, moved, SHAPE, LPS, what="mask and image")

    def test_other_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"shapes are \[6, 8, 4\] and \[6, 8, 5\]"):
            check_one_grid((6, 8, 4), LPS, SHAPE, LPS, what="mask and image")


@pytest.mark.parametrize(("axcodes", "axis"), [("LPS", 2), ("RSA", 1), ("IRP", 0), ("ASL", 1), ("SLA", 0), ("PLI", 2)])
def test_slices_lie_along_the_axis_that_runs_along_the_body(axcodes, axis):
    assert axis_of_slices(affine_of(axcodes, (1, 2, 3), SHAPE)) == axis
