"""From a run's folder to one JSON-able structure, and to `report.html`."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import cases as find
from ..files import PathLike, write
from .cases import add_volumes, case_rows, shared_threshold
from .classes import class_table
from .curves import label_curves, threshold_curve, volume_agreement
from .page import page
from .pictures import find_picture, picture, size, thumbnail, within
from .record import described_weights, versions
from .scores import baselines, facts, headline
from .slides import add_slides
from .supervision import supervision
from .tables import Run, read_json, read_run
from .training import RECORD as TRAINING
from .training import build_training, training_supervision

PICTURES = 1_600_000  # bytes of all pictures; base64, the viewer and a thousand rows make 5 MB of them
THUMBNAILS = 500_000  # bytes of those that are thumbnails
LEAST = 8_000  # bytes of a montage in which one sees something
BINARY = ("picture", "thumbnail", "view", "volumes")  # keys of base64
# A path from the root of a file system: the page names files by their last part alone.
ABSOLUTE = re.compile(r"(?:(?<![\w./])/|\b[A-Za-z]:[\\/]|\\\\)(?:[^\s/\\'\",;:()]+[\\/])+(?=[^\s/\\'\",;:()]*)")


def write_report(run_dir: PathLike, **options: Any) -> Path:
    """Write `report.html` into the folder of an inference or evaluation, or of a training.

    Args:
        run_dir: that folder.
        options: of `build_report`; a training needs none.

    Returns:
        The page.
    """
    folder = Path(run_dir)
    trained = None if (folder / "predictions.csv").is_file() else build_training(folder)
    return _write(folder, build_report(folder, **options) if trained is None else training_report(folder, trained))


def write_training_report(output_dir: PathLike) -> Path | None:
    """Write `report.html` of a training, whatever else its folder holds; None where it has no log."""
    folder = Path(output_dir)
    trained = build_training(folder)
    return None if trained is None else _write(folder, training_report(folder, trained))


def _write(folder: Path, report: Mapping[str, Any]) -> Path:
    write(folder / "report.html", page(report))
    return folder / "report.html"


def training_report(folder: Path, training: Mapping[str, Any]) -> dict[str, Any]:
    """The page of a training: `build_training` with its record, and what the weights' folder says about them."""
    weights = described_weights(folder / "model.pt")
    record = read_json(folder / TRAINING)
    pairs = [("weights (SHA-256)", f"{weights['file']} {weights['sha256']}" if weights else "not there")]
    if record:
        pairs = [*_began(record), *pairs, _datalist(record), _settings(record)]
    found = record.get("versions") or versions()
    pairs += [("versions", _listed(found, ", ")), _made()]
    run = {key: record.get(key) for key in ("bundle", "version", "task")} | {"date": record.get("began")}
    run |= {"kind": "training", "title": "Training", "seconds": training["seconds"], "failed": {}}
    report = {"kind": "training", "run": run, "training": dict(training), "provenance": pairs}
    return without_paths(report | {"supervision": training_supervision(folder)}, [str(folder)])


def build_report(
    run_dir: PathLike,
    *,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    max_embedded: int = 8,
    max_mb: float = 15.0,
) -> dict[str, Any]:
    """All that the page shows, as plain data: nothing is scored anew but the raw map over thresholds.

    Args:
        run_dir: what an inference or an evaluation has written.
        files: `image` and `label` of the cases by name; by default those that `run.json` names. A ground-truth mask is
            opened only where the run has scored it, too.
        max_embedded: so many cases can be looked at in three planes, from the top of the list; the others have their
            picture.
        max_mb: of all embedded volumes.

    Returns:
        `run`, `headline`, `facts`, `supervision`, `classes`, `baselines`, `cases`, `stops`, `stop`, `threshold`,
        `curves`, `provenance`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a file is damaged, or of another case.
    """
    run = read_run(run_dir)
    rows = case_rows(run)
    known = dict(files if files is not None else run.record.get("files", {}))
    for case in known:
        if case not in run.metrics:
            known[case] = {key: value for key, value in known[case].items() if key != "label"}
    threshold = shared_threshold(rows)
    stops, scores = add_volumes(
        run, rows, known, max_embedded=max_embedded, max_bytes=int(max_mb * 1e6), threshold=threshold
    )
    if run.unit == "slides":
        add_slides(run, rows, max_embedded=max_embedded, max_bytes=int(max_mb * 1e6))
    _add_pictures(run, rows)
    curves: dict[str, Any] = label_curves(run)
    curves["thresholds"] = threshold_curve(stops, scores, threshold) if stops is not None else None
    curves["volumes"] = volume_agreement(rows)
    report = {
        "kind": "run",
        "run": described(run, rows),
        "headline": headline(run),
        "facts": facts(run),
        "supervision": supervision(run),
        "classes": class_table(run),
        "baselines": baselines(run),
        "cases": rows,
        "stops": None if stops is None else [float(f"{stop:.5g}") for stop in stops],
        "stop": _nearest(stops, threshold),
        "threshold": threshold,
        "curves": curves,
        "provenance": provenance(run),
    }
    return without_paths(report, _folders(run, known))


def find_files(
    dataset_dir: PathLike,
    *,
    image_pattern: str | list[str] | None = None,
    label_pattern: str | None = None,
    datalist: PathLike | None = None,
    section: str = "test",
) -> dict[str, dict[str, Any]]:
    """Where the cases' files lie, for runs that did not write it down; arguments as `common.data.cases`.

    Raises:
        ValueError: neither a pattern nor a datalist.
    """
    if not (image_pattern or datalist):
        raise ValueError("--dataset_dir needs --image_pattern, or --datalist with --section, to find the cases' scans")
    found = find(dataset_dir, image_pattern or "", label_pattern=label_pattern, datalist=datalist, section=section)
    return {case["case"]: case for case in found}


def described(run: Run, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was run, on how many cases, for the head of the page."""
    record = run.record
    return {
        "bundle": record.get("bundle"),
        "version": record.get("version"),
        "task": "Findings on whole slides, from yes/no labels" if run.unit == "slides" else record.get("task"),
        "section": record.get("section"),
        "kind": "evaluation" if run.metrics or run.labels else "inference",
        "unit": "slide" if run.unit == "slides" else "case",
        "cases": len(rows),
        "failed": record.get("failed", {}),
        "settings": record.get("settings", {}),
        "date": record.get("began"),
        "seconds": record.get("seconds") or sum(row["seconds"] or 0 for row in rows) or None,
    }


def provenance(run: Run) -> list[tuple[str, str]]:
    """What the figures stand on, as pairs of a name and a text; what is not recorded says so."""
    record = run.record
    if not record:
        return [("record", "this folder has no run.json: it was written by an earlier version"), _made()]
    weights, data, chosen = (record.get(key) or {} for key in ("weights", "data", "chosen"))
    source = (weights.get("chosen_from") or {}).get("labels")
    pairs = [
        *_began(record),
        ("weights (SHA-256)", f"{weights['file']} {weights['sha256']}" if weights else None),
        _datalist(record),
        ("data: names and sizes (SHA-256)", data.get("names_and_sizes_sha256")),
        ("gate, threshold, …", _listed({key: value for key, value in chosen.items() if value is not None})),
        ("chosen from", f"labels of {source}" if source else None),
        _settings(record),
        ("versions", _listed(record.get("versions", {}), ", ")),
        _made(),
    ]
    return [(name, text or "not recorded") for name, text in pairs]


def _began(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run and a training have in common."""
    return [
        ("bundle", " ".join(filter(None, (record.get("bundle"), record.get("version")))) or "not recorded"),
        ("began, seconds", f"{record.get('began')}, {record.get('seconds')} s on {record.get('device')}"),
        ("config (SHA-256)", record.get("config_sha256") or "not recorded"),
    ]


def _datalist(record: Mapping[str, Any]) -> tuple[str, str]:
    data = record.get("data") or {}
    return "datalist (SHA-256)", f"{data['datalist']} {data['datalist_sha256']}" if data.get("datalist") else "none"


def _settings(record: Mapping[str, Any]) -> tuple[str, str]:
    return "settings of the command", _listed(record.get("settings", {})) or "none"


def _listed(values: Mapping[str, Any], separator: str = "; ") -> str:
    return separator.join(f"{key} {_short(value)}" for key, value in values.items())


def _made() -> tuple[str, str]:
    return ("report made", time.strftime("%Y-%m-%d %H:%M"))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} {_short(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nearest(stops: np.ndarray | None, threshold: float | None) -> int | None:
    """The stop that is the run's threshold (infinite: the last); the middle one where cases have their own."""
    if stops is None:
        return None
    return len(stops) // 2 if threshold is None else int(np.abs(stops - min(threshold, stops[-1])).argmin())


def _add_pictures(run: Run, rows: list[dict[str, Any]]) -> None:
    """The more cases, the smaller their pictures; those far down a long list have none: empty texts, not None."""
    found = [(row, path) for row in rows if (path := find_picture(run.folder, row["case"]))]
    small = within((thumbnail(path) for _, path in found), THUMBNAILS)
    left = PICTURES - sum(map(size, small))
    each = max(left // max(len(found), 1), LEAST)
    large = within((picture(path, each) for _, path in found), left)
    for row in rows:
        row["picture"] = row["thumbnail"] = None
    for number, (row, _) in enumerate(found):
        row["picture"] = large[number] if number < len(large) else ""
        row["thumbnail"] = small[number] if number < len(small) else ""


def without_paths(value: Any, folders: Collection[str] = ()) -> Any:
    """The value with no folder in any text: `/data/p1/flair.nii.gz` becomes `flair.nii.gz`; pictures stay.

    Args:
        value: texts, lists and dicts of them.
        folders: that are known, so that they are found whatever their names.
    """
    if isinstance(value, str):
        if "/" in value or "\\" in value:
            for folder in folders:
                value = value.replace(f"{folder}/", "").replace(f"{folder}\\", "").replace(folder, Path(folder).name)
            return ABSOLUTE.sub("", value)
        return value
    if isinstance(value, Mapping):
        return {key: part if key in BINARY else without_paths(part, folders) for key, part in value.items()}
    return [without_paths(part, folders) for part in value] if isinstance(value, list | tuple) else value


def _folders(run: Run, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Folders of the run and of its files, the innermost first."""
    paths = [path for case in files.values() for value in case.values() for path in _paths(value)]
    parents = {str(Path(path).parent) for path in paths} | {str(run.folder), str(run.folder.resolve())}
    return sorted((parent for parent in parents if len(parent) > 1), key=len, reverse=True)


def _paths(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [part for part in values if isinstance(part, str) and Path(part).is_absolute()]
