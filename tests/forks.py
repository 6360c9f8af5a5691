"""Processes that have the imports behind them and fork the others of a session: commands, workers of pytest-xdist.

Each that is forked is a process of its own, as a new interpreter is, but starts in tenths of a second where that spends
ten on importing MONAI. However many workers there are, the commands of a session (`tests.running`) come from one
process and its workers from another, so that the seed of Python's hashes is not the same in both. Run in place of
Python, with `-c CODE` at the end, this file asks for a worker (`tests/conftest.py`).
"""

from __future__ import annotations

import gc
import importlib
import inspect
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
IMPORTED = ("ignite.engine", "monai.bundle", "nibabel", "PIL.Image", "pytest", "skimage.measure")
FORK = multiprocessing.get_context("fork")
_started: dict[str, tuple[subprocess.Popen, tempfile.TemporaryDirectory]] = {}


class Forked:
    """`python -m MODULE ARGUMENTS` in a forked process.

    Args:
        module: its name; `-c`: the first argument is code to run.
        arguments: of the command line.
        files: its standard input, output and error.
        cwd: working directory, which is first on the path of modules, too.
        variables: its whole environment.
        kind: "commands" or "workers", which come from different processes.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        files: Sequence[int],
        *,
        cwd: Path,
        variables: Mapping[str, str],
        kind: str = "commands",
    ) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(address(kind)))
        socket.send_fds(client, [b"+"], files)
        self._connection = Connection(client.detach())
        self._connection.send((module, list(arguments), str(cwd), dict(variables)))
        self.pid: int = self._connection.recv()

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, minus the signal's number if one ended it; none where it goes on after `timeout` seconds."""
        if not self._connection.poll(timeout):
            return None
        with self._connection:
            return self._connection.recv()


def address(kind: str = "commands") -> Path:
    """Socket of this session's process for a kind, which is started if there is none, and ends with who started it."""
    name = f"WEAKSEG_FORKS_{kind.upper()}"
    if name not in os.environ:
        if kind not in _started:
            folder = tempfile.TemporaryDirectory()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder.name}/socket")
                listener.listen(64)
                command = [sys.executable, "-c", f"from tests.forks import serve; serve({listener.fileno()})"]
                options = {"cwd": REPOSITORY, "stdin": subprocess.PIPE, "pass_fds": [listener.fileno()]}
                _started[kind] = subprocess.Popen(command, **options), folder
        os.environ[name] = f"{_started[kind][1].name}/socket"
    return Path(os.environ[name])


def serve(listener: int) -> None:
    """Fork what is asked for on a socket, until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    # Fire asks for its caller when a command starts. For that `inspect` looks up the file of every module that was
    # imported, which takes a third of the time of a short run, and remembers them.
    inspect.stack()
    gc.collect()
    gc.freeze()  # what is there now is there to stay: none of the processes looks through it again
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=listener) as server:
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            with client:
                FORK.Process(target=_watch, args=(server, client)).start()


def _watch(server: socket.socket, client: socket.socket) -> None:
    """Fork a process and say how it ends."""
    server.close()
    _, files, *_ = socket.recv_fds(client, 1, 3)
    with Connection(client.detach()) as connection:
        process = FORK.Process(target=_run, args=(connection, files, *connection.recv()))
        process.start()
        for file in files:
            os.close(file)
        connection.send(process.pid)
        process.join()
        connection.send(process.exitcode)


def _run(
    connection: Connection,
    files: Sequence[int],
    module: str,
    arguments: Sequence[str],
    cwd: str,
    variables: Mapping[str, str],
) -> None:
    """What a new interpreter would have done, in the forked process."""
    import torch

    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if threads := variables.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    _scatter_random_states()
    added = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [cwd, *added, *(path for path in sys.path if path not in ("", str(REPOSITORY), *added))]
    sys.argv = [module, *arguments]
    try:
        if module == "-c":
            exec(arguments[0], {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())  # the module may have set one
        sys.exit(1)


def _scatter_random_states() -> None:
    """NumPy's global states were drawn before the fork; two runs without a seed must differ, as in new interpreters."""
    import numpy as np
    from monai.transforms import Randomizable

    np.random.seed()  # noqa: NPY002 (it is this state that must differ)
    Randomizable.R.seed()


if __name__ == "__main__":
    worker = Forked("-c", sys.argv[-1:], (0, 1, 2), cwd=Path.cwd(), variables=os.environ, kind="workers")
    sys.exit(worker.wait())
