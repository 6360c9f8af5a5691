from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

import common.commands.run
from common.commands.run import BUNDLES, bundle_root, config_files, for_configs, run_bundle


def test_overrides_reach_the_command_line_and_none_is_not_dropped_there(monkeypatch):
    commands = []
    monkeypatch.setattr(common.commands.run.subprocess, "run", lambda command, **_: commands.append(command))
    run_bundle("gp_unet_brats", ["train.json"], stack=None, max_epochs=2)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
    assert command[-4:] == ["--stack", "$None", "--max_epochs", "2"]


def test_a_command_that_is_told_to_end_ends_its_run(monkeypatch, tmp_path):
    run, told = tmp_path / "run", []
    # Not at once: what Python is told while it still starts a process reaches nobody who could end that.
    run.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/id\nsleep 2\nkill -TERM $PPID\nexec sleep 20\n")
    run.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(run))
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("by nobody"))
    try:
        began = time.monotonic()
        with pytest.raises(SystemExit, match=r"^143$"):
            run_bundle("gp_unet_brats", ["train.json"])
        assert time.monotonic() - began < 15
        assert not told
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "id").read_text()), 0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert told  # who waited for the signal before does so again
    finally:
        signal.signal(signal.SIGTERM, before)


def test_config_files_keep_their_order_and_a_path_stays_as_it_is(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(common.commands.run.subprocess, "run", lambda command, **_: commands.append(command))
    (tmp_path / "calibrated.json").write_text("{}")
    run_bundle("gp_unet_brats", ["inference.json", "evaluate.json", str(tmp_path / "calibrated.json")])
    configs = BUNDLES / "gp_unet_brats" / "configs"
    files = [str(configs / "inference.json"), str(configs / "evaluate.json"), str(tmp_path / "calibrated.json")]
    assert commands[0][5] == str(files)


def test_a_key_beyond_a_list_is_named_with_what_there_is(monkeypatch):
    monkeypatch.setattr(common.commands.run.subprocess, "run", None)
    keys = {"handlers#7#x": 1, "handlers#1#enabled": True, "+handlers": [], "postprocessing#transforms#-9": None}
    beyond = re.escape(
        "--handlers#7#x: handlers is a list of 2, handlers#0 to handlers#1; "
        "--postprocessing#transforms#-9: postprocessing#transforms is a list of 2, postprocessing#transforms#0 to "
    )
    with pytest.raises(ValueError, match=f"^{beyond}"):
        run_bundle("gp_unet_brats", ["inference.json"], **keys)


@pytest.mark.parametrize(
    ("bundle", "config", "error", "message"),
    [
        ("gp_unet", "train.json", ValueError, "there is no bundle gp_unet; did you mean gp_unet_brats?"),
        ("gp_unet_brats", "evalute.json", FileNotFoundError, r"configs/evalute\.json; did you mean evaluate\.json?"),
        (
            "gp_unet_brats",
            "0123456789",
            FileNotFoundError,
            r"there are calibrate\.json, calibrate_labels\.json, ",
        ),
    ],
)
def test_a_bundle_or_config_that_is_not_there_is_named_with_the_nearest(bundle, config, error, message):
    with pytest.raises(error, match=message):
        run_bundle(bundle, [config])


def test_of_settings_for_several_runs_each_gets_those_that_it_knows_and_those_that_none_knows():
    settings = {"max_epochs": 1, "treshold": 2, "gate": 0.5, "refine#intensity": 1.0, "sweep": []}
    evaluation = for_configs("gp_unet_brats", ["inference.json", "evaluate.json"], settings)
    assert evaluation.keys() == settings.keys() - {"max_epochs"}
    assert for_configs("gp_unet_brats", ["train.json"], settings).keys() == {"max_epochs", "treshold"}


def test_a_path_is_of_the_working_directory_and_a_bare_name_of_the_house(tmp_path, monkeypatch):
    for place in ("gp_unet_brats", "own/gp_unet_brats"):
        (tmp_path / place / "configs").mkdir(parents=True)
        (tmp_path / place / "configs" / "train.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert bundle_root("gp_unet_brats") == BUNDLES / "gp_unet_brats"
    assert bundle_root("./gp_unet_brats") == tmp_path / "gp_unet_brats"
    assert bundle_root("own/gp_unet_brats") == bundle_root(Path("own/gp_unet_brats")) == tmp_path / "own/gp_unet_brats"
    assert config_files("gp_unet_brats", ["train.json", "./gp_unet_brats/configs/train.json"]) == [
        BUNDLES / "gp_unet_brats" / "configs" / "train.json",
        tmp_path / "gp_unet_brats" / "configs" / "train.json",
    ]
    monkeypatch.chdir("own/gp_unet_brats")
    assert bundle_root(".") == tmp_path / "own/gp_unet_brats"
    with pytest.raises(ValueError, match=r"there is no bundle own/gp_unet_brats; did you mean gp_unet_brats\?"):
        bundle_root("own/gp_unet_brats")
