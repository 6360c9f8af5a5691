"""A server builds transforms from `inference.json` alone, and runs none of the steps that a command begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from common.checkpoint import read_beside
from common.files import read_json
from tests.running import REPOSITORY

BUNDLES = sorted((REPOSITORY / "bundles").glob("*/configs/inference.json"))


def seen_by_server(path: Path, **changes: Any) -> dict:
    """What a server gives to `CheckSeend`, of a config that somebody has changed."""
    parser = ConfigParser(read_json(path) | {"ckpt": str(path.parents[1] / "models" / "model.pt")} | changes)
    return parser.get_parsed_content("seen")


@pytest.fixture(params=BUNDLES, ids=lambda path: path.parts[-3])
def path(request) -> Path:
    return request.param


def test_settings_that_the_weights_were_trained_with_are_served(path):
    assert seen_by_server(path)["names"] == []


def test_each_key_that_the_weights_depend_on_is_held_against_their_training(path):
    trained = read_beside(path.parents[1] / "models" / "model.pt")["trained"]
    for key, value in trained.items():
        with pytest.raises(RuntimeError) as error:
            seen_by_server(path, **{key: "another"})
        said = str(error.value.__cause__)
        assert f"model.pt: {key} is 'another', but model.pt was trained with {value!r}; write that into inf" in said


def test_all_that_a_training_says_its_weights_depend_on_is_held_against_it(path):
    told = [
        re.findall(r"(?:^|[(, ])(\w+)=", text)
        for text in (
            re.search(r'"trained": "\$dict(\(.*\))"', path.with_name("train.json").read_text())[1],  # type: ignore[index]
            read_json(path)["seen"]["settings"],
        )
    ]
    assert told[0] == told[1]


def test_on_request_it_is_a_warning_of_each_case(path, caplog):
    names = seen_by_server(path, channels=7, check_range=False)["names"]
    assert names == ["channels is 7, but model.pt was trained with 1"]
    assert names[0] in caplog.text


def test_a_run_has_taken_what_its_weights_were_trained_with_and_its_command_may_say_otherwise(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"trained": {"size": 96}, "seen": {"channels": ["flair"]}}))
    seen = {"_target_": "common.preprocessing.read_seen", "ckpt": "@ckpt", "settings": "$dict(size=@size)"}
    config = {"ckpt": str(tmp_path / "model.pt"), "size": 64, "seen": seen, "run": ["$@seen"]}
    (tmp_path / "inference.json").write_text(json.dumps(config))
    workflow = ConfigWorkflow(str(tmp_path / "inference.json"), workflow_type="inference")
    assert workflow.run()[0]["names"] == []
    with pytest.raises(RuntimeError):
        ConfigParser(config).get_parsed_content("seen")
