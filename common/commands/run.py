"""A bundle in a process of its own, as a user would type it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..engines.settings import beyond_lists, tops
from ..files import read_json
from .console import output_of_run

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def names(value: str | Sequence[str]) -> list[str]:
    """Comma-separated names; the command line gives one name as a text, several as a tuple."""
    return [name for name in value.split(",") if name] if isinstance(value, str) else list(map(str, value))


def bundle_root(bundle: str | Path) -> Path:
    """Folder of a bundle.

    Args:
        bundle: name under `bundles/`, or a path; one with a separator is, as in a shell, of the working directory.

    Raises:
        ValueError: there is none; the message has the nearest name.
    """
    root = _place(bundle, BUNDLES)
    if not (root / "configs").is_dir():
        bundles = (path.parent for path in BUNDLES.glob("*/configs"))
        raise ValueError(f"there is no bundle {bundle}; {_nearest(bundle, bundles)}")
    return root


def config_files(bundle: str | Path, configs: Iterable[str]) -> list[Path]:
    """Paths of config files.

    Args:
        bundle: name under `bundles/`, or a path.
        configs: file names in the bundle's `configs/`, or paths.

    Raises:
        FileNotFoundError: the message has the nearest name.
    """
    folder = bundle_root(bundle) / "configs"
    for path in (files := [_place(name, folder) for name in configs]):
        if not path.is_file():
            raise FileNotFoundError(f"there is no config {path}; {_nearest(path, folder.glob('[!.]*.json'))}")
    return files


def _place(name: str | Path, folder: Path) -> Path:
    """A bare name in that folder; a path, `.` among them, from the working directory."""
    bare = Path(name).name == str(name) != ".."
    return folder / name if bare else Path(os.path.abspath(Path(name).expanduser()))


def _nearest(path: str | Path, there: Iterable[Path]) -> str:
    found = sorted(other.name for other in there)
    near = get_close_matches(Path(path).name, found, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(found)}"


def for_configs(bundle: str | Path, configs: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that only other configs of the bundle have: `max_epochs` where nothing is trained.

    What no config of the bundle has stays, for the run to name it.

    Args:
        bundle: name under `bundles/`, or a path.
        configs: of the run, as for `run_arguments`.
        settings: by key.
    """
    here = _keys(config_files(bundle, configs))
    elsewhere = _keys((bundle_root(bundle) / "configs").glob("[!.]*.json")) - here
    return {key: value for key, value in settings.items() if not tops({key: value}) & elsewhere}


def _keys(files: Iterable[Path]) -> set[str]:
    return set().union(*(tops(read_json(path)) for path in files))


def run_arguments(bundle: str | Path, configs: list[str], **overrides: object) -> list[str]:
    """What follows `python -m monai.bundle` on the command line.

    Args:
        bundle: name under `bundles/`, or a path.
        configs: file names in the bundle's `configs/`, later ones override earlier ones.
        overrides: top-level keys, and options of `run` such as `logging_file`.

    Raises:
        ValueError: there is no such bundle, or a key has a number beyond a list of its configs.
        FileNotFoundError: it has no such config.
    """
    files = [str(path) for path in config_files(bundle, configs)]
    if beyond := beyond_lists(overrides, ConfigParser.load_config_files(files)):
        raise ValueError("; ".join(beyond))
    arguments = ["run", "--config_file", files[0] if len(files) == 1 else str(files)]
    logging = {"logging_file": bundle_root(bundle) / "configs" / "logging.conf"}
    for key, value in {**logging, **overrides}.items():
        # The command line reads Python literals, and drops what is None.
        arguments += [f"--{key}", "$None" if value is None else str(value)]
    return arguments


def run_bundle(bundle: str | Path, configs: list[str], **overrides: object) -> None:
    """`python -m monai.bundle run` in a process of its own, as a user would type it; arguments as `run_arguments`.

    What it says goes where `common.commands.console.logged` sends it. It ends when this process is told to end.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    with _ended_together(), output_of_run() as (logging, stdout):
        arguments = run_arguments(bundle, configs, **{**logging, **overrides})
        command = [sys.executable, "-m", "monai.bundle", *arguments]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}, stdout=stdout)


@contextmanager
def _ended_together() -> Iterator[None]:
    """SIGTERM, as a queue sends it where time is up, leaves no run behind; Ctrl-C reaches both by itself."""
    if threading.current_thread() is not threading.main_thread():  # others cannot listen to signals
        yield
        return

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
