from __future__ import annotations

from pathlib import Path

import pytest

from common.engines.settings import kind, plain, problems

CONFIG = {
    "dataset_dir": "$os.path.join(@bundle_root, 'data')",
    "datalist": None,
    "image_pattern": "*/flair.nii.gz",
    "device": "$torch.device('cpu')",
    "section": "test",
    "spacing": [1.5, 1.5, -1.0],
    "threshold": 0.5,
    "batch_size": 16,
    "flip": False,
    "clean": {},
    "more": {},
    "refine": {"dilate_mm": 3.0, "largest": True},
    "start": {"gate": 0.5},
    "inferer": {"_target_": "common.engines.SliceMapInferer", "batch_size": "@batch_size"},
    "transforms": [{"_target_": "Lambdad", "keys": "image"}],
}
OTHERS = {
    "covid.json": {"refine": {"smooth_mm": 1.0}, "batch_size": "all", "max_epochs": 3},
    "train.json": {"run": [], "max_epochs": 30, "train#dataset": {}},
}


def wrong(**given: object) -> list[str]:
    return problems(given, CONFIG, OTHERS)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("treshold", "did you mean threshold?"),
        ("largest", "did you mean refine#largest?"),
        ("max_epochs", "it is one of train.json, covid.json"),
        ("train", "it is one of train.json"),
        ("xyz", "they have batch_size, clean, "),
        ("refine#dilate", "refine has no 'dilate'; did you mean dilate_mm?"),
        ("refine::xyz", "refine has no 'xyz'; it has dilate_mm, largest, smooth_mm"),
        ("inferer#batchsize", "inferer has no 'batchsize'; did you mean batch_size?"),
        ("transforms#1#keys", "transforms is a list of 1, transforms#0 to transforms#0"),
        ("transforms#first", "transforms is a list of 1"),
        ("refin#largest", "did you mean refine#largest?"),
    ],
)
def test_a_key_that_the_configs_lack_is_named_with_the_nearest_one(key, said):
    (line,) = wrong(**{key: 7})
    assert line.startswith(f"--{key}: ")
    assert said in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("+transforms", []),  # merged by MONAI
        ("_meta_#version", "0.2"),
        ("refine#smooth_mm", 2),  # as in another config
        ("clean#min_size", 64),  # where nothing is said yet, anything may be
        ("inferer#flip", True),  # an argument of the target
        ("inferer#_disabled_", True),
        ("transforms#-1#func", "$len"),
        ("device#index", 0),
    ],
)
def test_what_may_stand_beside_the_keys_of_the_configs_is_known(key, value):
    assert wrong(**{key: value}) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dataset_dir", 2024, "expected a path, got a whole number: 2024; write ./2024"),
        ("section", 1.5, "expected a text, got a number: 1.5; write \"'1.5'\""),
        ("section", [1], "expected a text, got a list: [1]"),
        ("spacing", 1.5, "expected a list, got a number: 1.5"),
        ("spacing#0", "thin", "expected a number, got a text: 'thin'"),
        ("threshold", True, "expected a number, got true or false: True"),
        ("flip", 1, "expected true or false, got a whole number: 1"),
        ("refine", "none", "expected a dict, got a text: 'none'"),
        ("refine::largest", "yes", "expected true or false, got a text: 'yes'"),
        ("batch_size", 2.5, "expected a text or a whole number, got a number: 2.5; write \"'2.5'\""),
        ("inferer#batch_size", [2], "expected a whole number, got a list: [2]"),
        ("batch_size", None, "expected a text or a whole number, got null"),
        ("spacing", None, "expected a list, got null"),
        *((key, None, "expected a dict, got null") for key in ("inferer", "start")),
        ("dataset_dir", None, "expected a path, got null"),
        ("inferer#batch_size", 0, "expected 1 or more, got 0"),
        ("refine", {"dilate": 3}, "it has no 'dilate'; did you mean dilate_mm?"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_expected(key, value, said):
    assert wrong(**{key: value}) == [f"--{key}: {said}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threshold", 1),
        ("spacing", (1, 1, 2)),
        ("dataset_dir", Path("data")),
        ("datalist", {"test": []}),  # null in the configs: nothing is known
        ("device", 0),  # known only when it is evaluated
        ("image_pattern", ["t1.nii", "t2.nii"]),  # one, or several
        ("batch_size", "all"),  # a text in another config
        *((key, value) for key in ("refine", "spacing", "flip") for value in ("$f()", "@clean", "%a.json#b")),
        *((key, None) for key in ("refine", "flip", "datalist", "device", "refine#dilate_mm")),
    ],
)
def test_a_value_that_can_be_meant_is_none_of_the_problems(key, value):
    assert wrong(**{key: value}) == []


def test_every_wrong_setting_has_its_line_and_the_config_stays_as_it_is():
    before = repr(CONFIG)
    assert len(wrong(treshold=1, flip=1, threshold=0.1)) == 2
    assert repr(CONFIG) == before


def test_a_setting_may_lie_inside_another_one():
    assert wrong(**{"more": {"steps": [1, 2]}, "more#steps#1": 3}) == []
    assert len(wrong(**{"more": {"steps": [1, 2]}, "more#steps#2": 3})) == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("$os.path.join(@a#b, 'x')", "a path"),
        ("$[t / 2 for t in range(@n)]", "a list"),
        ("$'word'", "a text"),
        ("$None", "null"),
        ("$f(", "anything"),
        ("$open('never evaluated')", "anything"),
        ("@refine::largest", "true or false"),
        ("@nothing", "anything"),
        ("%head", "anything"),
    ],
)
def test_the_type_of_an_expression_is_read_off_its_text(text, name):
    assert kind(text, CONFIG) == name


def test_words_of_json_are_values_wherever_they_stand():
    given = ["null", ("true", "None"), {"largest": "false", "name": "nullable"}, 3]
    assert plain(given) == [None, (True, "None"), {"largest": False, "name": "nullable"}, 3]


def test_a_path_below_the_users_folder_is_one_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    assert plain(["~/out", {"ckpt": "~/model.pt"}, "~", "out/~/x"]) == [
        "/home/reader/out",
        {"ckpt": "/home/reader/model.pt"},
        "~",
        "out/~/x",
    ]
