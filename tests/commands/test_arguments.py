from __future__ import annotations

import subprocess

import pytest

from common.commands.arguments import checked, ending_in_words
from common.files import read_json

SEEN: dict = {}


def command(
    name: str, *, size: int = 3, share: float | None = 0.5, both: str | tuple[str, ...] = "", **more: object
) -> None:
    SEEN.update(name=name, size=size, share=share, both=both, more=more)


def test_arguments_reach_the_command_and_words_of_json_are_values():
    checked(command)("a", share="null", both=("b", "c"), other="null")
    assert SEEN == {"name": "a", "size": 3, "share": None, "both": ("b", "c"), "more": {"other": "null"}}
    checked(command)("a", share=1)
    assert SEEN["share"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 2024}, "^--name: expected a text, got a whole number: 2024; write \"'2024'\"$"),
        ({"size": "many"}, "^--size: expected a whole number, got a text: 'many'$"),
        ({"share": True}, "^--share: expected a number or null, got true or false: True$"),
        ({"both": {}}, "^--both: expected a list or a text, got a dict"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        checked(command)(**{"name": "a"} | arguments)


def test_the_exit_status_is_that_of_the_run():
    with pytest.raises(SystemExit) as stopped, ending_in_words():
        raise subprocess.CalledProcessError(3, "run")
    assert stopped.value.code == 3


def test_what_this_project_or_the_system_refuses_is_said_in_a_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for path, said in (
        (tmp_path / "a.json", "ValueError: .*a.json is not a JSON file"),
        (tmp_path, "IsADirectoryError"),
    ):
        with pytest.raises(SystemExit, match=said), ending_in_words():
            read_json(path)


def test_an_error_from_elsewhere_keeps_its_traceback():
    with pytest.raises(ValueError, match="invalid literal"), ending_in_words():
        int("many")


def test_an_interrupted_command_ends_in_words():
    with pytest.raises(SystemExit, match="interrupted; what trains or scores goes on"), ending_in_words():
        raise KeyboardInterrupt
