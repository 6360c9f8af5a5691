from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi
from skimage.morphology import disk

from common.masks import (
    gate_slices,
    refine_by_intensity,
    refine_options,
    smooth_along_slices,
)

PLAIN: dict[str, Any] = {"smooth_mm": 0.0, "opening_mm": 0.0}


def reference(seed, image, organ, *, spacing, dilate_mm, intensity, adaptive, smooth_mm, opening_mm, largest):
    """The rule as the docstring tells it, on the whole volume, slice by slice."""
    kept = np.zeros_like(seed)
    smooth = np.stack(
        [ndi.gaussian_filter(image[..., z], smooth_mm / np.array(spacing[:2])) for z in range(image.shape[2])], -1
    )
    sure = seed & (smooth > intensity)
    threshold = max(intensity, 1 + adaptive * (np.median(smooth[sure]) - 1)) if adaptive and sure.any() else intensity
    for z in range(seed.shape[2]):
        if not seed[..., z].any():
            continue
        points = np.argwhere(seed[..., z]) * spacing[:2]
        pixels = np.argwhere(np.ones(seed.shape[:2], bool)) * spacing[:2]
        nearest = np.sqrt(((pixels[:, None] - points[None]) ** 2).sum(-1)).min(1).reshape(seed.shape[:2])
        plane = (nearest <= dilate_mm) & organ[..., z] & (smooth[..., z] > threshold)
        if opening_mm > 0:
            plane = ndi.binary_opening(plane, disk(max(1, round(opening_mm / np.mean(spacing[:2])))))
        kept[..., z] = ndi.binary_fill_holes(plane) & organ[..., z]
    if largest and kept.any():
        labels, _ = ndi.label(kept, np.ones((3, 3, 3)))
        kept = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return kept


def scene(seed: int, shape: tuple[int, int, int] = (40, 36, 5)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A few random seeds, a smooth random image about 1.2, an organ with holes."""
    rng = np.random.default_rng(seed)
    image = 1.2 + 1.5 * ndi.gaussian_filter(rng.standard_normal(shape), (2, 2, 1))
    organ = ndi.gaussian_filter(rng.standard_normal(shape), (4, 4, 1)) > -0.1
    points = np.zeros(shape, bool)
    for z in (1, 2, 3):
        i, j = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        points[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3, z] = True
    return points, image.astype(np.float32), organ


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (1.5, 1.5, 1.0), (1.0, 2.0, 3.0)])
@pytest.mark.parametrize(
    "options",
    [
        {"dilate_mm": 4.5, "smooth_mm": 1.0, "opening_mm": 1.5, "adaptive": 0.5, "largest": True},
        {"dilate_mm": 8.0, "smooth_mm": 0.5, "opening_mm": 0.0, "adaptive": 0.0, "largest": False},
        {"dilate_mm": 3.0, "smooth_mm": 4.0, "opening_mm": 1.0, "adaptive": 0.3, "largest": False},  # wide Gaussian
    ],
)
def test_bounding_box_shortcut_equals_the_rule_on_the_whole_volume(spacing, options):
    found = 0
    for number in range(6):
        seed, image, organ = scene(number)
        expected = reference(seed, image, organ, spacing=spacing, intensity=1.15, **options)
        actual = refine_by_intensity(seed, image, organ, spacing=spacing, intensity=1.15, **options)
        np.testing.assert_array_equal(actual, expected)
        found += expected.sum()
    assert found > 100


def test_empty_seed_gives_an_empty_mask():
    _, image, organ = scene(0)
    mask = refine_by_intensity(np.zeros(image.shape, bool), image, organ, spacing=(1, 1, 1))
    assert mask.dtype == bool
    assert not mask.any()


def test_mask_never_leaves_the_organ_not_even_to_fill_its_holes():
    image, organ = np.full((20, 20, 1), 2.0), np.ones((20, 20, 1), bool)
    organ[10, 10] = False
    seed = np.zeros_like(organ)
    seed[9, 9] = True
    mask = refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), **PLAIN)
    assert mask.sum() > 20
    assert not (mask & ~organ).any()
    for number in range(6):
        seed, image, organ = scene(number)
        assert not (refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), largest=False) & ~organ).any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.5), (3.0, 3.0), (1.0, 2.0), (3.0, 0.75)])
def test_reach_is_in_millimeters_whatever_the_pixels(spacing):
    shape = (41, 41, 3)
    seed = np.zeros(shape, bool)
    seed[20, 20, 1] = True
    bright, everywhere = np.full(shape, 2.0), np.ones(shape, bool)
    mask = refine_by_intensity(seed, bright, everywhere, spacing=(*spacing, 9.0), dilate_mm=6.0, **PLAIN)
    i, j = np.meshgrid(np.arange(41) - 20, np.arange(41) - 20, indexing="ij")
    np.testing.assert_array_equal(mask[..., 1], np.hypot(i * spacing[0], j * spacing[1]) <= 6.0)
    assert not mask[..., [0, 2]].any()


@pytest.mark.parametrize(
    ("adaptive", "intensity", "threshold"),
    [(0.0, 1.25, 1.25), (0.5, 1.25, 1.5), (0.25, 1.1, 1.25), (0.1, 1.25, 1.25), (1.0, 1.25, 2.0)],
)
def test_adaptive_threshold_is_that_share_of_the_way_to_the_seed_but_at_least_intensity(adaptive, intensity, threshold):
    image = np.zeros((1, 60, 1))
    image[0, :, 0] = np.linspace(1.0, 2.18, 60)  # steps of 0.02
    seed = np.zeros(image.shape, bool)
    seed[0, 49:52] = True  # median 2.0
    kept = refine_by_intensity(
        seed,
        image,
        np.ones_like(seed),
        spacing=(1, 1, 1),
        dilate_mm=100.0,
        adaptive=adaptive,
        intensity=intensity + 1e-4,
        **PLAIN,
    )
    np.testing.assert_array_equal(kept, image > threshold + 1e-3 * (adaptive < 1))


def test_adaptive_threshold_ignores_dark_voxels_of_the_seed():
    image = np.array([1.0, 1.0, 1.0, 1.4, 1.6, 2.0])[None, :, None]
    seed = np.array([True, True, True, False, False, True])[None, :, None]
    options = {"spacing": (1, 1, 1), "dilate_mm": 9.0, "adaptive": 0.5, "largest": False, **PLAIN}
    kept = refine_by_intensity(seed, image, np.ones_like(seed), **options)
    assert kept.ravel().tolist() == [False, False, False, False, True, True]


def two_squares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, seed = np.ones((30, 30, 4)), np.zeros((30, 30, 4), bool)
    image[2:9, 2:9, 1:3] = image[18:22, 18:22, 2:4] = 2.0
    seed[5, 5, 1:3] = seed[20, 20, 2:4] = True
    return seed, image, np.ones_like(seed)


def test_largest_keeps_one_component_and_without_it_all_stay():
    seed, image, organ = two_squares()
    options: dict[str, Any] = {"spacing": (1, 1, 1), "dilate_mm": 9.0, **PLAIN}
    one = refine_by_intensity(seed, image, organ, **options)
    both = refine_by_intensity(seed, image, organ, **options, largest=False)
    np.testing.assert_array_equal(both, image > 1.5)
    np.testing.assert_array_equal(one, (image > 1.5) & (np.arange(30) < 15)[:, None, None])


def test_dark_holes_are_filled():
    seed, image, organ = two_squares()
    image[5, 5] = 0.2  # under the seed
    mask = refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), dilate_mm=9.0, **PLAIN)
    assert mask[2:9, 2:9, 1:3].all()


def test_opening_removes_specks():
    seed, image, organ = two_squares()
    image[12, 5, 1] = 2.0
    options: dict[str, Any] = {"spacing": (1, 1, 1), "dilate_mm": 9.0, "smooth_mm": 0.0, "largest": False}
    assert refine_by_intensity(seed, image, organ, **options, opening_mm=0.0)[12, 5, 1]
    assert not refine_by_intensity(seed, image, organ, **options, opening_mm=1.0)[12, 5, 1]


class TestOpenSlices:
    PROBABILITY = np.array([[0.9, 0.45, 0.3, 0.4], [0.05, 0.30, 0.3, 0.2], [0.05, 0.25, 0.4, 0.4]])

    @pytest.mark.parametrize(
        ("gate", "expected"), [(0.5, [0, 1, 2, 2]), (0.65, [0, 0, 2, 0]), (0.0, [1, 1, 2, 2]), (1.0, [0, 0, 0, 0])]
    )
    def test_a_slice_opens_when_not_class_0_exceeds_the_gate(self, gate, expected):
        assert gate_slices(self.PROBABILITY, gate).tolist() == expected

    def test_without_gate_the_most_probable_class_decides(self):
        assert gate_slices(self.PROBABILITY, None).tolist() == [0, 0, 2, 0]


class TestSmoothAlongSlices:
    def test_sigma_zero_and_single_slices_change_nothing(self):
        probability = np.random.default_rng(0).random((2, 7))
        np.testing.assert_array_equal(smooth_along_slices(probability, sigma_mm=0, slice_mm=5), probability)
        np.testing.assert_array_equal(
            smooth_along_slices(probability[:, :1], sigma_mm=9, slice_mm=5), probability[:, :1]
        )

    def test_constants_stay_and_classes_still_sum_to_one(self):
        np.testing.assert_allclose(smooth_along_slices(np.full((2, 9), 0.3), sigma_mm=7, slice_mm=2), 0.3, rtol=1e-12)
        first = np.random.default_rng(1).random(9)
        smooth = smooth_along_slices(np.stack([first, 1 - first]), sigma_mm=7, slice_mm=2)
        np.testing.assert_allclose(smooth.sum(axis=0), 1.0)

    def test_sigma_is_in_millimeters(self):
        lone = np.zeros((1, 41))
        lone[0, 20] = 1.0
        for sigma_mm, slice_mm in ((6.0, 3.0), (10.0, 5.0), (2.0, 1.0)):
            smooth = smooth_along_slices(lone, sigma_mm=sigma_mm, slice_mm=slice_mm)[0]
            expected = np.exp(-0.5 * (np.arange(41) - 20.0) ** 2 / 4.0)
            np.testing.assert_allclose(smooth, expected / expected.sum(), atol=1e-4)


def test_a_dark_lesion_keeps_its_seed():
    image, organ = np.ones((20, 20, 1)), np.ones((20, 20, 1), bool)
    image[5:8, 5:8] = 3.0
    bright, dark = (np.zeros(image.shape, bool) for _ in range(2))
    bright[4:8, 4:8], dark[12:17, 12:17] = True, True
    plain = {"smooth_mm": 0.0, "opening_mm": 0.0, "dilate_mm": 1.0}

    def refined(seed, least_share):
        return refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), **plain, least_share=least_share)

    assert (refined(bright, 0.5) == (image > 1)).all()  # 9 of 16
    assert (refined(bright, 0.6) == bright).all()
    assert not refined(dark, 0.0).any()
    assert (refined(dark, 0.5) == dark).all()


def test_single_options_change_and_the_others_stay_as_they_were_chosen():
    chosen = {"dilate_mm": 6.0, "largest": True}
    assert refine_options(chosen) == chosen
    assert refine_options(chosen, largest=False) == {"dilate_mm": 6.0, "largest": False}
    assert chosen["largest"]
    assert refine_options(None) is None
    assert refine_options(None, intensity=1.2) == {"intensity": 1.2}


def test_what_is_bright_beside_the_seed_is_no_share_of_it():
    image, seed, organ = np.ones((16, 16, 1)), np.zeros((16, 16, 1), bool), np.ones((16, 16, 1), bool)
    seed[4:8, 4:8] = True
    image[8:12, 4:8] = 2.0  # as large, and within reach
    options: dict[str, Any] = PLAIN | {"dilate_mm": 4.0, "intensity": 1.5}
    assert (refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), **options) == (image > 1)).all()
    kept = refine_by_intensity(seed, image, organ, spacing=(1, 1, 1), **options, least_share=0.1)
    assert (kept == seed).all()


def test_a_probability_at_the_gate_does_not_pass():
    assert gate_slices(np.array([[0.5, 0.25], [0.5, 0.75]]), 0.5).tolist() == [0, 1]
