from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import ndimage as ndi

from common.preprocessing.seen import describe_case, distances, summarize
from common.preprocessing.strange import compare

SPACING = (2.0, 2.0, 5.0)
X, Y = np.meshgrid(np.arange(48) - 24.0, np.arange(56) - 28.0, indexing="ij")
ORGAN = np.repeat(((X / 22) ** 2 + (Y / 26) ** 2 < 1)[..., None], 8, axis=2)


def head(seed: int, *, bright: str = "flat", scale: float = 100.0, shift: float = 0.0) -> np.ndarray:
    """`[H, W, D]`: broad patches of one tissue beside a folded one; `flat` or `edgy` is `bright`."""
    rng = np.random.default_rng(seed)
    noise, raw, patches = rng.normal(size=(3, *ORGAN.shape))
    folds = ndi.gaussian_filter(raw, (0.7, 0.7, 0))
    other = (0.8 if bright == "flat" else 1.25) + 0.13 * folds / folds.std()
    tissue = np.where(ndi.gaussian_filter(patches, (3, 3, 0)) > 0, 1.0, other) + 0.01 * noise
    return (shift + scale * tissue * ORGAN).astype(np.float32)


def described(*channels: np.ndarray, organ: np.ndarray = ORGAN, **options: Any) -> dict[str, Any]:
    return describe_case(np.stack(channels), organ, **{"spacing": SPACING, "native_spacing": SPACING} | options)


def seen_in(cases: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """As it comes back from the file."""
    return json.loads(json.dumps(summarize(cases, [f"p{i}" for i in range(len(cases))], **options)))


T1 = seen_in([described(head(seed)) for seed in range(12)], channels=["t1"])


def test_another_case_of_the_kind_is_as_in_training_in_whatever_units_of_its_scanner():
    for case in (head(20), head(21, scale=3.0), head(22, scale=9000.0)):
        assert compare(described(case), T1) == ([], [])


def test_one_name_for_several_channels_is_none():
    colors = [described(head(seed), head(seed + 50), head(seed + 70)) for seed in range(3)]
    seen = seen_in(colors, channels=["image"])
    assert seen["channels"] == ["channel 1", "channel 2", "channel 3"]
    assert compare(colors[0], seen) == ([], [])
    assert compare(colors[0], seen | {"channels": ["image"]}) == ([], [])  # as it was written before
    assert compare(described(head(0)), seen)[0] == ["1 channel(s), but training had 3: channel 1, channel 2, channel 3"]
    assert seen_in(colors, channels=["r", "g", "b"])["channels"] == ["r", "g", "b"]


def test_another_contrast_is_a_warning_that_names_the_channel():
    errors, warnings = compare(described(head(20, bright="edgy")), T1)
    assert errors == []
    assert len(warnings) == 1
    assert "contrast unlike 't1' of the training" in warnings[0]


def test_standardized_images_are_told_from_those_with_a_little_below_zero():
    image = head(20)
    ringing = image - 0.02 * image.max()
    assert compare(described(ringing), T1) == ([], [])
    whole = (image - image.mean()) / image.std()  # the organ itself stays positive
    errors, warnings = compare(described(whole), T1)
    assert errors == []
    assert any("voxels are negative, in training 0%: standardized" in text for text in warnings)
    same = seen_in([described((head(s) - head(s).mean()) / head(s).std()) for s in range(12)])
    assert compare(described(whole), same) == ([], [])


def test_a_mask_in_the_place_of_an_image_is_told():
    assert "nearly all of the organ is 1: a mask?" in compare(described(ORGAN.astype(np.float32)), T1)[1]


def test_contrast_is_that_of_the_organ_and_neither_scale_nor_offset_changes_it():
    plain = described(head(3))["contrast"][0]
    around = head(3, scale=-7.0, shift=900.0)
    around[~ORGAN] = 1e4
    around[24, 28] = -1e5  # a vessel
    np.testing.assert_allclose(described(around)["contrast"][0], -np.array(plain), atol=0.01)
    assert plain[0] > 0.3


def test_swapped_modalities_are_recognized_by_each_other():
    def pair(seed: int) -> list[np.ndarray]:
        return [head(seed), head(seed + 100, bright="edgy")]

    seen = seen_in([described(*pair(seed)) for seed in range(12)], channels=["t1", "flair"])
    assert compare(described(*pair(30)), seen) == ([], [])
    _, warnings = compare(described(*pair(30)[::-1]), seen)
    assert len(warnings) == 2
    assert "unlike 't1'" in warnings[0]
    assert "like 'flair': are modalities swapped?" in warnings[0]
    assert "unlike 'flair'" in warnings[1]
    assert "like 't1': are modalities swapped?" in warnings[1]


def test_few_patients_say_nothing_about_contrast():
    seen = seen_in([described(head(seed)) for seed in range(9)])
    assert seen["contrast"] == [None]
    assert compare(described(head(20, bright="edgy")), seen) == ([], [])


def test_another_number_of_channels_is_an_error():
    assert compare(described(head(0), head(1)), T1) == (["2 channel(s), but training had 1: t1"], [])


def test_a_window_where_training_had_none_is_an_error():
    errors, _ = compare(described(head(0), window=(0, 255)), T1, window=(0, 255))
    assert errors == ["intensities are scaled by the window [0, 255], in training by the organ"]


def lung(seed: int, *, slope: float = 1.0, offset: float = 0.0, rest: float = 40.0) -> np.ndarray:
    """Mostly dark, with vessels: 8-bit values inside the organ, or a line of them."""
    values = np.random.default_rng(seed).gamma(2.0, 20.0, ORGAN.shape).clip(0, 215) + rest
    return (slope * values + offset).astype(np.float32)


EIGHT_BIT = seen_in([described(lung(seed), window=(0, 255)) for seed in range(3)], window=(0, 255))
HOUNSFIELD = {"slope": 5.0, "offset": -1200.0}  # of the same lungs, as a window of [-1200, 75] would have made them


def test_some_voxels_outside_of_a_window_in_which_all_of_the_training_lay_are_an_error():
    case = described(lung(5, slope=2.2), window=(0, 255))
    assert 0.05 < case["outside"][0] < 0.5
    assert len(compare(case, EIGHT_BIT, window=(0, 255))[0]) == 1


@pytest.mark.parametrize("offset", [0.0, 1024.0, 32768.0])
def test_hounsfield_units_for_weights_of_eight_bit_are_an_error_with_the_window_and_the_range(offset):
    hounsfield = lung(5, **HOUNSFIELD) + offset
    errors, _ = compare(described(hounsfield, window=(0, 255)), EIGHT_BIT, window=(0, 255))
    assert len(errors) == 1
    low, high = EIGHT_BIT["quantiles"][0]["min"][0], EIGHT_BIT["quantiles"][0]["max"][-1]
    assert f"trained with the window [0.0, 255.0] on values of {low:g} to {high:g}" in errors[0]
    assert "--window" in errors[0]


def test_the_window_that_brings_images_to_the_trainings_scale_is_accepted():
    window = (-1200.0, 75.0)
    assert compare(described(lung(5, **HOUNSFIELD), window=window), EIGHT_BIT, window=window) == ([], [])


def test_another_source_of_the_same_units_is_accepted():
    assert compare(described(lung(5, slope=0.8, offset=30.0), window=(0, 255)), EIGHT_BIT, window=(0, 255)) == ([], [])


def test_eight_bit_for_weights_of_hounsfield_units_is_an_error():
    window = (-1200.0, 400.0)
    seen = seen_in([described(lung(s, **HOUNSFIELD), window=window) for s in range(3)], window=window)
    assert compare(described(lung(5, **HOUNSFIELD), window=window), seen, window=window) == ([], [])
    errors, _ = compare(described(lung(5), window=window), seen, window=window)
    assert len(errors) == 1
    assert "lie outside of what training saw" in errors[0]


def test_a_window_far_beyond_all_values_says_nothing_about_their_scale():
    seen = seen_in([described(lung(seed), window=(0, 1e6)) for seed in range(3)], window=(0, 1e6))
    assert compare(described(lung(5, slope=20.0), window=(0, 1e6)), seen, window=(0, 1e6)) == ([], [])


def test_a_median_beyond_the_trainings_quartiles_is_a_warning():
    errors, warnings = compare(described(lung(5, offset=60.0), window=(0, 300)), EIGHT_BIT, window=(0, 255))
    assert errors == []
    assert len(warnings) == 1
    assert warnings[0].startswith("median inside the organ")


def test_negative_values_are_an_error_where_the_organ_scales_intensities_and_training_had_none():
    errors, _ = compare(described(head(20, scale=-100.0)), T1)
    assert len(errors) == 1
    assert errors[0].startswith("100% of the organ's voxels are negative")


def test_an_organ_of_another_size_is_a_warning_and_an_impossible_one_an_error():
    milliliters = ORGAN.sum() * 0.02
    assert described(head(0))["organ_ml"] == pytest.approx(milliliters, abs=1e-3)
    small = ORGAN.copy()
    small[..., 4:] = False
    _, warnings = compare(described(head(20), organ=small), T1)
    assert warnings == [f"organ of {milliliters / 2:.0f} ml, in training {milliliters:.0f} to {milliliters:.0f} ml"]
    for factor, certain in ((1.4, False), (2.0, False), (3.2, True)):
        options = {"spacing": (2.0, 2.0, 5.0 * factor)}
        errors, warnings = compare(described(head(20), **options), T1)
        assert bool(errors) == certain
        assert bool(errors or warnings) == (factor > 1.5)


def test_an_organ_of_another_size_and_contrast_is_an_error():
    errors, _ = compare(described(head(20, bright="edgy"), spacing=(2.0, 2.0, 10.0)), T1)
    assert len(errors) == 1
    assert "another body part or kind of image" in errors[0]


def test_an_organ_in_parts_may_be_whole_later():
    halves = [described(head(seed), organ=ORGAN & (X[..., None] * side > 0)) for seed in range(4) for side in (-1, 1)]
    seen = summarize(halves, [f"p{i // 2}" for i in range(8)])
    assert (seen["cases"], seen["patients"]) == (8, 4)
    assert seen["organ_ml"]["max"] == pytest.approx(2 * seen["organ_ml"]["median"], rel=0.1)
    assert compare(described(head(20)), seen) == ([], [])


def test_pictures_are_no_parts_of_an_organ_that_is_whole_later():
    """Of a patient's many pictures one with finer pixels, whose head is larger in them, stands out."""
    pictures = [described(head(seed)[..., 4:5], organ=ORGAN[..., 4:5]) for seed in range(12)]
    seen = summarize(pictures, [f"p{i // 6}" for i in range(12)])
    assert (seen["patients"], seen["slices"]) == (2, {"min": 1.0, "median": 1.0, "max": 1.0})
    assert seen["organ_ml"]["max"] == seen["organ_ml"]["min"]
    assert compare(described(head(20)[..., 4:5], organ=ORGAN[..., 4:5]), seen) == ([], [])
    for factor, certain in ((2.0, False), (4.0, True)):
        larger = described(head(20)[..., 4:5], organ=ORGAN[..., 4:5], spacing=(2.0 * factor, 2.0, 5.0))
        errors, warnings = compare(larger, seen)
        assert any("organ of" in text for text in (errors if certain else warnings))
    assert not any("organ of" in text for part in compare(described(head(20)), seen) for text in part)  # a whole scan


@pytest.mark.parametrize(
    ("native", "told"), [((2.0, 2.8, 5.0), ""), ((4.0, 2.0, 5.0), "4 x 2"), ((2.0, 3.2, 5.0), "2 x 3.2")]
)
def test_pixels_longer_than_wide_are_a_warning_where_those_of_training_were_square(native, told):
    _, warnings = compare(described(head(20), native_spacing=native), T1)
    long = max(native[:2]) / min(native[:2])
    assert warnings == ([f"pixels {told} mm, {long:.1f} times longer than wide"] if told else [])


def test_a_spacing_far_from_the_trainings_is_a_warning():
    for native, expected in (
        ((2.0, 2.0, 1.0), []),
        ((0.5, 0.5, 5.0), ["pixels 0.5 mm, in training 2 to 2 mm"]),
        ((2.0, 2.0, 0.5), ["distance of slices 0.5 mm, in training 5 to 5 mm"]),
    ):
        assert compare(described(head(20), native_spacing=native), T1) == ([], expected)


def test_pixels_of_another_size_are_named_sooner_where_weights_see_them_as_they_are():
    advice = ", and the weights see them as they are: --spacing [2,2,-1.0] resamples"
    for native, expected in (
        ((2.4, 2.4, 5.0), []),
        ((1.0, 1.0, 5.0), ["pixels 1 mm, in training 2 to 2 mm" + advice]),
        ((2.0, 2.0, 0.5), ["distance of slices 0.5 mm, in training 5 to 5 mm"]),
    ):
        assert compare(described(head(20), native_spacing=native), T1 | {"native_pixels": True}) == ([], expected)


def test_finer_pixels_of_an_organ_are_as_many_milliliters():
    fine = ORGAN.repeat(4, axis=0).repeat(4, axis=1)
    image = head(0).repeat(4, axis=0).repeat(4, axis=1)
    described_fine = described(image, organ=fine, spacing=(0.5, 0.5, 5.0))
    assert described_fine["organ_ml"] == pytest.approx(described(head(0))["organ_ml"], rel=0.01)


def test_contrasts_are_held_against_those_of_the_other_patients():
    """Among so few each patient lies nearer to a mean that he is part of."""
    cases = [described(head(seed)) for seed in range(10)]
    seen = summarize(cases, [f"p{i}" for i in range(10)])["contrast"][0]
    rows = np.array([case["contrast"][0] for case in cases])
    among_all = distances(rows, np.array(seen["mean"]), np.array(seen["covariance"]))
    assert seen["limit"] > 1.3 * np.quantile(among_all, 0.95)
