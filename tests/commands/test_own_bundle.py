from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.commands.own_bundle import make_bundle, pattern_of, settings_of, with_settings
from common.commands.run import BUNDLES
from common.commands.verify import QUICK, problems
from common.commands.verify import seen as says_what_it_saw
from common.commands.verify import weights as are_plain

CONTENT = {"name": "site", "classes": ["none", "bleed"], "modalities": ["t1", "flair"], "training": []}


@pytest.fixture
def datalist(tmp_path) -> Path:
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(CONTENT))
    return path


def test_settings_reach_what_has_them_and_what_is_chosen_stays_with_the_weights():
    config = {"spacing": [1, 1, 1], "gate": "$float(@chosen['gate'])", "threshold": "$float(@teacher_chosen['x'])"}
    config |= {"refine": {"_target_": "refine_options", "chosen": "$@chosen['refine']"}}
    settings = {"spacing": [2, 2, 2], "gate": 0.3, "threshold": 1, "other": 4, "refine": {"dilate_mm": 3.0}}
    assert with_settings(config, settings) == {
        **config,
        "spacing": [2, 2, 2],
    }
    assert with_settings(
        {"refine": {"dilate_mm": 3.0, "largest": True}}, {"refine#dilate_mm": 6.0, "refined#a": 1}
    ) == {"refine": {"dilate_mm": 6.0, "largest": True}}


def test_a_datalist_says_classes_and_channels(datalist):
    config = {"classes": ["none", "tumor"], "channels": 1}
    assert settings_of(datalist, config) == {"classes": ["none", "bleed"], "channels": 2}
    assert settings_of(datalist, {"classes": ["none", "bleed"]}) == {"classes": ["none", "bleed"]}
    assert settings_of(datalist, {}) == {}


class TestClassesWithoutNegatives:
    CASES = [{"case": f"c{i}", "patient": f"p{i}", "image": f"{i}.png", "cls": 1 + i % 2} for i in range(4)]  # noqa: RUF012

    def made(self, tmp_path: Path, *over: str) -> tuple[Path, dict, dict]:
        """The bundle, and its configs of training and inference."""
        content = {**CONTENT, "classes": ["none", "low", "high"], "training": self.CASES, "validation": self.CASES}
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        options = {"settings": {}, "datalist": tmp_path / "datalist.json", "counts": "no case"}
        own = make_bundle("gp_unet_brats", tmp_path / "own", over=over, **options)
        return own, *(json.loads((own / "configs" / f"{name}.json").read_text()) for name in ("train", "inference"))

    def test_each_class_is_drawn_as_often_and_an_epoch_is_judged_without_negatives(self, tmp_path):
        own, train, _ = self.made(tmp_path)
        assert train["imbalance"] == "balanced"
        assert train["key_metric"].keys() == {"median_loss"}
        assert (own / "configs" / "paper_scores.json").is_file()
        readme = (own / "docs" / "README.md").read_text()
        assert "learned from labels of the class of slices" in readme
        assert '--image_pattern "**/*.png"' in readme

    def test_what_a_config_of_a_data_set_says_counts_but_not_its_weights(self, tmp_path):
        _, train, inference = self.made(tmp_path, "t1ce.json")
        assert (train["imbalance"], train["batch_size"], inference["flip"]) == ("balanced", 32, True)
        assert inference["ckpt"].endswith("'model.pt')")
        assert "@chosen" in inference["binarize"]

    def test_another_way_to_draw_them_can_be_asked_for(self, tmp_path):
        assert self.made(tmp_path, "paper.json")[1]["imbalance"] == "weighted"


@pytest.mark.parametrize("bundle", ["gp_unet_brats", "ensemble_gradcam_brats", "tonno_mosmed", "insight_ct"])
def test_a_bundle_of_ones_own_keeps_every_rule_but_those_of_weights_to_come(bundle, datalist, tmp_path):
    settings = settings_of(datalist, {"classes": [], "channels": 1}) | {"max_epochs": 3}
    options = {"over": ["phantom.json"], "settings": settings, "datalist": datalist, "counts": "no case"}
    own = make_bundle(bundle, tmp_path / bundle, **options)
    (own / "models" / "model.pt").write_bytes(b"")
    rules = [rule for rule in QUICK if rule not in (says_what_it_saw, are_plain)]
    assert problems(own, rules, slow=()) == []
    configs = {path.stem: json.loads(path.read_text()) for path in (own / "configs").glob("*.json")}
    phantom, base = (
        json.loads((BUNDLES / bundle / "configs" / f"{name}.json").read_text())
        for name in ("phantom", "calibrate_labels")
    )
    assert configs["train"]["max_epochs"] == 3
    assert configs["inference"]["spacing"] == configs["train"]["spacing"] == phantom.get("spacing", [-1.0, -1.0, -1.0])
    assert "@chosen" in configs["inference"]["gate"]
    assert "@chosen" in configs["inference"]["refine"]["chosen"]  # and not the phantom's
    assert configs["calibrate_labels"] == base  # how thresholds are chosen is no matter of the phantom
    assert configs["metadata"]["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "bleed"
    inputs = configs["metadata"]["network_data_format"]["inputs"]["image"]["channel_def"]
    assert list(inputs.values())[:2] == ["t1", "flair"]
    said = {key: configs["metadata"][key] for key in ("name", "task", "description")}
    assert said["task"].startswith("Segmentation of bleed in t1, flair from yes/no labels of ")
    assert said["name"].startswith("Weakly supervised segmentation of bleed (")
    assert not any(word in text for text in said.values() for word in ("FLAIR", "tumor", "CT", "infection"))
    shipped = json.loads((BUNDLES / bundle / "configs" / "metadata.json").read_text())
    beside = shipped["network_data_format"]["inputs"]["image"]["channel_def"]
    assert list(inputs.values())[2:] == list(beside.values())[1:]  # the organ mask, where it is a channel


@pytest.mark.parametrize(
    ("images", "pattern"),
    [
        (["a/flair.nii.gz", "b/flair.nii.gz"], "*/flair.nii.gz"),
        (["a/slice.png", "b/slice.png"], "*/slice.png"),  # and not */mask.png beside them
        (["1.png", "2.jpg"], "**/*.jpg"),
        (["a/slice.tif", "b/slice.tif"], "*/slice.tif"),
        (["1.tif", "2.tif"], "**/*.tif"),
        (["a/1.svs"], "**/*.svs"),
        (["1.nii.gz", "2.nii.gz"], "*.nii.gz"),
        ([["a/t1.nii.gz", "a/t2.nii.gz"]], "*/t1.nii.gz"),
    ],
)
def test_the_readme_says_how_images_like_those_of_the_training_are_found(images, pattern):
    assert pattern_of({"training": [{"image": image} for image in images]}) == pattern
