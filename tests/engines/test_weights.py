from __future__ import annotations

import json

import pytest
from monai.bundle import run

from common.engines.weights import misplaced
from tests.engines.test_launch import CONFIG, STARTS, refusal, seen

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.mark.parametrize(
    ("files", "channels", "found"),
    [
        (["*/t1.nii.gz", "*/flair.nii.gz"], ["flair", "t1"], "t1 stands in the place of flair"),
        (["*/a.nii.gz", "*/c.nii", "p/b.nii.gz"], ["a", "b", "c"], "c stands in the place of b"),
        (["p/p1_T1.nii.gz"], ["FLAIR", "t1"], "t1 stands in the place of FLAIR"),
        (["p/ce-t1.nii", "p/t1.nii"], ["t1", "ce-t1"], "ce-t1 stands in the place of t1"),
        (["p/t1"], ["flair", "t1"], "t1 stands in the place of flair"),
        (["*/t1.nii.gz", "*/flair.nii.gz"], ["t1", "flair"], ""),
        (["*/t1ce.nii.gz", "*/*.nii.gz"], ["flair", "t1"], ""),
        (["*/t1.nii.gz"], ["flair"], ""),
        (["*[0-9].png"], ["image"], ""),
        ([], ["flair"], ""),
    ],
)
def test_a_file_that_is_called_as_another_channel_is_told_with_the_order_of_the_training(files, channels, found):
    assert misplaced(files, channels) == (found and f"{found}; training had the order {', '.join(channels)}")


def test_what_weights_depend_on_is_as_in_their_training_unless_the_run_says_otherwise(tmp_path):
    seen.clear()
    here = {key: CONFIG[key] for key in ("imports",)} | {
        **{"ckpt": str(tmp_path / "model.pt"), "spacing": [1.0, 1.0, 1.0], "window": [0, 255], "sides": 2},
        "run": ["$engines.check_settings()", "$here.seen.append([@spacing, @window, @sides])"],
    }
    (tmp_path / "inference.json").write_text(json.dumps(here))
    (tmp_path / "over.json").write_text(json.dumps({"spacing": [2.0, 2.0, 2.0]}))
    file = str(tmp_path / "inference.json")
    run(config_file=file)
    trained = {"spacing": [3.0, 3.0, 3.0], "window": [-1000, 400], "unknown": 1}
    (tmp_path / "model.json").write_text(json.dumps({"trained": trained}))
    run(config_file=file)
    run(config_file=file, window=[0, 1])
    run(config_file=file, window=[0, 255])  # told, and as usual
    run(config_file=[file, str(tmp_path / "over.json")])
    own = tmp_path / "bundle" / "configs" / "inference.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps(here | {"ckpt": str(tmp_path / "bundle" / "models" / "model.pt"), "sides": 3}))
    (tmp_path / "bundle" / "models").mkdir()
    (tmp_path / "bundle" / "models" / "model.json").write_text(json.dumps({"trained": trained}))
    run(config_file=str(own))  # weights of a bundle's own folder may be others than its config was made for
    (tmp_path / "slides.json").write_text(json.dumps(here | {"spacing": [4.0, 4.0, 4.0]}))
    run(config_file=str(tmp_path / "slides.json"))  # nothing lies over it
    assert seen == [
        [[1.0, 1.0, 1.0], [0, 255], 2],
        [[3.0, 3.0, 3.0], [-1000, 400], 2],
        [[3.0, 3.0, 3.0], [0, 1], 2],
        [[3.0, 3.0, 3.0], [0, 255], 2],
        [[2.0, 2.0, 2.0], [-1000, 400], 2],
        [[3.0, 3.0, 3.0], [-1000, 400], 3],
        [[3.0, 3.0, 3.0], [-1000, 400], 2],
    ]


def test_a_size_of_pixels_that_the_weights_did_not_see_is_told(tmp_path, caplog):
    here = {"imports": CONFIG["imports"], "ckpt": str(tmp_path / "model.pt"), "spacing": [1.0, 1, -1], "mpp": 1.0}
    (tmp_path / "inference.json").write_text(json.dumps(here | {"run": ["$engines.check_settings()"]}))
    (tmp_path / "model.json").write_text(json.dumps({"trained": {"spacing": [1.0, 1.0, -1.0], "mpp": 1.0}}))
    file = str(tmp_path / "inference.json")
    run(config_file=file)
    run(config_file=file, spacing=(1, 1, -1), mpp=1)
    assert "was trained with" not in caplog.text
    run(config_file=file, spacing=[3, 3, -1], mpp=2)
    for told in ("spacing [3, 3, -1]", "mpp 2"):
        assert f"{told}: {tmp_path / 'model.pt'} was trained with" in caplog.text


def test_what_was_chosen_for_weights_and_no_run_could_use_is_refused_unless_the_run_says_otherwise(tmp_path):
    chosen = {"_target_": "common.checkpoint.read_chosen", "ckpt": "@ckpt"}
    here = {**CONFIG, "ckpt": str(tmp_path / "model.pt"), "chosen": chosen, "threshold": "$float(@chosen['gate'])"}
    (tmp_path / "inference.json").write_text(json.dumps(here))
    (tmp_path / "model.json").write_text(json.dumps({"chosen": {"gate": 7, "min_volume_ml": -3}}))
    seen.clear()
    file = str(tmp_path / "inference.json")
    said = refusal(STARTS[0], file)
    assert said == (
        f"{tmp_path / 'model.json'}, chosen, gate: expected a number from 0 to 1, got 7; mend the file, or choose anew"
    )
    run(config_file=file, threshold=0.5)
    assert [given[0] for given in seen] == [0.5]


def test_patterns_that_name_the_channels_in_another_order_than_in_training_are_refused(tmp_path, caplog):
    here = {**CONFIG, "ckpt": str(tmp_path / "model.pt"), "image_pattern": "*.nii", "seen": {}, "check_range": True}
    (tmp_path / "inference.json").write_text(json.dumps(here | {"datalist": None}))
    (tmp_path / "model.json").write_text(json.dumps({"seen": {"channels": ["flair", "t1"]}}))
    seen.clear()
    file, swapped = str(tmp_path / "inference.json"), ["*/t1.nii.gz", "*/flair.nii.gz"]
    said = refusal(STARTS[0], file, image_pattern=swapped)
    assert "t1 stands in the place of flair; training had the order flair, t1; --check_range false" in said
    run(config_file=file, image_pattern=swapped[::-1])
    run(config_file=file, image_pattern=swapped, datalist="a.json")
    assert "stands" not in caplog.text
    run(config_file=file, image_pattern=swapped, check_range=False)
    assert "t1 stands in the place of flair" in caplog.text
    assert len(seen) == 3


def test_classes_in_another_order_than_in_training_are_refused(tmp_path):
    here = {**CONFIG, "ckpt": str(tmp_path / "model.pt"), "classes": ["none", "tumor"]}
    here["run"] = ["$engines.check_settings()", "$here.seen.append(@classes)"]
    (tmp_path / "inference.json").write_text(json.dumps(here))
    (tmp_path / "model.json").write_text(json.dumps({"trained": {"classes": ["none", "tumor"]}}))
    seen.clear()
    said = refusal(STARTS[0], str(tmp_path / "inference.json"), classes=["tumor", "none"])
    assert said == "--classes: tumor, none; the weights were trained with the order none, tumor"
    run(config_file=str(tmp_path / "inference.json"), classes=["none", "HGG"])
    assert seen == [["none", "HGG"]]


@pytest.mark.parametrize(
    ("training", "classes", "cls", "other"),
    [
        (False, ["none", "b", "a"], 1, True),
        (True, ["none", "b", "a"], [0, 2], True),
        (False, ["none", "b"], 1, True),
        (True, ["none", "c", "d", "e"], [0, 3], True),
        (False, ["none", "c", "d", "e"], [0, 3], False),  # what is yes or no is scored all the same
        (True, ["none", "c", "d", "e"], [0, 2], False),
        (True, ["healthy", "a", "b"], 2, False),
        (False, ["none", "b", "a"], ["a"], False),  # names say what they mean
    ],
)
def test_a_datalist_whose_labels_would_be_taken_for_other_classes_is_refused(training, classes, cls, other, tmp_path):
    listed = tmp_path / "datalist.json"
    listed.write_text(json.dumps({"classes": classes, "training": [{"case": "p", "cls": cls}]}))
    here = {**CONFIG, "classes": ["none", "a", "b"], "datalist": str(listed)} | ({"train": {}} if training else {})
    here["run"] = ["$engines.check_settings()", "$here.seen.append(@classes)"]
    (tmp_path / "inference.json").write_text(json.dumps(here))
    seen.clear()
    if not other:
        run(config_file=str(tmp_path / "inference.json"))
        assert seen == [["none", "a", "b"]]
        return
    said = refusal(STARTS[0], str(tmp_path / "inference.json"))
    assert f"its labels are of the classes {', '.join(classes)}, and the run has none, a, b" in said
    assert ("or give the run --classes" in said) == training
