from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
