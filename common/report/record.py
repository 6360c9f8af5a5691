"""What was run, kept in the run's folder as `run.json`: so that a report can be made, and trusted, later."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checkpoint import read_beside
from ..files import PathLike, file_digest, read_json

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "scikit-image", "pytorch-ignite")
INPUTS = ("image", "label")


def run_record(
    cases: Mapping[str, Mapping[str, Any]],
    *,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    bundle_root: PathLike | None = None,
    ckpt: PathLike | None = None,
    datalist: PathLike | None = None,
    section: str | None = None,
    chosen: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    failed: Mapping[str, str] | None = None,
    device: str = "cpu",
    scores: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of a run.

    Args:
        cases: by name, with the paths of their files.
        config: of the bundle, merged, unresolved.
        settings: that came with the command.
        bundle_root: folder of the bundle, whose metadata name it.
        ckpt: its weights.
        datalist, section: whose cases these are.
        chosen: gate, threshold and the like, as they were used.
        seconds: of the run.
        failed: reasons by case.
        device: where the network ran.
        scores: names of the files of scores that it wrote.
    """
    return {
        **_described_run(config, settings, bundle_root, seconds, device),
        "section": section if datalist else None,
        "cases": len(cases),
        "failed": dict(failed or {}),
        "scores": list(scores),
        "chosen": dict(chosen or {}),
        "weights": described_weights(ckpt),
        "data": described_data(cases, datalist),
        "files": {case: {key: entry[key] for key in INPUTS if entry.get(key)} for case, entry in cases.items()},
    }


def training_record(
    *,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    bundle_root: PathLike | None = None,
    datalist: PathLike | None = None,
    seconds: float = 0.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """The record of a training; arguments as those of `run_record`. What its weights saw lies beside them."""
    return _described_run(config, settings, bundle_root, seconds, device) | {"data": described_data({}, datalist)}


def _described_run(
    config: Mapping[str, Any], settings: Mapping[str, Any], root: PathLike | None, seconds: float, device: str
) -> dict[str, Any]:
    return {
        **described_bundle(root),
        "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - seconds)),
        "seconds": round(seconds, 1),
        "device": device,
        "settings": {key: value for key, value in settings.items() if key != "config_file"},
        "options": {key: value for key, value in config.items() if _is_plain(value)},
        "config_sha256": digest_of(config) if config else None,
        "versions": versions(),
    }


def described_bundle(root: PathLike | None) -> dict[str, Any]:
    """Name, version and task of a bundle, from its metadata; a folder without them has its name only."""
    if root is None:
        return {"bundle": None, "version": None, "task": None}
    path = Path(root) / "configs" / "metadata.json"
    metadata = read_json(path) if path.is_file() else {}
    return {"bundle": Path(root).name, "version": metadata.get("version"), "task": metadata.get("task")}


def described_weights(ckpt: PathLike | None) -> dict[str, Any]:
    """Name and SHA-256 of weights, and what lies beside them: what they saw, what was chosen for them, from what."""
    if ckpt is None or not Path(ckpt).is_file():
        return {}
    beside = read_beside(ckpt)
    seen = {key: beside.get("seen", {}).get(key) for key in ("cases", "patients", "channels")}
    parts = {key: beside.get(key, {}) for key in ("trained", "trained_on", "chosen_from")}
    return {"file": Path(ckpt).name, "sha256": file_digest(ckpt), "seen": seen, **parts}


def described_data(cases: Mapping[str, Mapping[str, Any]], datalist: PathLike | None) -> dict[str, Any]:
    """A digest of the cases' names and their files' sizes (the files are not read), and one of the datalist."""
    sizes: dict[str, list[int]] = {}
    for case, entry in cases.items():
        images = entry.get("image") or []
        paths = [Path(path) for path in ([images] if isinstance(images, str) else images)]
        sizes[case] = [path.stat().st_size if path.is_file() else -1 for path in paths]
    listed = Path(datalist) if datalist and Path(datalist).is_file() else None
    return {
        "names_and_sizes_sha256": digest_of(sizes),
        "datalist": listed.name if listed else None,
        "datalist_sha256": file_digest(listed) if listed else None,
    }


def versions() -> dict[str, str]:
    """Of Python and of what results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether a setting says by itself what it is: a number, a word, a list of these."""
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return value is None or isinstance(value, bool | int | float)
