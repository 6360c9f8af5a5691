"""What `benchmark_suite` found, as a page: scores, differences, baselines, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..metrics import bootstrap_interval, summarize
from ..report.tables import read_rows

BASELINES = {
    "dice_empty": "empty mask",
    "dice_baseline_threshold": "intensity threshold",
    "dice_baseline_opened": "the same without thin parts",
    "dice_baseline_gated": "intensity threshold in the slices that the network takes for positive",
    "dice_baseline_opened_gated": "the same without thin parts",
}


@dataclass(frozen=True)
class Method:
    """A method's results over all folds.

    Attributes:
        name: of the bundle.
        cases: rows of the folds' `metrics.csv`.
        labels: the folds' `labels.json`.
        minutes: of training, a fold.
        seconds: from file to files, a volume.
        mib: peak memory of a process, a fold.
        bound: rows of the same network trained with masks; empty where there is none.
    """

    name: str
    cases: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    minutes: list[float]
    seconds: list[float]
    mib: list[float]
    bound: list[dict[str, Any]]

    @classmethod
    def read(cls, name: str, folds: Sequence[Path], bound: Path | None = None) -> Method:
        """Gather what `fit` left in the folders of the folds, and `crossvalidate` in that of the upper bound."""
        logs = [[row for log in sorted(fold.glob("*/training_log.csv")) for row in read_rows(log)] for fold in folds]
        return cls(
            name=name,
            cases=[row for fold in folds for row in read_rows(fold / "evaluation" / "metrics.csv")],
            labels=[read_json(fold / "evaluation" / "labels.json") for fold in folds],
            minutes=[sum(row["seconds"] for row in log) / 60 for log in logs],
            seconds=[row["seconds"] for fold in folds for row in read_rows(fold / "masks" / "predictions.csv")],
            mib=[read_json(fold / "peak_memory.json")["mib"] for fold in folds],
            bound=read_rows(bound / "metrics.csv") if bound else [],
        )

    def headline(self) -> str:
        """Mean Dice of volumes with a lesion, with its interval."""
        return _interval(_ill(self.cases))


def page_of(suite: str, methods: Sequence[Method], data: str, *, folds: int, seed: int) -> str:
    """The page, in Markdown.

    Args:
        suite: its name.
        methods: to compare.
        data: the data in words.
        folds: how many there were.
        seed: of the folds.
    """
    parts = [
        f"# {suite}: bundles under one protocol\n",
        f"{data}. {folds} folds by patient (seed {seed}), the same for all; every patient is a test patient once. "
        "Training and all thresholds: yes/no labels of the fold's training and validation patients, no mask. "
        "Masks score, and fit the thresholds of the baselines (those of training patients).\n",
        "## Masks\n",
        "3D Dice of volumes that hold a lesion, mean and median over all folds; 95 % bootstrap intervals by patient.\n",
        _table(["method", "volumes", "mean", "median", "heat above its threshold, unrefined"], map(_scores, methods)),
        "## Labels\n",
        "Mean over folds, since networks of different folds have scales of their own.\n",
        _table(
            [
                "method",
                "slice AUC",
                "volume AUC",
                *("sensitivity", "specificity"),
                "healthy left empty",
                "ml in a healthy one",
            ],
            map(_labels, methods),
        ),
    ]
    if len(methods) > 1:
        parts += [
            "## Differences\n",
            "Mean difference of Dice over the same patients, paired bootstrap.\n",
            _table(["", "difference"], [_difference(*pair) for pair in combinations(methods, 2)]),
        ]
    parts += [
        "## Beside them\n",
        "Dice of what needs no learned mask, and of the same network trained and calibrated with masks.\n",
        _table(["", *(method.name for method in methods)], _beside(methods)),
        "## Cost\n",
        _table(["method", "minutes of training, a fold", "seconds a volume", "peak memory, MiB"], map(_costs, methods)),
    ]
    return "\n".join(parts)


def _scores(method: Method) -> list[str]:
    dice = _ill(method.cases)
    return [
        method.name,
        str(len(dice)),
        _interval(dice),
        _interval(dice, "median"),
        _interval(_ill(method.cases, "dice_raw")),
    ]


def _labels(method: Method) -> list[str]:
    def mean(kind: str, *names: str) -> str:
        found: list[Any] = [scores.get(kind) or {} for scores in method.labels]
        for name in names:
            found = [scores.get(name) if scores else None for scores in found]
        kept = [value for value in found if value is not None]
        return f"{np.mean(kept):.3f}" if kept else "–"

    kind = "slices" if any("slices" in scores for scores in method.labels) else "volumes"
    return [
        *(method.name, mean("slices", "auc"), mean("volumes", "auc"), mean(kind, "sensitivity")),
        *(mean(kind, "specificity"), mean("volumes", "negatives_empty"), mean("volumes", "ml_in_negatives", "mean")),
    ]


def _difference(one: Method, other: Method) -> list[str]:
    first, second = (_by_patient(method.cases) for method in (one, other))
    shared = sorted(first.keys() & second.keys())
    values = np.array([first[patient] - second[patient] for patient in shared])
    low, high = bootstrap_interval(values)
    mean = values.mean() if len(values) else np.nan
    return [f"{one.name} − {other.name}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]


def _beside(methods: Sequence[Method]) -> list[list[str]]:
    there = [name for name in BASELINES if any(name in row for method in methods for row in method.cases)]
    rows = [[BASELINES[name], *(_interval(_ill(method.cases, name)) for method in methods)] for name in there]
    if any(method.bound for method in methods):
        rows.append(["upper bound: trained with masks", *(_interval(_ill(method.bound)) for method in methods)])
    return [*rows, ["**from yes/no labels**", *(f"**{method.headline()}**" for method in methods)]]


def _costs(method: Method) -> list[str]:
    return [method.name, f"{np.mean(method.minutes):.0f}", f"{np.median(method.seconds):.1f}", f"{max(method.mib):.0f}"]


def _ill(rows: Sequence[Mapping[str, Any]], name: str = "dice") -> list[float]:
    """A score of the volumes that hold a lesion; a healthy one's is told by its label."""
    return [row[name] for row in rows if row.get(name) is not None and row["dice_empty"] == 0]


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    ill = [row for row in rows if row["dice_empty"] == 0]
    patients = {row["patient"] for row in ill}
    return {name: float(np.mean(_ill([row for row in ill if row["patient"] == name]))) for name in patients}


def _interval(values: Sequence[float], of: str = "mean") -> str:
    if not values:
        return "–"
    found = summarize(values)
    low, high = (found[key] for key in (("low", "high") if of == "mean" else ("median_low", "median_high")))
    return f"{found[of]:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
