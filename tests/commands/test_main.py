"""What `python -m common` lists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import fire
import pytest

import common.commands
from common.__main__ import COMMANDS

# Modules of `common.commands` that serve the others.
HELPERS = {"run", "verify_build"}


def test_every_command_has_its_file_and_every_file_its_command():
    files = {path.stem for path in Path(common.commands.__path__[0]).glob("[!_]*.py")}
    assert {command.__module__.rpartition(".")[2] for command in COMMANDS.values()} == files - HELPERS
    assert set(COMMANDS) == files - HELPERS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_argument_of_a_command(name, capsys):
    with pytest.raises(SystemExit):
        fire.Fire(COMMANDS, command=[name, "--help"], name="python -m common")
    shown = capsys.readouterr().err
    documented = COMMANDS[name].__doc__ or ""
    assert f"'python -m common' {name} - {documented.splitlines()[0]}" in shown
    arguments = documented.partition("Args:\n")[2].partition("\n\n")[0]
    described = set(re.findall(r"^ {8}(\w+): ", arguments, re.MULTILINE))
    assert described == set(inspect.signature(COMMANDS[name]).parameters)
