from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


def load_script(bundle: str, name: str) -> ModuleType:
    """`bundles/<bundle>/scripts/<name>.py` in a package of its own name: two bundles' `scripts` must not meet."""
    package = f"{bundle}_scripts"
    if package not in sys.modules:
        folder = REPOSITORY / "bundles" / bundle / "scripts"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def monai_bundle(*arguments: str, cwd: Path = REPOSITORY, check: bool = True) -> subprocess.CompletedProcess:
    """`python -m monai.bundle ARGUMENTS` in `cwd`, output captured."""
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
