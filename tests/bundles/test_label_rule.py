"""What labels choose where the constants of one bright lesion in a head do not hold: in lungs, and in other units.

And what masks choose from: thresholds that the maps have.
"""

from __future__ import annotations

import pytest

from tests.bundles.test_configs import NAMES, parsed
from tests.running import REPOSITORY

CHOSEN = {"dilate_mm": 3.0, "intensity": 1.37, "smooth_mm": 1.5, "largest": False}
REFINED = [name for name in NAMES if name != "ensemble_gradcam_brats"]  # whose second training takes the first's rule


@pytest.mark.parametrize("bundle", NAMES)
def test_the_rule_knows_organ_and_units(bundle):
    parser = parsed(bundle, "inference", "calibrate_labels")
    handler = parser.get("handlers")[0]
    assert (handler["organ"], handler["normalize"]) == ("@organ", "@normalize")


@pytest.mark.parametrize(("organ", "gate"), [("lung", 0.5), ("brain", None)])
def test_a_network_that_draws_lungs_has_the_gate_of_its_threshold(organ, gate):
    parser = parsed("insight_ct", "inference", "calibrate_labels")
    parser["natural_threshold"], parser["organ"] = 0.5, organ
    assert parser.get_parsed_content("handlers#0#natural_gate") == gate


@pytest.mark.parametrize(
    ("organ", "natural", "below"), [("lung", 0.5, True), ("lung", None, False), ("brain", 0.5, False)]
)
def test_means_over_planes_of_lungs_are_cut_below_otsu(organ, natural, below):
    parser = parsed("tonno_mosmed", "inference", "calibrate_labels")
    parser["natural_threshold"], parser["organ"] = natural, organ
    assert parser.get_parsed_content("handlers#0#below_otsu") is below


@pytest.mark.parametrize("bundle", REFINED)
@pytest.mark.parametrize(
    ("organ", "normalize", "teachers"),
    [("lung", "organ_mode", True), ("brain", "none", True), ("brain", "organ_median", False)],
)
def test_pseudo_masks_are_brighter_than_healthy_organs_where_constants_do_not_hold(bundle, organ, normalize, teachers):
    parser = parsed(bundle, "train", "train_refine")
    usual = parser.get("refine")["usual"]
    parser["organ"], parser["normalize"] = organ, normalize
    parser["teacher_chosen"] = {"refine": CHOSEN, "threshold": 0.2}
    assert parser.get_parsed_content("refine") == (CHOSEN | {"dilate_mm": 0.0} if teachers else usual)


@pytest.mark.parametrize("bundle", NAMES)
def test_the_command_line_reaches_into_the_refinement_of_pseudo_masks(bundle):
    parser = parsed(bundle, "train", "train_refine")
    parser["teacher_chosen"] = {"refine": CHOSEN}
    parser["refine#intensity"] = 1.45  # as `--refine#intensity 1.45`
    assert parser.get_parsed_content("refine")["intensity"] == 1.45


@pytest.mark.parametrize("bundle", NAMES)
def test_masks_choose_among_thresholds_around_that_of_the_shipped_maps(bundle):
    parser = parsed(bundle, "inference", "calibrate")
    parser["ckpt"] = str(REPOSITORY / "bundles" / bundle / "models" / "model.pt")
    natural = parser.get_parsed_content("threshold")
    for key in ("candidates#threshold", "raw_thresholds"):
        tried = parser.get_parsed_content(key)
        assert min(tried) < natural < max(tried)
        assert min(abs(value - natural) for value in tried) < 0.07


@pytest.mark.parametrize(("width", "thresholds", "center"), [(32, [0.0], 0.5), (32, [0.4], 0.0), (0, [0.0], 0.0)])
def test_masks_choose_around_the_margin_where_maps_were_cut_before(width, thresholds, center):
    parser = parsed("ensemble_gradcam_brats", "inference", "calibrate")
    parser["map_width"], parser["thresholds"] = width, thresholds
    assert parser.get_parsed_content("start#threshold") == center
    tried = parser.get_parsed_content("candidates#threshold")
    assert tried == pytest.approx([center + t / 10 for t in range(-4, 5)])


def test_weights_for_which_nothing_was_chosen_are_calibrated_from_the_mean_of_their_maps(tmp_path):
    parser = parsed("ensemble_gradcam_brats", "inference", "calibrate")
    parser["ckpt"] = str(tmp_path / "model.pt")
    names = ("use", "combine", "thresholds", "normalize_maps", "intensity_mask")
    assert [parser.get_parsed_content(name) for name in names] == [None, "mean", [0.0], "none", None]
    with pytest.raises(RuntimeError, match=r"chosen'\]\['gate'\]"):
        parser.get_parsed_content("gate")
