from __future__ import annotations

import sys

import common.commands.run
from common.commands.run import BUNDLES, run_bundle


def test_overrides_reach_the_command_line_and_none_is_not_dropped_there(monkeypatch):
    commands = []
    monkeypatch.setattr(common.commands.run.subprocess, "run", lambda command, **_: commands.append(command))
    run_bundle("gp_unet_brats", ["train.json"], stack=None, max_epochs=2)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
    assert command[-4:] == ["--stack", "$None", "--max_epochs", "2"]


def test_config_files_keep_their_order_and_a_path_stays_as_it_is(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(common.commands.run.subprocess, "run", lambda command, **_: commands.append(command))
    run_bundle("gp_unet_brats", ["inference.json", "evaluate.json", str(tmp_path / "calibrated.json")])
    configs = BUNDLES / "gp_unet_brats" / "configs"
    files = [str(configs / "inference.json"), str(configs / "evaluate.json"), str(tmp_path / "calibrated.json")]
    assert commands[0][5] == str(files)
