"""Command line: `python -m common COMMAND`, or `weakseg COMMAND`.

Running a bundle itself is `python -m monai.bundle run`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from .commands.usage import arguments, function_of, overview, required, usage

# Each command's function in `commands/<command>.py`, imported only when it is to run: MONAI takes seconds.
COMMANDS = {
    "demo": "demo",
    "phantom": "phantom",
    "prepare": "prepare",
    "fit": "fit",
    "folds": "folds",
    "features": "features",
    "crossvalidate": "crossvalidate",
    "ablate": "ablate",
    "benchmark_suite": "benchmark_suite",
    "report": "report",
    "describe": "describe",
    "export": "export",
    "verify": "verify",
    "format": "format_configs",
    "doctor": "doctor",
}
HELP = {"--help", "-h", "help"}


def function(command: str) -> Callable[..., None]:
    """The function of a command."""
    return getattr(import_module(f".commands.{command}", __package__), COMMANDS[command])


def main(command: list[str] | None = None) -> None:
    """Run a command, by default that of the command line."""
    words = sys.argv[1:] if command is None else command
    if not words or words[0] in HELP:
        print(overview(COMMANDS))
        return
    name, *rest = words
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise SystemExit(f"there is no command {name}; {hint}")
    if HELP & set(rest):
        print(usage(name, COMMANDS[name]))
        return
    if not rest and (needed := required(arguments(function_of(name, COMMANDS[name])))):
        raise SystemExit(f"{usage(name, COMMANDS[name])}\n\n{name} needs {', '.join(needed)}")
    if name == "doctor" and not rest:  # looks at what is installed, and imports next to nothing itself
        function(name)()
        return
    import fire

    from .commands.arguments import checked, ending_in_words
    from .files import print_any_text

    print_any_text()
    with ending_in_words():
        fire.Fire({name: checked(function(name))}, command=words, name="python -m common")


if __name__ == "__main__":
    main()
