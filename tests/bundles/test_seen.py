"""What the shipped weights say that they saw, and what they make of other images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.preprocessing.strange import compare
from tests.bundles.conftest import read_json
from tests.bundles.test_configs import config, parsed
from tests.running import REPOSITORY

BUNDLES = REPOSITORY / "bundles"
SPLITS = {
    "ensemble_gradcam_brats": "ensemble_gradcam_brats/docs/lgg_shipped.json",
    "gp_unet_brats": "gp_unet_brats/docs/lgg_shipped.json",
    "insight_ct": "insight_ct/docs/two_sources.json",
    "tonno_mosmed": "tonno_mosmed/docs/lgg_shipped.json",
}


def shipped(bundle: str) -> dict[str, Any]:
    return read_json(BUNDLES / bundle / "models" / "model.json")["seen"]


@pytest.mark.parametrize("bundle", SPLITS)
def test_shipped_weights_say_what_they_saw_of_the_documented_patients(bundle):
    seen, inference = shipped(bundle), config(bundle, "inference")
    assert seen["patients"] == min(64, len(read_json(BUNDLES / SPLITS[bundle])["training"]))  # as many as are described
    assert len(seen["channels"]) == inference["channels"]
    check = next(t for t in inference["preprocessing"]["transforms"] if t["_target_"].endswith("CheckSeend"))
    assert seen["window"] == (inference["window"] if "window" in check else None)


@pytest.mark.parametrize("offset", [0.0, 1024.0, 32768.0])
def test_shipped_weights_of_insight_refuse_hounsfield_units(offset):
    """Quantiles of a healthy lung, and what an offset (air at 0, unsigned) makes of them."""
    quantiles = np.array([-960.0, -930.0, -890.0, -850.0, -780.0, -450.0, 0.0]) + offset
    outside = float(np.interp(255.0, quantiles, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]))
    share = 1.0 if offset != 1024.0 else 1.0 - outside
    case = {"spacing": [0.7, 0.7, 1.0], "organ_ml": 3000.0, "quantiles": [quantiles.tolist()], "contrast": [None]}
    errors, _ = compare(case | {"outside": [share]}, shipped("insight_ct"), window=(0.0, 255.0))
    assert len(errors) == 1
    assert "--window" in errors[0]


def test_shipped_weights_know_flair_of_other_scanners_and_not_t1(real_data):
    parser = parsed("gp_unet_brats", "inference")
    parser["ckpt"] = str(BUNDLES / "gp_unet_brats" / "models" / "model.pt")
    preprocessing = parser.get_parsed_content("preprocessing")
    folder: Path = real_data("ms")
    for name, unlike in (("flair", False), ("t1post", True)):
        path = sorted(folder.glob(f"*/{name}.nii.gz"))[0]
        warnings = preprocessing({"case": name, "image": str(path)})["warnings"]
        assert ("contrast unlike 'flair' of the training" in warnings) == unlike


def test_shipped_weights_for_pictures_refuse_those_with_far_finer_pixels(real_data, tmp_path):
    """As the slices are published, 512 pixels wide; the weights saw 192."""
    parser = parsed("gp_unet_brats", "inference", "t1ce")
    parser["ckpt"] = str(BUNDLES / "gp_unet_brats" / "models" / "t1ce_classes.pt")
    preprocessing = parser.get_parsed_content("preprocessing")
    picture = real_data("cheng_t1ce") / "0001.png"
    assert "organ of" not in preprocessing({"case": "a", "image": str(picture)})["warnings"]
    with Image.open(picture) as opened:
        opened.resize((512, 512)).save(tmp_path / "fine.png")
    with pytest.raises(RuntimeError, match="CheckSeend") as caught:
        preprocessing({"case": "a", "image": str(tmp_path / "fine.png")})
    assert re.search(r"organ of \d+ ml, in training 2 to 24 ml: .* a wrong spacing", str(caught.value.__cause__))


@pytest.mark.parametrize("bundle", SPLITS)
def test_a_network_is_changed_by_keys_that_go_with_its_weights_and_not_replaced(bundle):
    """Else weights of such a training meet another network at inference."""
    # The last two are taken by `@map_width` and for slides: inference knows them.
    own = {"train.json", "inference.json", "train_draw.json", "wsi_inference.json"}
    others = [path for path in (BUNDLES / bundle / "configs").glob("[!.]*.json") if path.name not in own]
    assert [path.name for path in others if "network_def" in read_json(path)] == []


@pytest.mark.parametrize(
    ("bundle", "config_name", "keys"),
    [
        (
            "gp_unet_brats",
            "phantom+clinic",
            {"backbone": "gp_efficientnet", "network_options": {}, "pool": "top_fraction"},
        ),
        ("tonno_mosmed", "phantom", {"backbone": "resnet10", "width_factor": 0.25}),
    ],
)
def test_what_a_training_changes_of_its_network_is_told_beside_the_weights(bundle, config_name, keys):
    parser = parsed(bundle, "train", *config_name.split("+"))
    told = parser.get_parsed_content(place_of_told(parser))
    assert {key: told[key] for key in keys} == keys


def place_of_told(parser: Any) -> str:
    """Where a training says on what its weights depend."""
    number = next(
        k for k, handler in enumerate(parser["train"]["handlers"]) if handler["_target_"].endswith("SeenWriter")
    )
    return f"train#handlers#{number}#trained"
