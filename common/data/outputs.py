"""Results of earlier runs, which lie among the data where `output_dir` is inside `dataset_dir`: never read as input.

A name alone does not tell: `p1_seg.nii.gz` may be a reader's mask. A file is a result where the table of its folder's
run (`predictions.csv`) has its case, or, after a run that was killed before it wrote one, where all of a case's files
stand together.
"""

from __future__ import annotations

import csv
import os
import re
from functools import lru_cache
from pathlib import Path

_SUFFIX = re.compile(r"(seg|heatmap|montage|overlay)(_[^/]*)?\.(nii\.gz|dcm|png|tif|ome\.tif)")
_TOGETHER = (
    ("seg.nii.gz", "heatmap.nii.gz", "montage.png"),
    ("seg.png", "heatmap.tif", "montage.png"),
    ("seg.tif", "heatmap.ome.tif", "overlay.png"),
)


def is_result(path: Path) -> bool:
    """Whether a run wrote this file: heatmap, mask or picture of a case, of a volume or of a slide."""
    parts = path.name.split("_")
    splits = [("_".join(parts[:i]), "_".join(parts[i:])) for i in range(1, len(parts))]
    splits = [(case, suffix) for case, suffix in splits if _SUFFIX.fullmatch(suffix)]
    if not splits:
        return False
    folder = path.parent
    cases = cases_of_run(folder)
    return any(
        case in cases or any(all((folder / f"{case}_{end}").is_file() for end in ends) for ends in _TOGETHER)
        for case, _ in splits
    )


def cases_of_run(folder: Path) -> frozenset[str]:
    """The cases of the run that wrote into a folder; none where no run did."""
    table = folder / "predictions.csv"
    try:
        changed = table.stat().st_mtime_ns
    except OSError:
        return frozenset()
    return _read_cases(os.fspath(table), changed)


@lru_cache(maxsize=64)
def _read_cases(table: str, changed: int) -> frozenset[str]:
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return frozenset(row["case"].removeprefix("'") for row in csv.DictReader(file) if row.get("case"))
    except (OSError, ValueError, csv.Error):
        return frozenset()
