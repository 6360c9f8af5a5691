from __future__ import annotations

import math

import numpy as np
import pytest

from common.metrics import area_under, perturbation_curve, points_at, rank_correlation, top_region

INSIDE = np.ones((4, 5), dtype=bool)
HEAT = np.arange(20.0).reshape(4, 5)


def total(images):
    return images.sum(axis=(1, 2, 3))


def test_ranks_agree_whatever_the_scale_and_only_inside_counts():
    assert rank_correlation(HEAT, np.exp(HEAT), INSIDE) == pytest.approx(1)
    assert rank_correlation(HEAT, -HEAT, INSIDE) == pytest.approx(-1)
    half = INSIDE.copy()
    half[2:] = False
    other = np.where(half, HEAT, -HEAT)
    assert rank_correlation(HEAT, other, half) == pytest.approx(1)
    assert math.isnan(rank_correlation(HEAT, 0 * HEAT, INSIDE))


def test_the_top_region_is_a_share_of_the_inside():
    assert np.flatnonzero(top_region(HEAT, INSIDE, 0.1)).tolist() == [18, 19]
    inside = INSIDE.copy()
    inside[3] = False
    assert np.flatnonzero(top_region(HEAT, inside, 0.1)).tolist() == [13, 14]
    assert top_region(0 * HEAT, INSIDE, 0.25).sum() == 5  # equals do not blow it up
    assert not top_region(HEAT, ~INSIDE, 0.1).any()


def test_the_pointing_game():
    truth = np.zeros((4, 5), dtype=bool)
    truth[3, 4] = True
    assert points_at(HEAT, truth, INSIDE)
    assert not points_at(-HEAT, truth, INSIDE)
    assert not points_at(HEAT, truth, ~truth)


def test_deletion_falls_early_and_insertion_rises_early_for_a_true_map():
    image = np.zeros((1, 4, 5))
    image[0, 3, 3:] = 8.0
    deletion = perturbation_curve(total, image, HEAT, INSIDE, fill=0.0, steps=10)
    assert deletion.tolist() == [16.0] + [0.0] * 10
    insertion = perturbation_curve(total, image, HEAT, INSIDE, fill=0.0, steps=10, insert=True)
    assert insertion.tolist() == [0.0] + [16.0] * 10
    false = perturbation_curve(total, image, -HEAT, INSIDE, fill=0.0, steps=10)
    assert area_under(deletion) < area_under(false)


def test_what_lies_outside_is_never_touched():
    inside = INSIDE.copy()
    inside[0] = False
    image = np.ones((2, 4, 5))
    before = image.copy()
    curve = perturbation_curve(total, image, HEAT, inside, fill=0.0, steps=3)
    assert curve.tolist() == [40.0, 30.0, 20.0, 10.0]
    assert (image == before).all()


def test_the_area_under_a_curve_is_that_of_its_trapezoids():
    assert area_under(np.array([1.0, 0.0, 0.0])) == 0.25
    assert area_under(np.array([0.2, 0.6])) == pytest.approx(0.4)
    assert area_under(np.linspace(0, 1, 11) ** 2) == pytest.approx(0.335)  # a third, and h²/6
