from __future__ import annotations

import common.commands.run
from common.commands.run import run_bundle


def test_overrides_reach_the_command_line_and_none_is_not_dropped_there(monkeypatch):
    commands = []
    monkeypatch.setattr(common.commands.run.subprocess, "run", lambda command, **_: commands.append(command))
    run_bundle("gp_unet_brats", ["train.json"], stack=None, max_epochs=2)
    (command,) = commands
    assert command[-4:] == ["--stack", "$None", "--max_epochs", "2"]
