from __future__ import annotations

import pytest

from common.engines.ranges import RANGES, out_of_range, unsuitable, wrong_choices


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch_size", 0, "expected 1 or more, got 0"),
        ("num_workers", -1, "expected 0 or more, got -1"),
        ("learning_rate", 0.0, "expected more than 0, got 0.0"),
        ("gate", 2, "expected a number from 0 to 1, got 2"),
        ("gate", [0.2, 1.5], "expected a number from 0 to 1, got [0.2, 1.5]"),
        ("learning_rate", float("nan"), "expected more than 0, got nan"),
        ("spacing", [], "expected three numbers, got []"),
        ("spacing", [1.0, 0.0, 1.0], "expected more than 0, or -1 for the scan's own, got [1.0, 0.0, 1.0]"),
        ("slice_size", [0, 64], "expected 1 or more, got [0, 64]"),
        ("classes", ["none"], "expected two or more, all different, the first of which is healthy, got ['none']"),
        ("classes", ["a", "a"], "expected two or more, all different, the first of which is healthy, got ['a', 'a']"),
        ("threshold", float("inf"), "expected a finite number, got inf"),
        ("refine", {"intensity": "high"}, "its intensity is 'high'; expected a number, such as 1.25"),
        ("refine#intensty", 1.2, "it has no 'intensty'; did you mean intensity?"),
        ("refine#intensity", "high", "its intensity is 'high'; expected a number, such as 1.25"),
        ("members", [], "expected at least one, got []"),
        ("backend", "cucim", "expected one of openslide, tifffile; got 'cucim'"),
        ("dicom_geometry", "axial", "expected one of assume_axial, null; got 'axial'"),
        ("clean", {"min_sise": 1}, "it has no 'min_sise'; did you mean min_size?"),
    ],
)
def test_what_no_run_could_use_is_told_with_what_may_be(key, value, said):
    assert unsuitable(key, value) == said


def test_an_option_that_is_near_to_none_is_told_with_all_that_there_are():
    assert unsuitable("refine", {"q": 1}).startswith("it has no 'q'; it has dilate_mm, intensity, ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("gate", value) for value in (None, 0, 1.0, [0.5], "$float(@chosen['gate'])")),
        *(("batch_size", value) for value in (1, "all", "@other", True)),
        ("spacing", (1.5, 1.5, -1.0)),
        ("dicom_geometry", None),
        ("backend", "$'openslide'"),
        *(("refine", value) for value in (None, {"intensity": "$1.5"}, {"_target_": "a.b", "chosen": None})),
        *((f"refine#{name}", 1.2) for name in ("intensity", "_requires_", "chosen")),
        ("no_such_key", -1),
    ],
)
def test_what_may_be_meant_is_let_through(key, value):
    assert unsuitable(key, value) == ""


def test_options_inside_a_dict_have_ranges_of_their_own_and_components_none():
    config = {"refine": {"dilate_mm": -1.0, "intensity": 1.25}, "intensity": 1.25, "a": {"_target_": "b", "gate": 9}}
    assert [line.split(":")[0] for line in out_of_range(config)] == ["--refine#dilate_mm", "--intensity"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gate", 7, "gate: expected a number from 0 to 1, got 7"),
        ("gate", float("nan"), "gate: expected a number from 0 to 1, got nan"),
        ("gate", "0,5", "gate: expected a number from 0 to 1, got '0,5'"),
        ("gate", None, "gate: expected a number from 0 to 1, got None"),
        ("threshold", float("nan"), "threshold: expected a finite number, got nan"),
        ("min_volume_ml", -3, "min_volume_ml: expected 0 or more, got -3"),
        ("min_volume_ml", [0.0], "min_volume_ml: expected 0 or more, got [0.0]"),
        ("refine", [1], "refine: expected a dict or null, got [1]"),
        ("refine", {"dilate_mm": -3}, "refine#dilate_mm: expected 0 or more, got -3"),
        ("refine", {"dilate_mm": None}, "refine#dilate_mm: expected 0 or more, got None"),
        ("refine", {"Dilate": 3}, "refine#Dilate: it has no 'Dilate'; did you mean dilate_mm?"),
        ("refine", {"largest": "false"}, "refine#largest: expected true or false, got 'false'"),
    ],
)
def test_what_was_chosen_for_weights_and_no_run_could_use_is_told(key, value, said):
    assert [*wrong_choices({key: value})] == [said]


def test_what_runs_choose_for_weights_is_let_through():
    volumes = {"gate": 0.4, "threshold": 1e9, "refine": None, "use": None, "intensity_mask": None, "thresholds": [0.0]}
    slides = {"gate": [0.3, 0.2], "threshold": [0.1, 0.2], "binarize": "fixed", "smooth_um": 48.0}
    found = [*wrong_choices(volumes), *wrong_choices(slides), *wrong_choices({"refine": {"largest": True}})]
    assert found == []


def test_no_key_has_two_rules_of_one_kind():
    for whole in (True, False):
        keys = [key for rule, text in RANGES.items() if rule.whole == whole for key in text.split()]
        assert len(keys) == len(set(keys))
