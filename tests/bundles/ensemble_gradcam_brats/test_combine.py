from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.metrics import dice, pooled_miou
from tests.bundles.conftest import load_script
from tests.pipeline import run_handler

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


def test_negative_maps_and_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        normalize_maps(np.full((1, 2, 2, 2), -1.0))
    with pytest.raises(ValueError, match="'slice' or 'volume'"):
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


def test_rows_of_the_table_are_masks_in_the_opened_slices(maps):
    probability = np.array([[0.9, 0.2, 0.4, 0.0], [0.1, 0.8, 0.6, 1.0]], dtype=np.float32)
    rows = {"first": {"use": [0], "how": "and", "thresholds": [0.5]}}
    data = combine_script.CombineMapsd(combine="or", thresholds=THRESHOLDS, table=rows)(case(maps, probability))
    mask = data["baseline_first"].numpy()[0]
    expected = normalize_maps(maps)[0] > 0.5
    expected[..., 0] = False  # probability 0.1
    np.testing.assert_array_equal(mask, expected)


search = load_script("ensemble_gradcam_brats", "search")


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(2).random((6, 5, 4)) > 0.7


@pytest.mark.parametrize("how", ["or", "and", "min", "max"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_grid_counts_are_those_of_every_mask_built_one_by_one(maps, truth, how, members):
    levels = [0.0, 0.25, 0.5, 0.9]
    gated = np.array([True, False, True, True])
    counts = search.grid_counts(maps[:members], truth, how=how, levels=levels, gated=gated)
    assert counts["predicted"].shape == (4,) * members
    for index in np.ndindex(*counts["predicted"].shape):
        mask = (combine(maps[:members], [levels[i] for i in index], how) > 0) & gated
        assert counts["predicted"][index] == mask.sum(), index
        assert counts["hits"][index] == (mask & truth).sum(), index
    assert (counts["truth"], counts["size"]) == (truth.sum(), truth.size)


@pytest.mark.parametrize("how", ["mean", "product"])
def test_grid_of_soft_maps_has_one_axis(maps, truth, how):
    counts = search.grid_counts(maps, truth, how=how, levels=[0.1, 0.5])
    for k, level in enumerate([0.1, 0.5]):
        mask = combine(maps, [level], how) > 0
        assert (counts["predicted"][k], counts["hits"][k]) == (mask.sum(), (mask & truth).sum())


def test_scores_are_mean_dice_and_pooled_miou(maps, truth):
    volumes = [maps[:2], np.flip(maps[:2], 1)]
    counts = [search.grid_counts(v, truth, how="and") for v in volumes]
    found = [(combine(v, [0.3, 0.6], "and") > 0) for v in volumes]
    assert search.grid_scores(counts, "dice")[3, 6] == pytest.approx(np.mean([dice(m, truth) for m in found]))
    assert search.grid_scores(counts, "miou")[3, 6] == pytest.approx(pooled_miou(found, [truth, truth]))
    with pytest.raises(ValueError, match="'dice' or 'miou'"):
        search.grid_scores(counts, "iou")


def test_ties_go_to_the_lowest_thresholds():
    scores = np.zeros((11, 11))
    scores[4, 7] = scores[2, 9] = scores[2, 3] = 0.5
    assert search.best_thresholds(scores)[0] == [0.2, 0.3]


def test_candidates_are_each_member_and_each_combination_of_each_subset():
    found = search.candidates(3)
    assert len(found) == 3 + 4 * 6
    assert {"use": [0, 2], "how": "product"} in found


def found_on(name: str, lesion: float, around: float) -> tuple[dict, dict]:
    """A case in whose map of the one member the lesion and what is around it have these values."""
    truth = np.zeros((1, 6, 5, 4), np.float32)
    truth[0, 2:4, 1:4, 1:3] = 1
    heat = np.where(truth > 0, lesion, around)
    heat[0, 0, 0] = 1.0  # each slice is divided by its largest value
    pred = np.concatenate([heat, np.zeros_like(heat), np.ones_like(heat)])
    image = MetaTensor(np.ones((2, *truth.shape[1:]), np.float32))
    return {"case": name, "image": image, "label": MetaTensor(truth)}, {"pred": torch.as_tensor(pred)}


def run_search(folder: Path, *items: tuple[dict, dict]) -> dict:
    handler = search.EnsembleSearch(folder, names=["one"], fit_cases=["a", "b"], levels=[0.2, 0.4, 0.6])
    run_handler(handler, list(items))
    return json.loads((folder / "calibrated.json").read_text())


def test_thresholds_are_fitted_on_the_named_cases_and_scored_on_the_others(tmp_path):
    found = run_search(tmp_path, found_on("a", 0.5, 0.3), found_on("c", 0.3, 0.1), found_on("b", 0.5, 0.3))
    assert found["thresholds"] == [0.4]  # 0.2 would be the best of the others
    with open(tmp_path / "search.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["training_dice"]) == pytest.approx(2 * 12 / (12 + 12 + 4), abs=1e-4)
    assert float(row["validation_dice"]) == 0.0


@pytest.mark.parametrize("name", ["a", "c"])
def test_a_search_needs_cases_of_both_sections(tmp_path, name):
    with pytest.raises(RuntimeError, match="both the training and the validation section"):
        run_search(tmp_path, found_on(name, 0.5, 0.3))


def test_full_grid_of_two_members_over_three_thousand_slices_takes_seconds():
    generator = np.random.default_rng(0)
    volume = generator.random((2, 128, 128, 30), dtype=np.float32) * (generator.random((128, 128, 30)) > 0.7)
    truth = generator.random((128, 128, 30)) > 0.95
    start = time.process_time()
    for how in ("or", "and", "min", "max"):
        search.grid_counts(volume, truth, how=how)
    assert (time.process_time() - start) * 100 / 4 < 30, "one combination over 3,000 slices"
