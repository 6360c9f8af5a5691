from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.commands.fit_patterns import pattern_of
from common.commands.own_bundle import make_bundle, settings_of, with_settings
from common.commands.run import BUNDLES
from common.commands.verify import QUICK, problems
from common.commands.verify import seen as says_what_it_saw
from common.commands.verify import weights as are_plain
from common.data import find_cases
from tests.data.test_find_dicom import series

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
        assert '--image_pattern "*.png"' in readme

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


def test_of_files_and_series_the_pattern_is_of_the_more():
    def of(*images: str) -> str | list[str]:
        return pattern_of({"training": [{"image": image} for image in images]})

    assert of("p1/flair", "p2/flair", "p3/flair.nii.gz") == "*/flair/"
    assert of("p1/flair", "p2/flair.nii.gz", "p3/flair.nii.gz") == "*/flair.nii.gz"


@pytest.mark.parametrize(
    ("images", "pattern"),
    [
        (["a/flair.nii.gz", "b/flair.nii.gz"], "*/flair.nii.gz"),
        (["a/slice.png", "b/slice.png"], "*/slice.png"),  # and not */mask.png beside them
        (["1.png", "2.jpg"], "*.*g"),
        (["1.nii", "2.nii.gz"], "*.nii*"),
        (["a/slice.tif", "b/slice.tif"], "*/slice.tif"),
        (["x/1.mha", "x/2.mha", "x/12.mha"], "x/*.mha"),
        (["a/1.svs"], "**/*.svs"),
        (["1.nii.gz", "2.nii.gz"], "*.nii.gz"),
        (["images/p1.nii.gz", "images/p2.nii.gz"], "images/*.nii.gz"),
        (["a/p1/ct.nii.gz", "p2/ct.nii.gz"], "**/ct.nii.gz"),
        (["p01/p01_1.nii.gz", "p11/p11_1.nii.gz"], "*/*_1.nii.gz"),
        ([["a/t1.nii.gz", "a/t2.nii.gz"]], ["*/t1.nii.gz", "*/t2.nii.gz"]),
        ([["1_t1.nii", "1_t2.nii"], ["2_t1.nii", "2_t2.nii"]], ["*_t1.nii", "*_t2.nii"]),
        ([["t1/1.mha", "t2/1.mha"], ["t1/2.mha", "t2/2.mha"]], ["t1/*.mha", "t2/*.mha"]),
        (["p1/t[1].nii.gz", "p2/t[1].nii.gz"], "*/t[[]1].nii.gz"),
        (["$run/1.nii.gz", "$run/2.nii.gz"], "./$run/*.nii.gz"),  # a config evaluates what begins with these
        ([["@t1/1.mha", "%t2/1.mha"], ["@t1/2.mha", "%t2/2.mha"]], ["./@t1/*.mha", "./%t2/*.mha"]),
        (["../else/p1/ct.nii.gz", "../else/p2/ct.nii.gz"], "*/ct.nii.gz"),
        (["/data/p1/ct.nii.gz", "/data/p2/ct.nii.gz"], "*/ct.nii.gz"),
    ],
)
def test_a_pattern_of_the_images_finds_just_these(images, pattern, tmp_path):
    cases = [{"image": image} for image in images]
    assert pattern_of({"training": cases}) == pattern
    root = tmp_path / "data"
    for path in (path for image in images for path in ([image] if isinstance(image, str) else image)):
        place = root / re.sub(r"^(\.\./else|/data)/", "", path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        (place.parent / "mask.txt").touch()
    found = [case["image"] for case in find_cases(root, pattern)]
    bare = re.sub(r"(\.\./else|/data)/", "", json.dumps(images))
    told = [[str(root / p) for p in i] if isinstance(i, list) else str(root / i) for i in json.loads(bare)]
    assert sorted(found) == sorted(told)


def test_masks_and_other_modalities_are_not_found_for_images():
    flat = [{"image": f"flair_{n}.nii.gz", "label": f"mask_{n}.nii.gz"} for n in (1, 2)]
    assert pattern_of({"training": flat[:1], "test": flat[1:]}) == "flair_*.nii.gz"
    nested = [{"image": f"s/flair_{n}.mha", "organ": f"s/brain_{n}.mha"} for n in (1, 2)]
    assert pattern_of({"training": nested}) == "s/flair_*.mha"


def test_paths_in_the_folder_of_the_data_and_whole_ones_give_one_pattern(tmp_path):
    cases = [{"image": "p1/ct.nii.gz", "label": "p1/mask.nii.gz"}, {"image": str(tmp_path / "s" / "p2" / "ct.nii.gz")}]
    assert pattern_of({"training": cases[:1], "test": cases[1:]}, tmp_path) == "**/ct.nii.gz"
    beside = [{"image": "p1/ct.nii.gz"}, {"image": str(tmp_path / "p2" / "ct.nii.gz")}]
    assert pattern_of({"training": beside}, tmp_path) == "*/ct.nii.gz"
    above = [{"image": "p1/ct.nii.gz"}, {"image": "../p2/ct.nii.gz"}]
    assert pattern_of({"training": above}, tmp_path / "data") == "**/ct.nii.gz"


class TestPatternsOfDicom:
    def test_folders_of_series_are_found_and_no_other(self, tmp_path):
        for name in ("p1", "p2"):
            series(tmp_path / name / "flair", f"1.2.826.{name[1]}")
            series(tmp_path / name / "t1", f"1.2.827.{name[1]}")
        cases = [{"image": f"{name}/flair"} for name in ("p1", "p2")]
        pattern = pattern_of({"training": cases}, tmp_path)
        assert pattern == "*/flair/"
        found = [Path(case["image"]).relative_to(tmp_path).as_posix() for case in find_cases(tmp_path, pattern)]
        assert found == ["p1/flair", "p2/flair"]

    def test_folders_alone_series_by_their_uid_and_folders_that_are_called_so(self, tmp_path):
        assert pattern_of({"training": [{"image": "p1"}, {"image": "p2"}]}) == "*/"
        cases = [{"image": "p1/1.2.840.7"}, {"image": "p2/1.2.840.8"}]
        assert pattern_of({"training": cases}, tmp_path) == "dicom"
        for case in cases:
            (tmp_path / case["image"]).mkdir(parents=True)
        assert pattern_of({"training": cases}, tmp_path) == "*/*/"


def test_the_made_bundle_finds_such_images_by_itself_and_its_readme_says_how(tmp_path):
    cases = [{"case": n, "patient": n, "image": [f"{n}/t1.nii.gz", f"{n}/flair.nii.gz"], "cls": 1} for n in "ab"]
    (tmp_path / "datalist.json").write_text(json.dumps({**CONTENT, "training": cases}))
    for settings, pattern in (({}, ["*/t1.nii.gz", "*/flair.nii.gz"]), ({"image_pattern": "*/both.nii"}, "*/both.nii")):
        options = {"over": [], "settings": settings, "datalist": tmp_path / "datalist.json", "counts": "no case"}
        own = make_bundle("gp_unet_brats", tmp_path / "own", **options)
        assert json.loads((own / "configs" / "inference.json").read_text())["image_pattern"] == pattern
        told = pattern if isinstance(pattern, str) else "['*/t1.nii.gz','*/flair.nii.gz']"
        assert f'--image_pattern "{told}"' in (own / "docs" / "README.md").read_text()
