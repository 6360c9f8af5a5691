"""`python -m MODULE`, or `-c CODE`, in processes that are forked from one which has the imports behind it.

Each run is a process of its own, as a command in a shell is, so the `scripts` of two bundles never meet; but it starts
in tenths of a second, where a new interpreter spends five or more on importing MONAI. The runs of a session share one
seed of Python's hashes, which is not that of the process of the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).parents[1]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["ignite.engine", "nibabel", "PIL.Image", "skimage.measure", "tests.preload"])


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
        for path in self._outputs:
            path.touch()
        variables = os.environ | (environment or {})
        options = (module, arguments, str(cwd), variables, [str(path) for path in self._outputs])
        self._process = FORKSERVER.Process(target=_run, args=options)
        self._process.start()

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was ended.
        """
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        stdout, stderr = (path.read_text(errors="replace") for path in self._outputs)
        self._folder.cleanup()
        if late:
            raise subprocess.TimeoutExpired(self.command, timeout, stdout, stderr)
        return subprocess.CompletedProcess(self.command, self._process.exitcode, stdout, stderr)


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


def _run(module: str, arguments: Sequence[str], cwd: str, variables: Mapping[str, str], outputs: Sequence[str]) -> None:
    """What a new interpreter would have done, in the forked process."""
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
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
    from monai.transforms import Randomizable

    np.random.seed()  # noqa: NPY002 (it is this state that must differ)
    Randomizable.R.seed()
