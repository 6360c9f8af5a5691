"""What `benchmark_suite` found, as a page: scores, differences, baselines, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..metrics import bootstrap_by_patient, bootstrap_interval, roc_auc, summarize
from ..metrics.bootstrap import FEW_PATIENTS
from ..report.scores import BASELINES
from ..report.tables import read_rows

LABELS = (
    "AUC of each fold, and the mean over folds, since networks of different folds have scales of their own; a patient "
    "is ill who has a volume that is, and has the highest probability of the volumes. Sensitivity and specificity: of "
    "the slices (volumes, where these alone have labels) of all folds together, each called by its own fold's gate. "
    "95 % bootstrap intervals by patient; of each draw of patients, AUC is taken by fold and averaged, too. No "
    f"interval where fewer than {FEW_PATIENTS} patients have a positive, or fewer a negative one. Healthy volumes: "
    "mean over folds."
)


@dataclass(frozen=True)
class Method:
    """A method's results over all folds.

    Attributes:
        name: of the bundle.
        cases: rows of the folds' `metrics.csv`.
        labels: the folds' `labels.json`.
        volumes, slices: rows of the folds' `labels.csv` and `label_slices.csv` (of earlier versions, `slices.csv`),
            each with its `fold`, and whether its probability passes that fold's gate as `called`; empty where a fold
            has none, or its `labels.json` scored others.
        minutes: of training, a fold.
        seconds: from file to files, a volume.
        mib: peak memory of a process, a fold.
        bound: rows of the same network trained with masks; empty where there is none.
    """

    name: str
    cases: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    minutes: list[float]
    seconds: list[float]
    mib: list[float]
    bound: list[dict[str, Any]]

    @classmethod
    def read(cls, name: str, folds: Sequence[Path], bound: Path | None = None) -> Method:
        """Gather what `fit` left in the folders of the folds, and `crossvalidate` in that of the upper bound."""
        labels = [read_json(fold / "evaluation" / "labels.json") for fold in folds]
        logs = [[row for log in sorted(fold.glob("*/training_log.csv")) for row in read_rows(log)] for fold in folds]
        return cls(
            name=name,
            cases=[row for fold in folds for row in read_rows(fold / "evaluation" / "metrics.csv")],
            labels=labels,
            volumes=_told(folds, "labels.csv", labels, "volumes"),
            slices=_told(folds, "label_slices.csv", labels, "slices") or _told(folds, "slices.csv", labels, "slices"),
            minutes=[sum(row["seconds"] for row in log) / 60 for log in logs],
            seconds=[row["seconds"] for fold in folds for row in read_rows(fold / "masks" / "predictions.csv")],
            mib=[read_json(fold / "peak_memory.json")["mib"] for fold in folds],
            bound=read_rows(bound / "metrics.csv") if bound else [],
        )

    def headline(self) -> str:
        """Mean Dice of volumes with a lesion, with its interval."""
        return _interval(self.cases)


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
        LABELS + "\n",
        _table(
            [
                "method",
                "slice AUC",
                "volume AUC",
                "patient AUC",
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
        "Dice of what needs no learned mask (marked slices: those that the network takes for positive), and of the "
        "same network trained and calibrated with masks.\n",
        _table(["", *(method.name for method in methods)], _beside(methods)),
        "## Cost\n",
        _table(["method", "minutes of training, a fold", "seconds a volume", "peak memory, MiB"], map(_costs, methods)),
    ]
    return "\n".join(parts)


def _scores(method: Method) -> list[str]:
    return [
        method.name,
        str(len(_known(method.cases, "dice"))),
        _interval(method.cases),
        _interval(method.cases, of="median"),
        _interval(method.cases, "dice_raw"),
    ]


def _labels(method: Method) -> list[str]:
    def of_healthy(*names: str) -> str:
        found: list[Any] = [scores.get("volumes") or {} for scores in method.labels]
        for name in names:
            found = [scores.get(name) if scores else None for scores in found]
        return _mean(found)

    kind = "slices" if any("slices" in scores for scores in method.labels) else "volumes"
    rows = method.slices if kind == "slices" else method.volumes
    own = [[(scores.get(of) or {}).get("auc") for scores in method.labels] for of in ("slices", "volumes")]
    patients = patients_of(method.volumes)
    by_patient = [auc for auc in auc_by_fold(patients).values() if not np.isnan(auc)]
    return [
        method.name,
        _mean(own[0]) + _bracket(auc_interval(method.slices)),
        _mean(own[1]) + _bracket(auc_interval(method.volumes)),
        _mean(by_patient) + _bracket(auc_interval(patients)),
        _pooled(method.labels, kind, "sensitivity") + _bracket(called_interval(rows, positive=True)),
        _pooled(method.labels, kind, "specificity") + _bracket(called_interval(rows, positive=False)),
        *(of_healthy("negatives_empty"), of_healthy("ml_in_negatives", "mean")),
    ]


def patients_of(volumes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a patient: ill if any volume is, with the highest probability of the volumes, which one network gave."""
    found: dict[str, dict[str, Any]] = {}
    for row in volumes:
        one = found.setdefault(row["patient"], {**row})
        one |= {key: max(one[key], row[key]) for key in ("positive", "probability")}
    return [*found.values()]


def auc_by_fold(rows: Sequence[Mapping[str, Any]]) -> dict[Any, float]:
    """AUC of each fold, NaN where it has one label alone; `rows` as of `Method.volumes`."""
    return {
        fold: roc_auc(*([row[key] for row in rows if row["fold"] == fold] for key in ("probability", "positive")))
        for fold in dict.fromkeys(row["fold"] for row in rows)
    }


def auc_interval(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """95 % bootstrap interval by patient of the mean over folds of AUC.

    Probabilities of networks of different folds have scales of their own: pooled, a positive of one fold would be held
    against a negative of another. So each draw of patients is parted by fold again, and the AUC of its folds averaged.
    A draw in which a fold has lost one of the labels does not count.

    Args:
        rows: as of `Method.volumes`.

    Returns:
        Lower and upper bound; both NaN where few patients have either label, or no fold has both.
    """
    defined = [fold for fold, auc in auc_by_fold(rows).items() if not np.isnan(auc)]
    rows = [row for row in rows if row["fold"] in defined]
    if not rows:
        return np.nan, np.nan
    patients, folds, probabilities, labels = (
        np.array([row[key] for row in rows]) for key in ("patient", "fold", "probability", "positive")
    )

    def mean(folds: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean([roc_auc(probabilities[folds == k], labels[folds == k]) for k in defined]))

    return bootstrap_by_patient(patients, mean, folds, probabilities, labels, labels=labels)


def called_interval(rows: Sequence[Mapping[str, Any]], *, positive: bool) -> tuple[float, float]:
    """95 % bootstrap interval by patient of sensitivity, or of specificity, over the rows of all folds.

    They are yes or no by the gate of their own fold, and so, unlike probabilities, of one kind in all folds.

    Returns:
        Lower and upper bound; both NaN where few patients have such a label.
    """
    kept = [row for row in rows if bool(row["positive"]) == positive]
    patients = [row["patient"] for row in kept]
    if len(set(patients)) < FEW_PATIENTS:
        return np.nan, np.nan
    return bootstrap_by_patient(patients, np.mean, [row["called"] == positive for row in kept])


def _told(folds: Sequence[Path], name: str, labels: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Rows of a table of all folds; none where they are not what `labels.json` scored: labels of masks are others."""
    found = []
    for fold, (folder, scores) in enumerate(zip(folds, labels, strict=True)):
        rows = read_rows(folder / "evaluation" / name)
        ill, own = sum(row["positive"] > 0 for row in rows), scores.get(kind) or {}
        if not rows or (own.get("positives"), own.get("negatives")) != (ill, len(rows) - ill):
            return []
        found += [row | {"fold": fold, "called": row["probability"] > scores["gate"]} for row in rows]
    return found


def _pooled(labels: Sequence[Mapping[str, Any]], kind: str, name: str) -> str:
    """Sensitivity or specificity over all folds: of each fold, weighted by how many it is a share of."""
    count = {"sensitivity": "positives", "specificity": "negatives"}[name]
    found = [scores.get(kind) or {} for scores in labels]
    found = [scores for scores in found if scores.get(name) is not None]
    weights = [scores.get(count, 0) for scores in found]
    return f"{np.average([scores[name] for scores in found], weights=weights):.3f}" if sum(weights) else "–"


def _mean(values: Sequence[float | None]) -> str:
    kept = [value for value in values if value is not None]
    return f"{np.mean(kept):.3f}" if kept else "–"


def _difference(one: Method, other: Method) -> list[str]:
    first, second = (_by_patient(method.cases) for method in (one, other))
    shared = sorted(first.keys() & second.keys())
    values = np.array([first[patient] - second[patient] for patient in shared])
    low, high = bootstrap_interval(values)
    mean = values.mean() if len(values) else np.nan
    return [f"{one.name} − {other.name}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]


def _beside(methods: Sequence[Method]) -> list[list[str]]:
    there = [name for name in BASELINES if any(name in row for method in methods for row in method.cases)]
    rows = [[BASELINES[name][0], *(_interval(method.cases, name) for method in methods)] for name in there]
    if any(method.bound for method in methods):
        rows.append(["upper bound: trained with masks", *(_interval(method.bound) for method in methods)])
    return [*rows, ["**from yes/no labels**", *(f"**{method.headline()}**" for method in methods)]]


def _costs(method: Method) -> list[str]:
    return [method.name, f"{np.mean(method.minutes):.0f}", f"{np.median(method.seconds):.1f}", f"{max(method.mib):.0f}"]


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The volumes that hold a lesion and have a score; a healthy one's is told by its label."""
    return [row for row in rows if row.get(name) is not None and row["dice_empty"] == 0]


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in _known(rows, "dice"):
        found.setdefault(row["patient"], []).append(row["dice"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _interval(rows: Sequence[Mapping[str, Any]], name: str = "dice", of: str = "mean") -> str:
    known = _known(rows, name)
    if not known:
        return "–"
    found = summarize([row[name] for row in known], patients=[row["patient"] for row in known])
    low, high = (found[key] for key in (("low", "high") if of == "mean" else ("median_low", "median_high")))
    return f"{found[of]:.3f}" + _bracket((low, high))


def _bracket(interval: tuple[float, float]) -> str:
    low, high = interval
    return "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
