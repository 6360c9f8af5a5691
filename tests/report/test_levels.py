from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from common.metrics import dice
from common.report.cases import level_table
from common.report.levels import bounding_box, components_by_level, heat_levels, threshold_stops


@pytest.fixture(scope="module")
def heat() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(20, 18, 7))
    return ndimage.gaussian_filter(noise, 1.0).astype(np.float32)


def test_a_level_above_k_is_heat_above_the_kth_threshold_voxel_by_voxel(heat):
    stops = threshold_stops(float(heat.min()), float(heat.max()), 0.1)
    levels = heat_levels(heat, stops)
    for k, stop in enumerate(stops):
        assert np.array_equal(levels > k, heat > np.float32(stop))


def test_heat_that_equals_a_threshold_is_not_above_it():
    stops = threshold_stops(0.0, 254.0)
    assert heat_levels(np.array([0.0, 10.0, 10.5, 254.0, 300.0]), stops).tolist() == [0, 10, 11, 254, 255]


def test_what_is_not_a_number_exceeds_nothing():
    assert heat_levels(np.array([np.nan, np.inf, -np.inf]), threshold_stops(0.0, 1.0)).tolist() == [0, 255, 0]


@pytest.mark.parametrize("threshold", [0.3337, -2.0, 5.0])
def test_the_runs_own_threshold_is_one_of_the_stops(threshold):
    stops = threshold_stops(0.0, 1.0, threshold)
    assert threshold in stops
    assert len(stops) == 255
    assert (np.diff(stops) > 0).all()


def test_stops_of_a_constant_map_are_distinct():
    assert len(set(threshold_stops(0.5, 0.5, None))) == 255


def test_the_table_is_what_thresholding_the_heatmap_gives(heat):
    stops = threshold_stops(float(np.median(heat)), float(heat.max()))
    truth = heat > 0.2
    table = level_table(heat_levels(heat, stops), 0.004, truth)
    for k in range(0, 255, 17):
        mask = heat > np.float32(stops[k])
        assert table["components"][k] == ndimage.label(mask, np.ones((3, 3, 3)))[1]
        assert table["ml"][k] == pytest.approx(mask.sum() * 0.004, abs=5e-4)
        assert table["dice"][k] == pytest.approx(dice(mask, truth), abs=5e-5)


def test_without_truth_there_is_no_dice(heat):
    assert "dice" not in level_table(heat_levels(heat, threshold_stops(0.0, 1.0)), 1.0, None)


def test_components_that_touch_at_a_corner_are_one():
    levels = np.zeros((4, 4, 4), np.uint8)
    levels[0, 0, 0] = levels[1, 1, 1] = 200
    levels[3, 3, 3] = 100
    counts = components_by_level(levels)
    assert (counts[0], counts[99], counts[100], counts[199], counts[200]) == (2, 2, 1, 1, 0)


def test_a_box_has_its_margin_inside_the_array():
    mask = np.zeros((9, 9, 9), bool)
    mask[1, 4, 8] = True
    assert bounding_box(mask, (2, 2, 2)) == (slice(0, 4), slice(2, 7), slice(6, 9))
    assert bounding_box(np.zeros((3, 4, 5), bool)) == (slice(0, 3), slice(0, 4), slice(0, 5))
