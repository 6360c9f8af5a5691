from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi

from common.datasets import phantom_case
from common.metrics import dice
from common.preprocessing import ORGANS, brain_mask, head_mask, normalize_by_median, organ_mask
from common.preprocessing.organ import normalize_by_mode

SPACING = (3.0, 3.0, 5.0)


@pytest.fixture(scope="module")
def heads() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, lesion and brain of four phantom heads."""
    drawn = [phantom_case(np.random.default_rng([3, i])) for i in range(4)]
    return [(image[0], lesion, brain) for image, lesion, brain in drawn]


class TestBrain:
    def test_brain_is_found_in_a_whole_head(self, heads):
        assert min(dice(brain_mask(image, SPACING), brain) for image, _, brain in heads) > 0.95

    def test_nothing_of_the_scalp_around_the_brain_is_brain(self, heads):
        for image, _, brain in heads:
            near = ndi.binary_dilation(brain, np.ones((3, 3, 1), bool))
            scalp = (image > 1.2 * np.median(image[brain])) & ~near & brain.any(axis=(0, 1))
            assert scalp.sum() > 1000
            assert not (brain_mask(image, SPACING) & scalp).any()

    def test_most_scalp_is_cut_off_even_where_nothing_dark_parts_it_from_the_brain(self, heads):
        for image, _, brain in heads:
            median = np.median(image[brain])
            rim = (ndi.distance_transform_edt(~brain, sampling=(1, 1, 100)) <= 3) & ~brain
            skull = rim & (image < 0.7 * median)
            mask = brain_mask(np.where(skull, median, image), SPACING)
            scalp = (image > 1.35 * median) & ~brain & ~rim & brain.any(axis=(0, 1))
            assert (mask & scalp).sum() < 0.2 * scalp.sum()
            assert dice(mask, brain) > 0.8

    def test_the_lesion_stays_in_the_brain(self, heads):
        for image, lesion, _ in heads:
            assert (brain_mask(image, SPACING) & lesion).sum() == lesion.sum()

    def test_stripped_head_is_all_brain(self, heads):
        assert min(dice(brain_mask(image * brain, SPACING), brain) for image, _, brain in heads) > 0.995

    def test_gain_changes_nothing(self, heads):
        image = heads[0][0]
        np.testing.assert_array_equal(brain_mask(16.0 * image, SPACING), brain_mask(image, SPACING))

    def test_swapping_the_in_plane_axes_swaps_the_mask(self, heads):
        image = heads[1][0]
        turned = brain_mask(np.swapaxes(image, 0, 1).copy(), SPACING)
        np.testing.assert_array_equal(np.swapaxes(turned, 0, 1), brain_mask(image, SPACING))

    def test_finer_pixels_show_the_same_brain(self):
        image, _, brain = phantom_case(np.random.default_rng(5), (96, 96, 16))
        assert dice(brain_mask(image[0], (2.0, 2.0, 5.0)), brain) > 0.95

    def test_slices_of_air_hold_no_brain(self, heads):
        image = heads[0][0]
        air = np.abs(np.random.default_rng(0).normal(0, image[:8, :8].std(), (64, 64, 4))).astype(np.float32)
        mask = brain_mask(np.concatenate([air, image, air], axis=-1), SPACING)
        assert not mask[..., :4].any()
        assert not mask[..., -4:].any()
        np.testing.assert_array_equal(mask[..., 4:-4].any(axis=(0, 1)), brain_mask(image, SPACING).any(axis=(0, 1)))

    @pytest.mark.parametrize("slices", [1, 2])
    def test_few_thin_slices_are_taken(self, heads, slices):
        image = heads[0][0]
        middle = image.shape[-1] // 2
        found = brain_mask(image[..., middle : middle + slices], (*SPACING[:2], 1.0))
        assert found.any(axis=(0, 1)).all()

    def test_slices_with_little_brain_are_emptied(self, heads):
        image = heads[0][0]
        area = brain_mask(image, SPACING, min_area_mm2=0.0).sum(axis=(0, 1)) * 9.0
        limit = float(np.sort(area[area > 0])[2])
        kept = brain_mask(image, SPACING, min_area_mm2=limit).sum(axis=(0, 1)) * 9.0
        np.testing.assert_array_equal(kept, np.where(area >= limit, area, 0))


def disk_head(spacing: tuple[float, float], radius_mm: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """A round head with a hole (a ventricle) and, for each pixel, its distance in mm from the center."""
    size = [int(160 / s) for s in spacing]
    x, y = (s * (np.arange(n) - (n - 1) / 2) for s, n in zip(spacing, size, strict=True))
    distance = np.hypot(x[:, None], y[None])
    plane = np.where(distance < 10, 0.0, np.where(distance <= radius_mm, 100.0, 1.0))
    return np.repeat(plane[..., None], 3, axis=2).astype(np.float32), distance


class TestHead:
    @pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.5, 1.25)])
    @pytest.mark.parametrize("erode_mm", [0.0, 15.0, 30.0])
    def test_erosion_is_in_millimeters_whatever_the_pixels(self, spacing, erode_mm):
        image, distance = disk_head(spacing)
        mask = head_mask(image, (*spacing, 5.0), erode_mm=erode_mm)[..., 1]
        pixel = max(spacing)
        assert mask[distance <= 60 - erode_mm - pixel].all()  # the ventricle is filled
        assert not mask[distance > 60 - erode_mm + pixel].any()

    def test_only_the_largest_object_is_the_head(self):
        image, _ = disk_head((2.0, 2.0))
        image[:6, :6] = 100.0
        assert not head_mask(image, (2.0, 2.0, 5.0))[:10, :10].any()


class TestOrganMask:
    def test_none_is_every_voxel(self):
        assert organ_mask(np.zeros((4, 5, 2)), spacing=SPACING, organ="none").all()

    def test_center_is_the_box_in_the_middle_as_far_as_there_is_one(self):
        found = organ_mask(np.zeros((24, 5, 15)), spacing=SPACING, organ="center", size=(12, 12, 12))
        expected = np.zeros((24, 5, 15), bool)
        expected[6:18, :, 1:13] = True
        np.testing.assert_array_equal(found, expected)

    def test_unknown_organ_names_those_there_are(self):
        with pytest.raises(ValueError, match=r"one of .*'center', .*'none'\], got 'liver'"):
            organ_mask(np.ones((4, 4, 2)), spacing=SPACING, organ="liver")

    @pytest.mark.parametrize("organ", sorted(set(ORGANS) - {"none", "center", "lungmask"}))
    def test_image_without_the_organ_is_refused(self, organ):
        with pytest.raises(ValueError, match=rf"no {organ} found in an image of shape \[16, 16, 5\].*organ: none"):
            organ_mask(np.zeros((16, 16, 5)), spacing=SPACING, organ=organ)

    def test_options_reach_the_function(self):
        image, _ = disk_head((2.0, 2.0))
        expected = head_mask(image, (2.0, 2.0, 5.0), erode_mm=12.0)
        np.testing.assert_array_equal(organ_mask(image, spacing=(2.0, 2.0, 5.0), organ="head", erode_mm=12.0), expected)


class TestNormalizeByMedian:
    def test_median_of_the_positive_voxels_inside_is_one(self):
        rng = np.random.default_rng(0)
        image, organ = rng.gamma(2.0, 50.0, (9, 9, 5)), rng.random((9, 9, 5)) > 0.4
        image[0] = 0
        normal = normalize_by_median(image, organ, upper=100.0)
        assert np.median(normal[organ & (image > 0)]) == pytest.approx(1.0, abs=1e-6)

    def test_gain_and_what_is_outside_do_not_matter(self):
        rng = np.random.default_rng(1)
        image, organ = rng.gamma(2.0, 50.0, (9, 9, 5)), rng.random((9, 9, 5)) > 0.4
        bright_outside = np.where(organ, 8 * image, 1e6)
        expected = normalize_by_median(image, organ)
        np.testing.assert_allclose(normalize_by_median(bright_outside, organ)[organ], expected[organ], rtol=1e-6)

    def test_values_are_clipped_to_zero_and_upper(self):
        image = np.array([[[-5.0, 1.0, 1.0, 9.0]]])
        np.testing.assert_array_equal(
            normalize_by_median(image, np.ones(image.shape, bool), upper=3.0), [[[0.0, 1.0, 1.0, 3.0]]]
        )

    def test_nothing_positive_inside_leaves_the_units(self):
        image = np.array([[[0.0, 0.0, 2.0]]])
        np.testing.assert_array_equal(normalize_by_median(image, image == 0), image)


class TestThinSlices:
    def test_each_has_the_mask_of_the_middle_one_of_its_step(self, heads):
        """Of four slices of 1 mm the third is looked at; the others could show anything."""
        image = heads[0][0]
        thin = np.zeros((*image.shape[:2], 4 * image.shape[2]), image.dtype)
        thin[..., 2::4] = image
        expected = brain_mask(image, (*SPACING[:2], 4.0))
        np.testing.assert_array_equal(brain_mask(thin, (*SPACING[:2], 1.0)), np.repeat(expected, 4, axis=2))

    def test_a_brain_that_goes_on_below_the_image_is_found_in_the_lowest_slice(self, heads):
        image, _, brain = heads[0]
        widest = int(brain.sum(axis=(0, 1)).argmax())
        found = brain_mask(image[..., widest - 3 :], SPACING)  # whose widest slice is the third
        assert dice(found[..., 0], brain[..., widest - 3]) > 0.85


def test_the_most_frequent_intensity_is_one():
    """Bins are a hundredth of the 99th percentile wide: the middle of the fullest is 50.5."""
    image = np.full((10, 10, 100), 50.5)
    image[..., :20] = 100.0
    normal = normalize_by_mode(image, np.ones(image.shape, bool))
    np.testing.assert_allclose(normal[..., 20:], 1.0, rtol=1e-6)
