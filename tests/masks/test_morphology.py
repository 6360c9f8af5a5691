from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from common.masks import (
    clean,
    each_slice,
    hottest_component,
    largest_component,
    least_voxels,
    smooth_in_organ,
    without_thin,
)

pytestmark = pytest.mark.filterwarnings("error")


def speckle(shape=(40, 40), seed=0):
    """Blobs of many sizes, with holes."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.9) > 0.0


def component_sizes(mask, connectivity):
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity))
    return np.bincount(labels.ravel())[1:]


def test_clean_keeps_what_it_promises():
    mask = speckle()
    sizes, holes = component_sizes(mask, 2), component_sizes(~mask, 1)
    assert sizes.min() < 8 <= sizes.max()
    assert holes.min() <= 5 < holes.max()
    kept = clean(mask, min_size=8)
    assert sorted(component_sizes(kept, 2)) == sorted(sizes[sizes >= 8])
    assert not (kept & ~mask).any()
    filled = clean(mask, max_hole=5)
    assert sorted(component_sizes(~filled, 1)) == sorted(holes[holes > 5])
    assert not (mask & ~filled).any()
    np.testing.assert_array_equal(clean(mask), mask)


def test_clean_bounds_are_inclusive():
    mask = np.zeros((12, 12), dtype=bool)
    mask[1:5, 1:5] = True
    mask[2, 2:4] = False  # 14 pixels around a hole of 2
    assert clean(mask, min_size=14).sum() == 14
    assert clean(mask, min_size=15).sum() == 0
    assert clean(mask, max_hole=2).sum() == 16
    assert clean(mask, max_hole=1).sum() == 14


@pytest.mark.parametrize("shape", [(30, 30), (12, 14, 13)])
def test_closing_adds_only_and_is_that_of_an_unbounded_image(shape):
    mask = np.random.default_rng(0).random(shape) > 0.85
    closed = clean(mask, closing_radius=2)
    offsets = np.stack(np.meshgrid(*[np.arange(-2, 3)] * mask.ndim, indexing="ij"))
    footprint = (offsets**2).sum(axis=0) <= 4
    wide = ndimage.binary_closing(np.pad(mask, 6), footprint)[(slice(6, -6),) * mask.ndim]
    np.testing.assert_array_equal(closed, wide)
    assert not (mask & ~closed).any()
    assert (closed & ~mask).any()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axis_cleans_slice_by_slice(axis):
    options = {"min_size": 6, "max_hole": 4, "closing_radius": 1, "largest_only": True}
    mask = speckle((8, 12, 10))
    mask[(slice(None),) * (axis % 3) + (2,)] = False
    expected = np.stack([clean(s, **options) for s in np.moveaxis(mask, axis, 0)], axis=axis)
    np.testing.assert_array_equal(clean(mask, axis=axis, **options), expected)
    assert not np.array_equal(expected, clean(mask, **options))


def test_largest_component_joins_corners_by_default():
    mask = np.zeros((6, 6))
    mask[0, 0] = mask[1, 1] = mask[2, 2] = 7  # a diagonal of 3
    mask[4, 3:5] = 1
    assert largest_component(mask).sum() == 3
    np.testing.assert_array_equal(np.argwhere(largest_component(mask, connectivity=1)), [[4, 3], [4, 4]])
    assert clean(mask, min_size=2, connectivity=1).sum() == 2


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
@pytest.mark.parametrize("axis", [None, 0])
def test_empty_mask_stays_empty(shape, axis):
    options = {"min_size": 64, "max_hole": 1000, "largest_only": True}
    if axis is None or len(shape) == 3:
        options["closing_radius"] = 2
    cleaned = clean(np.zeros(shape), axis=axis, **options)
    assert cleaned.dtype == bool
    assert cleaned.shape == shape
    assert not cleaned.any()
    assert not largest_component(np.zeros(shape)).any()
    dropped = np.zeros(shape)
    dropped[..., 1, 1] = 1
    assert not clean(dropped, axis=axis, **options).any()


def test_clean_leaves_its_input_alone():
    mask = speckle((4, 10, 10))
    before = mask.copy()
    clean(mask, min_size=5, max_hole=5, closing_radius=1, largest_only=True)
    clean(mask, min_size=5, largest_only=True, axis=0)[:] = True
    clean(mask)[:] = True
    np.testing.assert_array_equal(mask, before)


def test_clean_refuses_what_makes_no_sense():
    mask = np.zeros((4, 5))
    with pytest.raises(ValueError, match=r"must not be negative; got .*'max_hole': -1"):
        clean(mask, max_hole=-1)
    with pytest.raises(ValueError, match=r"axis 2 does not exist in a mask of shape \[4, 5\]"):
        clean(mask, axis=2)
    with pytest.raises(ValueError, match=r"rank 2 or 3; got shape \[4\]"):
        clean(mask[:, 0], closing_radius=1)


@pytest.mark.parametrize(("milliliters", "spacing", "count"), [(0.5, (1.5, 1.5, 5.0), 45), (0.0, (1.0, 1.0, 1.0), 0)])
def test_least_voxels_hold_the_volume(milliliters, spacing, count):
    assert least_voxels(milliliters, spacing) == count


def test_each_slice_calls_the_function_only_where_there_is_something():
    mask = np.zeros((3, 3, 4), bool)
    mask[1, 1, 2] = True
    seen = []
    out = each_slice(lambda s: seen.append(s.copy()) or ~s, mask)
    assert len(seen) == 1
    np.testing.assert_array_equal(out[..., 2], ~mask[..., 2])
    assert not out[..., [0, 1, 3]].any()


def scene(seed: int, shape: tuple[int, int, int] = (40, 36, 5)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random image about 1.2 and an organ with holes."""
    rng = np.random.default_rng(seed)
    image = 1.2 + 1.5 * ndimage.gaussian_filter(rng.standard_normal(shape), (2, 2, 1))
    organ = ndimage.gaussian_filter(rng.standard_normal(shape), (4, 4, 1)) > -0.1
    return image.astype(np.float32), organ


class TestSmoothInOrgan:
    def test_is_the_mean_of_the_organs_voxels_weighed_by_their_distance_in_millimeters(self):
        image, organ = (np.pad(array, ((7, 7), (4, 4), (0, 0))) for array in scene(0, (14, 11, 4)))
        spacing, sigma = (1.0, 2.0, 3.0), 1.6
        got = smooth_in_organ(image, organ, sigma_mm=sigma, spacing=spacing)
        assert 0 < organ.sum() < organ.size
        for x, y, z in np.argwhere(organ)[::7]:
            places = np.argwhere(organ[..., z])
            squared = (((places - (x, y)) * spacing[:2]) ** 2).sum(axis=1)
            weights = np.exp(-squared / (2 * sigma**2))
            expected = (weights * image[..., z][organ[..., z]]).sum() / weights.sum()
            assert got[x, y, z] == pytest.approx(expected, abs=2e-3)

    def test_what_lies_around_the_organ_does_not_matter_and_becomes_zero(self):
        image, organ = scene(1)
        options = {"sigma_mm": 3.0, "spacing": (1.0, 1.0, 1.0)}
        got = smooth_in_organ(image, organ, **options)
        np.testing.assert_array_equal(smooth_in_organ(np.where(organ, image, 1e3), organ, **options), got)
        assert not got[~organ].any()
        np.testing.assert_allclose(smooth_in_organ(np.full_like(image, 1.5), organ, **options)[organ], 1.5, rtol=1e-5)

    def test_slices_do_not_see_each_other_and_no_width_changes_nothing(self):
        image, organ = scene(2)
        options = {"sigma_mm": 2.0, "spacing": (1.0, 1.0, 1.0)}
        whole = smooth_in_organ(image, organ, **options)
        for z in range(image.shape[2]):
            alone = smooth_in_organ(image[..., z : z + 1], organ[..., z : z + 1], **options)
            np.testing.assert_array_equal(whole[..., z : z + 1], alone)
        same = smooth_in_organ(image, organ, sigma_mm=0.0, spacing=(1.0, 1.0, 1.0))
        np.testing.assert_array_equal(same, image * organ)


def test_without_thin_keeps_what_holds_a_box_of_twice_the_radius_in_millimeters():
    image = np.full((20, 20, 12), 0.5, np.float32)
    image[2:7, 2:7, 2:5] = 2.0  # holds 5 × 5 × 3 voxels of 1 × 1 × 2 mm: a radius of 2 mm
    image[10:14, 10:18, 2:8] = 3.0  # 4 wide
    opened = without_thin(image, radius_mm=2.0, spacing=(1.0, 1.0, 2.0))
    expected = np.where(image == 2.0, 2.0, 0.5)
    np.testing.assert_array_equal(opened, expected)
    np.testing.assert_array_equal(without_thin(image, radius_mm=0.4, spacing=(1.0, 1.0, 2.0)), image)


def test_the_hottest_component_need_not_be_the_largest():
    mask = np.array([[1, 1, 1, 0, 1]], dtype=bool)
    assert hottest_component(mask, np.array([[1.0, 2, 1, 9, 3]])).tolist() == [[False] * 4 + [True]]
    assert not hottest_component(~mask & mask, np.ones((1, 5))).any()


def test_the_hottest_component_may_be_of_negative_heat():
    mask = np.array([[1, 1, 0, 1]], dtype=bool)
    assert hottest_component(mask, np.array([[-3.0, -2.0, 0.0, -1.0]])).tolist() == [[False, False, False, True]]
