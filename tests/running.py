"""`python -m MODULE`, or `-c CODE`, in processes that are forked from one which has the imports behind it.

Each run is a process of its own, as a command in a shell is: the `scripts` of two bundles never meet. `tests.forks`
has the other end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.forks import REPOSITORY, Forked


class Running:
    """`python -m MODULE ARGUMENTS` that has been started; `wait` gives what `subprocess.run` would.

    Args:
        module: its name; `-c`: the first argument is code to run, as of `python -c`.
        *arguments: of the command line.
        cwd: working directory, which is first on the path of modules, too.
        environment: variables that are added to this process's, or replace its own.
    """

    def __init__(
        self, module: str, *arguments: str, cwd: Path = REPOSITORY, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = [sys.executable, *(("-m", module) if module != "-c" else ("-c",)), *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        with open(os.devnull, "rb") as none, self._outputs[0].open("wb") as out, self._outputs[1].open("wb") as err:
            files = [file.fileno() for file in (none, out, err)]
            self._process = Forked(module, arguments, files, cwd=cwd, variables=os.environ | (environment or {}))

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was ended.
        """
        code = self._process.wait(timeout)
        if code is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        stdout, stderr = (path.read_text(errors="replace") for path in self._outputs)
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self.command, timeout, stdout, stderr)
        return subprocess.CompletedProcess(self.command, code, stdout, stderr)


def run_module(module: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` from start to end; options are those of `Running`."""
    return Running(module, *arguments, **options).wait()


def run_code(code: str, *arguments: str, **options) -> str:
    """What `python -c CODE ARGUMENTS` prints, in the repository; options are those of `Running`.

    Raises:
        RuntimeError: it ended with an error.
    """
    done = run_module("-c", code, *arguments, **options)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


def run_ranks(module: str, *arguments: str, count: int = 2, **options) -> list[subprocess.CompletedProcess[str]]:
    """What `torchrun --nproc_per_node=COUNT -m MODULE ARGUMENTS` starts: a process a rank, on one thread each."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    variables |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    ranks = [variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [Running(module, *arguments, environment=environment, **options) for environment in ranks]
    return [running.wait() for running in started]


def free_port() -> str:
    """A port of this machine on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
