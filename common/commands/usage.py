"""Help in one screen, from the source of the commands: nothing is imported for it, so it is there at once."""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

COMMANDS = Path(__file__).parent


class Argument(NamedTuple):
    """`default` is its text in Python; empty where the argument is required, or its text would not say the value.

    One that is `named` is given only by its name.
    """

    name: str
    required: bool
    named: bool
    default: str
    doc: str

    @property
    def shown(self) -> str:
        """As it is typed: `BUNDLE`, `--variants`."""
        return self.name.upper() if self.required and not self.named else f"--{self.name}"


def function_of(command: str, name: str) -> ast.FunctionDef:
    """The function of that name in a command's module."""
    tree = ast.parse((COMMANDS / f"{command}.py").read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def section(docstring: str, title: str) -> str:
    """The text below a title such as `Args` of a Google docstring, without its indentation; empty if there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", docstring + "\n", re.MULTILINE)
    return textwrap.dedent(found.group(1)).strip("\n") if found else ""


def arguments(function: ast.FunctionDef) -> Iterator[Argument]:
    """Arguments with their defaults and descriptions; `**more` is called `--KEY`."""
    docs = re.split(r"^(\w+(?:, \w+)*): ", section(ast.get_docstring(function) or "", "Args"), flags=re.MULTILINE)[1:]
    texts = {names: " ".join(text.split()) for names, text in zip(docs[::2], docs[1::2], strict=True)}
    said = {name: text for names, text in texts.items() for name in names.split(", ")}
    given = function.args
    listed = [*given.args, *given.kwonlyargs]
    first = len(given.args) - len(given.defaults)
    defaults = [*[None] * first, *given.defaults, *given.kw_defaults]
    for argument, default in zip(listed, defaults, strict=True):
        named = argument in given.kwonlyargs
        yield Argument(argument.arg, default is None, named, _shown(default), said.get(argument.arg, ""))
    if given.kwarg:
        yield Argument("KEY VALUE", False, True, "", said.get(given.kwarg.arg, ""))


def required(listed: Iterable[Argument]) -> list[str]:
    """What of the arguments must be typed, in order: `BUNDLE`, `--variants VARIANTS`."""
    needed = [argument for argument in listed if argument.required]
    return [f"{argument.shown} {argument.name.upper()}" if argument.named else argument.shown for argument in needed]


def _shown(default: ast.expr | None) -> str:
    """A default as one would type it; empty where it is none, or no literal: then the description says it."""
    try:
        value = ast.literal_eval(default) if default else None
    except ValueError:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value in ("", ()) else str(value)


def usage(command: str, name: str, *, width: int | None = None) -> str:
    """Help of a command: what it does, how it is called, its arguments with defaults, and an example.

    Args:
        command: as typed.
        name: of its function.
        width: of the lines; by default the terminal's.
    """
    width = width or min(120, shutil.get_terminal_size((100, 40)).columns)
    function = function_of(command, name)
    docstring = ast.get_docstring(function) or ""
    listed = list(arguments(function))
    lines = [
        docstring.splitlines()[0],
        "",
        " ".join(["python -m common", command, *required(listed), "[--NAME VALUE ...]"]),
    ]
    names = [argument.shown for argument in listed]
    for shown, argument in zip(names, listed, strict=True):
        default = f" (default: {argument.default})" if argument.default else ""
        margin = max(map(len, names)) + 4
        text = textwrap.wrap(argument.doc + default, width - margin, break_on_hyphens=False) or [""]
        lines += [f"  {shown:{margin - 2}}{text[0]}", *(" " * margin + line for line in text[1:])]
    if example := section(docstring, "Example"):
        lines += ["", "Example:", textwrap.indent(example.replace("`", ""), "  ")]
    return "\n".join(lines)


def overview(commands: Mapping[str, str]) -> str:
    """All commands, a line each; the mapping has the names of their functions."""
    width = max(map(len, commands)) + 2
    docstrings = {command: ast.get_docstring(function_of(command, name)) or "" for command, name in commands.items()}
    lines = [f"  {command:{width}}{docstring.splitlines()[0]}" for command, docstring in docstrings.items()]
    return "\n".join(["python -m common COMMAND [--help]", "", *lines])
