"""Environments with some packages and no others, and what runs in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

# Runs `python -m MODULE …` or `python -c CODE …` of each line that it reads in a process that it forks, in `place`, and
# says how that ended. `output` gets what the process prints.
SERVE = """
import inspect, json, os, runpy, signal, sys, traceback
import monai.bundle
inspect.stack()  # as in `tests.forks`
for line in sys.stdin:
    arguments, place, output = json.loads(line)
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    signal.alarm(600)
    os.chdir(place)
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    flag, what, *sys.argv[1:] = arguments
    try:
        if flag == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.exit()
"""


def with_dependencies(names: Iterable[str]) -> dict[str, Distribution]:
    """Installed distributions of these names and of all that they require, without extras."""
    found: dict[str, Distribution] = {}
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name not in found:
            found[name] = distribution(name)
            requirements = [Requirement(text) for text in found[name].requires or []]
            queue += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def environment(folder: Path, packages: Iterable[str]) -> Path:
    """A virtual environment with these packages, borrowed from this one by links; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for package in with_dependencies(packages).values():
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists() and package.locate_file(top).exists():
                (site / top).symlink_to(package.locate_file(top))
    return folder / "bin" / "python"


class Interpreters:
    """The python of an environment: a new one for `call`, and one that has imported MONAI and is forked for `fork`."""

    def __init__(self, python: Path) -> None:
        self._python = str(python)
        self._options = {"text": True, "env": {k: v for k, v in os.environ.items() if k[:6] != "PYTHON"}}
        self._server: subprocess.Popen | None = None

    def call(self, place: Path, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([self._python, *arguments], cwd=place, capture_output=True, timeout=600, **self._options)

    def fork(self, place: Path, *arguments: str) -> None:
        """Fails the test if the command does, or takes ten minutes."""
        if self._server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._server = subprocess.Popen([self._python, "-c", SERVE], cwd=place, **pipes, **self._options)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        output = place / "output.txt"
        output.unlink(missing_ok=True)
        self._server.stdin.write(f"{json.dumps([arguments, str(place), str(output)])}\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "0\n", output.read_text()[-3000:]

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()


class There(NamedTuple):
    """A folder in which a python is called."""

    interpreters: Interpreters
    place: Path

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.interpreters.call(self.place, *arguments)

    def fork(self, *arguments: str) -> None:
        self.interpreters.fork(self.place, *arguments)
