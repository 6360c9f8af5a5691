from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from skimage.filters import threshold_multiotsu, threshold_otsu

from common.masks import best_threshold, multi_otsu, otsu, threshold_grid
from common.metrics import component_scores, dice, iou


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def mixture(shape=(24, 20), seed=0, means=(-1.0, 1.0, 3.0)):
    """Noise around three levels in equal parts."""
    rng = np.random.default_rng(seed)
    return rng.choice(means, size=shape) + rng.normal(0, 0.3, size=shape)


def cases(count=3, dtype=np.float32, seed=0):
    """Heatmaps on a coarse grid of values, so that many lie exactly on a threshold; the last truth is empty."""
    rng = np.random.default_rng(seed)
    heatmaps = [rng.integers(-2, 12, size=(5, 6, 4 + i)).astype(dtype) / dtype(10) for i in range(count)]
    truths = [(h + rng.normal(0, 0.3, size=h.shape)) > 0.7 for h in heatmaps]
    truths[-1][:] = False
    return heatmaps, truths


@pytest.mark.parametrize("shape", [(24, 20), (8, 9, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_otsu_is_scikit_images(shape, seed):
    heatmap = mixture(shape, seed)
    mask = np.random.default_rng(seed + 9).random(shape) > 0.4
    assert otsu(heatmap) == pytest.approx(threshold_otsu(heatmap))
    assert otsu(heatmap, mask=mask) == pytest.approx(threshold_otsu(heatmap[mask]))
    assert otsu(heatmap.astype(np.float32)) == pytest.approx(otsu(heatmap), abs=0.05)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_multi_otsu_is_scikit_images_highest_after_relu(classes):
    heatmap = mixture()
    mask = np.random.default_rng(9).random(heatmap.shape) > 0.4
    relu = np.maximum(heatmap, 0)
    assert multi_otsu(heatmap, classes=classes) == pytest.approx(threshold_multiotsu(relu, classes=classes)[-1])
    expected = threshold_multiotsu(relu[mask], classes=classes)[-1]
    assert multi_otsu(heatmap, classes=classes, mask=mask) == pytest.approx(expected)


def test_multi_otsu_offset_lowers_down_to_zero():
    heatmap = mixture()
    highest = multi_otsu(heatmap)
    assert 1.0 < highest < 3.0
    assert multi_otsu(heatmap, offset=0.3) == pytest.approx(highest - 0.3)
    assert multi_otsu(heatmap, offset=50.0) == 0.0


def test_thresholds_do_not_depend_on_negative_heat_after_relu():
    heatmap = mixture()
    assert multi_otsu(np.where(heatmap < 0, heatmap * 100, heatmap)) == multi_otsu(heatmap)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_nothing_stands_out_in_a_constant_map(value):
    heatmap = np.full((6, 6), value, dtype=np.float32)
    noise = heatmap + np.spacing(heatmap) * (np.arange(36).reshape(6, 6) % 2)  # one rounding step of float32
    for flat in (heatmap, noise.astype(np.float32)) if value else (heatmap,):
        assert otsu(flat) == np.inf
        assert multi_otsu(flat, offset=5.0) == np.inf
        assert not (flat > otsu(flat)).any()


def test_empty_mask_and_negative_map_have_no_threshold():
    heatmap = mixture()
    assert otsu(heatmap, mask=np.zeros_like(heatmap)) == np.inf
    assert multi_otsu(heatmap, mask=np.zeros_like(heatmap)) == np.inf
    assert multi_otsu(-np.abs(heatmap)) == np.inf


def test_multi_otsu_of_two_values_separates_them():
    heatmap = np.where(np.arange(36).reshape(6, 6) < 5, 0.8, 0.1)
    np.testing.assert_array_equal(heatmap > multi_otsu(heatmap, classes=3), heatmap == 0.8)
    assert multi_otsu(heatmap, classes=3) == otsu(heatmap)


def test_bad_maps_are_refused():
    heatmap = mixture()
    with pytest.raises(ValueError, match=r"mask must have the heatmap's shape \[24, 20\]; got \[20\]"):
        otsu(heatmap, mask=np.ones(20))
    with pytest.raises(ValueError, match="classes must be 2 or more; got 1"):
        multi_otsu(heatmap, classes=1)
    heatmap[0, :3] = np.nan
    for threshold in (otsu, multi_otsu):
        with pytest.raises(ValueError, match=r"shape \[24, 20\] holds 3 NaN"):
            threshold(heatmap)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "score", [dice, iou, functools.partial(dice, empty=np.nan), lambda p, t: component_scores(p, t)["recall"]]
)
def test_threshold_grid_equals_the_loop(score, dtype):
    heatmaps, truths = cases(dtype=dtype)
    thresholds = [0.5, -0.1, 0.0, 0.7, 0.3, 0.5, 2.0, np.inf]
    loop = [[score(h > dtype(t), y) for h, y in zip(heatmaps, truths, strict=True)] for t in thresholds]
    scored = [[s for s in row if not np.isnan(s)] for row in loop]
    expected = [np.mean(row) for row in scored]
    np.testing.assert_allclose(threshold_grid(heatmaps, truths, thresholds, score=score), expected)
    best, value = best_threshold(heatmaps, truths, thresholds, score=score)
    assert value == pytest.approx(max(expected))
    assert best == min(t for t, s in zip(thresholds, expected, strict=True) if s == pytest.approx(max(expected)))


def test_smallest_threshold_wins_ties():
    heatmap = np.array([0.0, 0.0, 1.0, 1.0])
    assert best_threshold([heatmap], [heatmap], [0.9, 0.4, 0.1, 2.0]) == (0.1, 1.0)


def test_grid_without_scores():
    heatmaps, truths = cases()
    nothing = functools.partial(dice, empty=np.nan)
    assert np.isnan(threshold_grid(heatmaps[-1:], truths[-1:], [5.0], score=nothing)).all()
    with pytest.raises(ValueError, match="none of the 1 cases has a score"):
        best_threshold(heatmaps[-1:], truths[-1:], [5.0], score=nothing)
    with pytest.raises(ValueError, match="got 1 and 3"):
        threshold_grid(heatmaps, truths[:1], [0.5])
    with pytest.raises(ValueError, match=r"got \[5, 6, 4\], \[5, 6, 5\]"):
        threshold_grid(heatmaps[:1], truths[1:2], [0.5])
    with pytest.raises(ValueError, match=r"thresholds must be a non-empty list .* got \[\]"):
        threshold_grid(heatmaps, truths, [])
