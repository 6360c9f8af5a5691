"""What a key of a config says reaches the parts that have an argument of its name, and each part its own data."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pydoc import locate
from typing import Any

import pytest

from tests.bundles.conftest import load_script
from tests.bundles.test_configs import BUNDLES, NAMES, config, parsed

# Arguments that mean something else than the key of their name, or have another key on purpose.
OWN = {
    ("CombineMapsd", "normalize"),
    ("Report", "chosen"),
    ("LabelScores", "classes"),
    ("BaselineMasksd", "thresholds"),
    ("CheckSeend", "window"),
    ("DrawnInsight", "width"),
    ("SliceMapInferer", "window"),
}


def components(item: Any) -> Iterator[dict]:
    """Every part of a config that is built from a class or function of ours."""
    if isinstance(item, dict):
        if str(item.get("_target_", "")).startswith(("common.", "scripts.")):
            yield item
        for value in item.values():
            yield from components(value)
    elif isinstance(item, list):
        for value in item:
            yield from components(value)


def target_of(bundle: str, item: dict) -> Any:
    first, _, rest = item["_target_"].partition(".")
    module, _, name = rest.rpartition(".")
    return locate(item["_target_"]) if first == "common" else getattr(load_script(bundle, module), name)


@pytest.mark.parametrize("bundle", NAMES)
def test_arguments_of_evaluation_are_the_keys_of_their_names(bundle):
    content = parsed(bundle, "inference", "evaluate").get()
    wrong = []
    for item in components(content):
        name = item["_target_"].rpartition(".")[2]
        for key in content.keys() & {*inspect.signature(target_of(bundle, item)).parameters}:
            if (name, key) not in OWN and not re.search(rf"@{key}\b", str(item.get(key))):
                wrong.append(f"{item['_target_']} has {key} = {item.get(key)!r}")
    assert wrong == []


@pytest.mark.parametrize("bundle", NAMES)
def test_masks_come_back_to_the_scan_by_nearest_voxels_and_heat_between_them(bundle):
    for item in parsed(bundle, "inference", "evaluate").get("postprocessing")["transforms"]:
        if isinstance(item, dict) and item["_target_"] == "Invertd":
            keys, nearest = item["keys"], item["nearest_interp"]
            assert nearest == [key != "heatmap" for key in keys] if "heatmap" in keys else nearest is True


@pytest.mark.parametrize("bundle", NAMES)
def test_baselines_and_thresholds_are_fitted_on_no_test_patient(bundle):
    evaluation = config(bundle, "evaluate")
    assert "section='training'" in evaluation["baseline_data"]
    assert "section=@section" in evaluation["dataset#data"]
    assert config(bundle, "inference")["section"] == "test"
    for name in ("calibrate", "calibrate_labels"):
        assert "test" not in config(bundle, name)["section"].split("+")


@pytest.mark.parametrize("bundle", NAMES)
def test_baselines_see_the_image_that_their_thresholds_were_fitted_on(bundle):
    evaluation = config(bundle, "evaluate")
    (masks,) = [i for i in evaluation["+postprocessing#transforms"] if i["_target_"] == "common.masks.BaselineMasksd"]
    for name in ("channel", "smooth_mm"):
        fitted = re.search(rf"\b{name}=(@\w+)", evaluation["baseline_thresholds"])
        assert masks.get(name) == (fitted and fitted[1])


@pytest.mark.parametrize("bundle", NAMES)
def test_each_part_of_a_training_reads_its_own_section(bundle):
    train = config(bundle, "train")
    for part, section in (("train", "training"), ("validate", "validation")):
        own = train[part].get("bags", {}).get("cases") or train[part]["dataset"]["data"]
        assert f"data.load_datalist(@datalist, '{section}', dataset_dir=@dataset_dir)" in own


@pytest.mark.parametrize("bundle", sorted({*BUNDLES} - {"insight_ct"}))
def test_weights_that_are_validated_and_kept_are_the_averaged_ones(bundle):
    train = config(bundle, "train")
    kept = [h for h in train["train"]["handlers"] if h["_target_"] == "common.checkpoint.TrainingCheckpoint"]
    assert [handler["model"] for handler in kept] == ["$@average.module"]
    assert train["validate"]["evaluator"]["network"] == "$@average.module"
    averages = [h for h in train["train"]["handlers"] if h["_target_"] == "common.training.WeightAverage"]
    assert [handler["average"] for handler in averages] == ["@average"]


@pytest.mark.parametrize("bundle", sorted({*BUNDLES} - {"insight_ct", "tonno_mosmed"}))
def test_slices_are_mirrored_from_left_to_right_and_masks_moved_by_nearest_pixels(bundle):
    """In LPS the first axis runs from side to side; nothing is seen outside the organ, wherever it was moved to."""
    train = config(bundle, "train")
    steps = train["train"]["augment"]["transforms"]
    flips = {step["spatial_axis"]: step["prob"] for step in steps if step["_target_"] == "RandFlipd"}
    assert flips[0] == 0.5
    assert flips.get(1, "@vertical_flip") == "@vertical_flip"
    assert dict(zip(train["spatial_keys"], train["spatial_modes"], strict=True)) == {
        "image": "bilinear",
        "organ": "nearest",
    }
    names = [step["_target_"] for step in steps]
    assert names.index("RandAffined") < names.index("MaskIntensityd") < names.index("ConcatItemsd")


@pytest.mark.parametrize("bundle", NAMES)
def test_thresholds_from_labels_are_the_quantile_that_the_config_names(bundle):
    handler = config(bundle, "calibrate_labels")["handlers"][0]
    assert (handler["quantile"], handler["quantiles"]) == ("@heat_quantile", "@heat_quantiles")
    assert (handler["natural"], handler["sensitivity"]) == ("@natural_threshold", "@sensitivity")


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("name", ["calibrate", "calibrate_labels"])
def test_what_a_calibration_does_not_choose_is_as_in_inference(bundle, name):
    (masks,) = [i for i in components(config(bundle, "inference")) if i["_target_"] == "common.masks.MapsToMaskd"]
    content = config(bundle, name)
    (handler,) = content["handlers"]
    chosen = {*content["start"], "gate", "threshold", "min_volume_ml"}
    assert masks.keys() - {"_target_", "keys"} == chosen | handler.get("fixed", {}).keys()
    assert all(masks[key] == value for key, value in handler.get("fixed", {}).items())


@pytest.mark.parametrize("bundle", NAMES)
def test_pseudo_masks_are_cut_at_the_threshold_that_was_chosen_for_the_teacher(bundle):
    parser = parsed(bundle, "train", "train_refine")
    parser["teacher_chosen"] = {"threshold": 0.3, "gate": 0.7, "raw_threshold": 0.9, "refine": None}
    assert parser.get_parsed_content("threshold") == 0.3
