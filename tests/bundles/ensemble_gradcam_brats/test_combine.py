from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.bundles.conftest import load_script

combine_script = load_script("ensemble_gradcam_brats", "combine")
combine = combine_script.combine
normalize_maps = combine_script.normalize_maps


@pytest.fixture
def maps() -> np.ndarray:
    """Three members' maps on a small volume, with ties: values are multiples of 0.05."""
    return np.random.default_rng(0).integers(0, 21, (3, 6, 5, 4)).astype(np.float32) / 20


THRESHOLDS = [0.3, 0.55, 0.8]


def masks(maps: np.ndarray) -> np.ndarray:
    return np.stack([m > np.float32(t) for m, t in zip(maps, THRESHOLDS, strict=True)])


def test_or_is_the_union_and_and_the_intersection_of_the_members_masks(maps):
    np.testing.assert_array_equal(combine(maps, THRESHOLDS, "or") > 0, masks(maps).any(0))
    np.testing.assert_array_equal(combine(maps, THRESHOLDS, "and") > 0, masks(maps).all(0))


@pytest.mark.parametrize("how", ["min", "max"])
def test_min_and_max_take_one_members_whole_mask_slice_by_slice(maps, how):
    combined = combine(maps, THRESHOLDS, how) > 0
    for z in range(maps.shape[-1]):
        sizes = [m[..., z].sum() for m in masks(maps)]
        chosen = int(np.argmin(sizes) if how == "min" else np.argmax(sizes))
        np.testing.assert_array_equal(combined[..., z], masks(maps)[chosen][..., z])


def test_min_takes_the_first_member_at_a_tie():
    maps = np.zeros((2, 2, 1, 1), dtype=np.float32)
    maps[0, 0], maps[1, 1] = 1.0, 1.0  # one pixel each, different ones
    for how in ("min", "max"):
        np.testing.assert_array_equal(combine(maps, [0.5, 0.5], how)[:, 0, 0] > 0, [True, False])


def test_mean_and_product_combine_before_the_threshold(maps):
    np.testing.assert_allclose(combine(maps, [0.4], "mean"), maps.mean(0) - 0.4, atol=1e-6)
    np.testing.assert_allclose(combine(maps, [0.1], "product"), maps[0] * maps[1] * maps[2] - 0.1, atol=1e-6)


def test_one_member_is_its_own_combination(maps):
    for how in ("or", "and", "min", "max", "mean", "product"):
        np.testing.assert_allclose(combine(maps[:1], [0.3], how), maps[0] - np.float32(0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("thresholds", "how", "message"),
    [([0.5], "xor", "combine must be one of"), ([0.5], "and", r"takes 3 threshold"), ([0.1, 0.2], "mean", r"takes 1")],
)
def test_unknown_combinations_and_wrong_thresholds_are_refused(maps, thresholds, how, message):
    with pytest.raises(ValueError, match=message):
        combine(maps, thresholds, how)


def test_each_slice_is_divided_by_its_maximum_and_an_empty_one_stays_zero():
    maps = np.random.default_rng(1).random((2, 4, 4, 3)).astype(np.float32) * 7
    maps[1, :, :, 2] = 0
    scaled = normalize_maps(maps, "slice")
    np.testing.assert_allclose(scaled.max(axis=(1, 2)), [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(scaled[0, :, :, 1] * maps[0, :, :, 1].max(), maps[0, :, :, 1], rtol=1e-6)


def test_by_volume_the_slices_of_a_member_keep_their_order():
    maps = np.random.default_rng(1).random((2, 4, 4, 3)).astype(np.float32)
    scaled = normalize_maps(maps, "volume")
    np.testing.assert_allclose(scaled, maps / maps.max(axis=(1, 2, 3), keepdims=True), rtol=1e-6)


def test_maps_that_are_probabilities_can_stay_as_they_are():
    maps = np.random.default_rng(1).random((2, 4, 4, 3)).astype(np.float32) / 2
    np.testing.assert_array_equal(normalize_maps(maps, "none"), maps)


def test_negative_maps_and_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        normalize_maps(np.full((1, 2, 2, 2), -1.0))
    with pytest.raises(ValueError, match="'slice', 'volume' or 'none'"):
        normalize_maps(np.ones((1, 2, 2, 2)), "case")


def test_bright_part_is_relative_to_the_brightest_pixel_of_the_organ_in_that_slice():
    image = np.zeros((2, 2, 2), dtype=np.float32)
    image[..., 0] = [[1.0, 0.8], [0.79, 5.0]]
    organ = np.ones((2, 2, 2), dtype=bool)
    organ[1, 1, 0] = False  # the scalp
    bright = combine_script.bright_part(image, organ, 0.8)
    np.testing.assert_array_equal(bright[..., 0], [[True, True], [False, False]])
    assert not bright[..., 1].any()  # an empty slice has no bright part


def case(maps: np.ndarray, probability: np.ndarray) -> dict:
    """What the inferer leaves: members' maps and slice probabilities, and an image with an organ channel."""
    spread = np.broadcast_to(probability[:, None, None, :], (2, *maps.shape[1:]))
    image = np.ones((2, *maps.shape[1:]), dtype=np.float32)
    return {"pred": torch.as_tensor(np.concatenate([maps, spread]).astype(np.float32)), "image": MetaTensor(image)}


def test_transform_leaves_the_margin_as_class_map_and_the_probabilities_untouched(maps):
    probability = np.array([[0.9, 0.2, 0.4, 0.0], [0.1, 0.8, 0.6, 1.0]], dtype=np.float32)
    transform = combine_script.CombineMapsd(combine="or", thresholds=THRESHOLDS, normalize="volume")
    pred = transform(case(maps, probability))["pred"].numpy()
    expected = combine(maps / maps.max(axis=(1, 2, 3), keepdims=True), THRESHOLDS, "or")
    assert pred.shape == (4, *maps.shape[1:])
    np.testing.assert_allclose(pred[1] - pred[0], expected, atol=1e-6)
    np.testing.assert_allclose(pred[2:, 0, 0], probability)


def test_nothing_outside_the_organ_is_ever_positive(maps):
    data = case(maps, np.full((2, 4), 0.5, dtype=np.float32))
    data["image"][1, :3] = 0
    pred = combine_script.CombineMapsd(combine="or", thresholds=[0.0] * 3)(data)["pred"].numpy()
    assert (pred[1, 3:] > 0).any()
    assert not (pred[1, :3] > 0).any()


def test_rows_of_the_table_are_masks_in_the_kept_slices(maps):
    probability = np.array([[0.9, 0.2, 0.4, 0.0], [0.1, 0.8, 0.6, 1.0]], dtype=np.float32)
    rows = {"first": {"use": [0], "how": "and", "thresholds": [0.5]}}
    data = combine_script.CombineMapsd(combine="or", thresholds=THRESHOLDS, table=rows)(case(maps, probability))
    mask = data["baseline_first"].numpy()[0]
    expected = normalize_maps(maps)[0] > 0.5
    expected[..., 0] = False  # probability 0.1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.3, float("nan"), 0.8]}, r"thresholds must be finite numbers, got \[0\.3, nan, 0\.8\]"),
        ({"thresholds": [None]}, "thresholds must be finite numbers"),
        ({"thresholds": [float("inf")]}, "thresholds must be finite numbers"),
        ({"intensity_mask": 80}, r"intensity_mask must lie in \[0, 1\], got 80"),
        ({"table_gate": float("nan")}, r"table_gate must lie in \[0, 1\], got nan"),
        ({"combine": "sum"}, "combine must be one of .*got 'sum'"),
    ],
)
def test_what_no_mask_could_be_made_with_is_refused_before_a_case(options, message):
    """A server builds the transform from what lies beside weights; its masks would be empty without a word."""
    with pytest.raises(ValueError, match=message):
        combine_script.CombineMapsd(**options)
