from __future__ import annotations

import numpy as np
import pytest

from common.masks import (
    choose_gate,
    healthy_intensity,
    heat_threshold,
    pseudo_refine,
    reached_level,
    smallest_volume,
    volume_gate,
)


def test_gate_separates_what_can_be_separated_half_way_in_logits():
    assert choose_gate([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert choose_gate([0.01, 0.01, 0.5], [0, 0, 1]) == pytest.approx(1 / (1 + 99**0.5), rel=1e-3)


def test_gate_is_that_of_the_largest_youden_index_and_the_lower_one_of_two():
    # Above .35: 3 of 4 positives, no negative; above .15: all positives and one of four negatives. Both have J = .75.
    probabilities, labels = [0.1, 0.05, 0.3, 0.02, 0.2, 0.4, 0.6, 0.8], [0, 0, 0, 0, 1, 1, 1, 1]
    assert 0.1 < choose_gate(probabilities, labels) < 0.2


def test_gate_of_a_given_sensitivity_lets_that_share_of_positives_pass():
    probabilities = np.array([0.05, 0.3, 0.5, 0.1, 0.4, 0.6, 0.8, 0.9])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    gate = choose_gate(probabilities, labels, sensitivity=0.8)
    assert (probabilities[labels == 1] > gate).mean() == 0.8
    assert choose_gate(probabilities, labels, sensitivity=1.0) < 0.1


@pytest.mark.parametrize("probabilities", [[1e-8, 0.9, 1e-9, 1e-9], [1.0, 1.0, 0.9999995, 0.9999995]])
def test_gate_separates_probabilities_next_to_0_or_1_too(probabilities):
    gate = choose_gate(probabilities, [1, 1, 0, 0])
    assert [p > gate for p in probabilities] == [True, True, False, False]


@pytest.mark.parametrize(("labels", "kind"), [([1, 1], "yes"), ([0, 0], "no")])
def test_a_gate_needs_both_labels(labels, kind):
    with pytest.raises(ValueError, match=f"all 2 are {kind}"):
        choose_gate([0.2, 0.8], labels)


@pytest.mark.parametrize("choose", [choose_gate, volume_gate])
def test_probabilities_that_tell_nothing_have_no_gate(choose):
    with pytest.raises(ValueError, match="has not learned"):
        choose([0.8, 0.2, 0.8, 0.2], [0, 0, 1, 1])


def test_gate_of_volumes_is_the_highest_score_below_what_nearly_all_positives_reach():
    scores, labels = [0.1, 0.6, 0.99, 0.7, 0.9, 0.95], [0, 0, 0, 1, 1, 1]
    assert volume_gate(scores, labels) == 0.6
    assert volume_gate([0.9, 0.95], [0, 1]) == 0.9
    assert volume_gate([0.99, 0.5, 0.4], [1, 1, 0], sensitivity=1.0) == 0.4


def test_threshold_leaves_the_asked_share_of_negatives_below():
    heats = [np.linspace(0, 1, 101).reshape(1, 101), np.array([])]
    assert heat_threshold(heats, 0.9) == pytest.approx(0.9)
    assert heat_threshold([heats[0].astype(np.float16)], 0.5) == pytest.approx(0.5)


def test_without_negatives_there_is_no_threshold():
    with pytest.raises(ValueError, match="no slice or volume is labeled negative"):
        heat_threshold([np.array([])], 0.9)


def test_smallest_volume_is_what_negatives_show_but_spares_positives():
    assert smallest_volume([0.5, 2.0, 20.0, 30.0], [0, 0, 1, 1]) == 2.0
    assert smallest_volume([15.0, 20.0, 20.0], [0, 1, 1]) == 10.0
    assert smallest_volume([0.0, 20.0], [0, 1]) == 0.0
    assert smallest_volume([5.0, 6.0], [1, 1]) == smallest_volume([5.0], [0]) == 0.0


def test_every_patient_says_as_much_about_what_is_bright():
    dark, bright = np.full(100_000, 1.0), np.linspace(1.0, 2.0, 101)
    assert healthy_intensity([dark, bright], 0.75) == pytest.approx(1.5, abs=0.01)
    assert healthy_intensity([bright, np.empty(0)], 0.9) == pytest.approx(1.9, abs=0.01)
    with pytest.raises(ValueError, match="no slice or volume is labeled negative: how bright nothing is"):
        healthy_intensity([np.empty(0)], 0.9)


def test_without_a_chosen_refinement_other_units_are_an_error():
    usual = {"dilate_mm": 9.0, "intensity": 1.0}
    assert pseudo_refine(usual, None, organ="brain", normalize="organ_median", intensity=1.3)["intensity"] == 1.3
    with pytest.raises(ValueError, match=r"no refinement was chosen for the teacher: run calibrate_labels\.json"):
        pseudo_refine(usual, None, organ="lung", normalize="organ_mode")


def test_the_share_of_peaks_that_is_asked_for_reaches_the_level():
    peaks = np.arange(101.0)
    assert reached_level(peaks) == pytest.approx(25.0)  # three quarters are higher
    assert reached_level(peaks, 0.1) == pytest.approx(90.0)
