"""A bundle in a process of its own, as a user would type it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def names(value: str | Sequence[str]) -> list[str]:
    """Comma-separated names; the command line gives one name as a text, several as a tuple."""
    return [name for name in value.split(",") if name] if isinstance(value, str) else list(map(str, value))


def run_arguments(bundle: str | Path, configs: list[str], **overrides: object) -> list[str]:
    """What follows `python -m monai.bundle` on the command line.

    Args:
        bundle: name under `bundles/`, or a path.
        configs: file names in the bundle's `configs/`, later ones override earlier ones.
        overrides: top-level keys.
    """
    root = BUNDLES / bundle
    files = [str(root / "configs" / name) for name in configs]
    arguments = ["run", "--config_file", files[0] if len(files) == 1 else str(files)]
    arguments += ["--logging_file", str(root / "configs" / "logging.conf")]
    for key, value in overrides.items():
        # The command line reads Python literals, and drops what is None.
        arguments += [f"--{key}", "$None" if value is None else str(value)]
    return arguments


def run_bundle(bundle: str | Path, configs: list[str], **overrides: object) -> None:
    """`python -m monai.bundle run` in a process of its own, as a user would type it; arguments as `run_arguments`.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    command = [sys.executable, "-m", "monai.bundle", *run_arguments(bundle, configs, **overrides)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
