from __future__ import annotations

import subprocess
import sys

import pytest

from common.__main__ import COMMANDS, main
from common.commands.usage import arguments, function_of, overview, usage

SCREEN = 40  # lines


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_screen_with_every_argument_its_default_and_an_example(command, capsys):
    main([command, "--help"])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 120
    for argument in arguments(function_of(command, COMMANDS[command])):
        assert argument.doc, f"{command} does not describe {argument.name}"
        assert argument.shown in shown
        assert not argument.default or f"(default: {argument.default})" in " ".join(shown.split())
    assert f"Example:\n  python -m common {command}" in shown


def test_defaults_are_shown_as_they_would_be_typed():
    shown = usage("phantom", "phantom", width=80)
    assert "--cases             number of volumes. (default: 24)" in shown
    assert "OUTPUT_DIR [--NAME VALUE ...]" in shown.splitlines()[2]
    assert "(default: false)" in usage("export", "export")


def test_what_is_needed_by_name_is_shown_so():
    assert usage("ablate", "ablate").splitlines()[2] == (
        "python -m common ablate BUNDLE DATASET_DIR OUTPUT_DIR --variants VARIANTS [--NAME VALUE ...]"
    )
    assert "\n  --variants " in usage("ablate", "ablate")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_all_are_listed(words, capsys):
    main(words)
    assert capsys.readouterr().out == overview(COMMANDS) + "\n"
    assert all(f"\n  {command} " in overview(COMMANDS) for command in COMMANDS)


def test_help_and_doctor_import_neither_monai_nor_the_commands():
    code = "import sys; from common.__main__ import main; main(['fit', '--help']); main([])\n"
    code += "import common.commands.doctor; sys.exit('monai' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
