"""Which cases a run has finished, so that it goes on where it was: `.cases/<case>.json` beside the results.

Each says what was written for the case, its row of `predictions.csv`, and a stamp of what these were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import unwrapped
from ..features import case_files
from ..features.fingerprint import describe
from ..files import write_json

FOLDER = ".cases"  # hidden: globs for results do not see it
INPUTS = ("image", "organ", "label")  # keys of a case whose files decide on what is written


def run_settings(engine: Any, options: Mapping[str, Any]) -> str:
    """Digest of all that decides on a case's results, its files apart: network with its weights, transforms, options.

    Args:
        engine: `common.engines.CaseEvaluator`.
        options: of the writer.

    Raises:
        ValueError: something cannot be told from another of its kind, see `common.features.fingerprint.describe`.
    """
    parts: dict[str, Any] = {name: getattr(engine, name, None) for name in ("preprocessing", "postprocessing")}
    parts |= {"inferer": _told(getattr(engine, "inferer", None), "__call__"), "options": dict(options)}
    if isinstance(network := getattr(engine, "network", None), torch.nn.Module):
        network = unwrapped(network)
        modules = {name: _told(module, "forward") for name, module in network.named_modules()}
        parts |= {"modules": modules, "weights": network.state_dict()}
    return hashlib.sha256(describe(parts).encode()).hexdigest()


def _told(value: Any, method: str) -> Any:
    """What a class does, and with which settings; what an object keeps to itself is of the case that it is at."""
    public = {name: part for name, part in vars(value).items() if not name.startswith("_")} if value is not None else {}
    return [getattr(type(value), method, None), public]


def case_stamp(settings: str, case: Mapping[str, Any]) -> str:
    """Digest of a run's settings and of size and time of a case's files, wherever they lie."""
    digest = hashlib.sha256(settings.encode())
    with suppress(OSError, ValueError):  # a case whose files cannot be read is never finished
        for path in case_files(case, INPUTS):
            about = path.stat()
            digest.update(f"{about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class FinishedCases:
    """The records of a folder of results.

    Args:
        output_dir: that folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / FOLDER

    def row(self, case: str, stamp: str) -> dict[str, Any] | None:
        """The row of a case that is whole: made from what `stamp` says, and all its files still there; else None."""
        record = self._record(case)
        whole = record.get("stamp") == stamp and all((self.output_dir / name).is_file() for name in record["files"])
        return record["row"] if whole else None

    def files(self, case: str) -> set[str]:
        """Names of the files that were written for a case, whether it is whole or not."""
        return set(self._record(case).get("files", ()))

    def _record(self, case: str) -> dict[str, Any]:
        try:
            record = json.loads(self._path(case).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def __contains__(self, case: str) -> bool:
        return self._path(case).is_file()

    def add(self, case: str, stamp: str, files: Iterable[str], row: Mapping[str, Any]) -> None:
        """Say that a case is whole; last, when its files have their names.

        Raises:
            NotWritten: the disk is full, or the folder is not ours.
        """
        write_json(self._path(case), {"stamp": stamp, "files": list(files), "row": dict(row)})

    def begin(self, case: str, files: Iterable[str]) -> None:
        """Say that a case is not whole, and which files are its; before any of them gets its name."""
        self.add(case, "", files, {})

    def _path(self, case: str) -> Path:
        return self.folder / f"{case}.json"
