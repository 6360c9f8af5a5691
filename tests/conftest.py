from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests import forks


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist are forked from a process that has imported MONAI for all of them."""
    if workers := config.getoption("numprocesses", None):
        config.option.tx = [f"popen//python={shlex.join([sys.executable, forks.__file__])}"] * workers
        for kind in ("workers", "commands"):
            forks.address(kind)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """The first of several workers compiles the tests, and the others read its bytecode."""
    if not hasattr(session.config, "workerinput") or sys.dont_write_bytecode:
        return (yield)
    with FileLock(forks.address("workers").with_name("lock")):
        return (yield)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data("lgg")`: folder of a real data set, else the test is skipped.

    Looks in the folder that the environment variable WEAKSEG_DATA names, else in `../shared/data` beside the
    repository.
    """

    def find(name: str) -> Path:
        root = Path(os.environ.get("WEAKSEG_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data")
        if not (root / name).is_dir():
            pytest.skip(f"no real data: {root / name} is absent; set WEAKSEG_DATA to the folder that holds {name!r}")
        return root / name

    return find
