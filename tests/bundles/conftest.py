from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


def load_script(bundle: str, name: str) -> ModuleType:
    """`bundles/<bundle>/scripts/<name>.py` under a name of its own: two bundles' `scripts` must not meet."""
    path = REPOSITORY / "bundles" / bundle / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{bundle}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def monai_bundle(*arguments: str, cwd: Path = REPOSITORY, check: bool = True) -> subprocess.CompletedProcess:
    """`python -m monai.bundle ARGUMENTS` in `cwd`, output captured."""
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
