"""How classes that are told from one another were called, as `class_scores.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tables import Run


def class_table(run: Run) -> dict[str, Any] | None:
    """Accuracy of a run's slices by class, and what each class was called; None where the run did not score classes.

    Returns:
        `accuracy` in [0, 1], `slices` (how many), `commonest`, the accuracy of calling all slices as the most frequent
        class is called, `classes` (names), and `rows`, of each true class that has slices: its `name`, how many were
        `called` each of `classes`, and the `share` that was called by its own name.

    Example:
        A confusion `[[0, 0, 0], [0, 3, 0], [0, 1, 1]]` of none, low, high gives rows of low, share 1, and of high,
        share .5, with an accuracy of .8 and a `commonest` of .6.
    """
    scores = run.class_summary
    table: Sequence[Sequence[int]] = scores.get("confusion") or []
    names = class_names(run, len(table))
    totals = [sum(row) for row in table]
    if not any(totals) or scores.get("accuracy") is None:
        return None
    rows = [
        {"name": name, "called": list(row), "share": row[k] / total}
        for k, (name, row, total) in enumerate(zip(names, table, totals, strict=True))
        if total
    ]
    found = {"accuracy": scores["accuracy"], "slices": sum(totals), "commonest": max(totals) / sum(totals)}
    return found | {"classes": names, "rows": rows}


def class_names(run: Run, count: int) -> list[str]:
    """Names of so many classes: columns of `predictions.csv`, else those that the weights were trained on, else
    numbers."""
    prefix = "probability_"
    columns = next(iter(run.predictions.values()), {})
    told = ((run.record.get("weights") or {}).get("trained") or {}).get("classes") or []
    for names in ([key.removeprefix(prefix) for key in columns if key.startswith(prefix)], told):
        if len(names) == count:
            return list(names)
    return [f"class {k}" for k in range(count)]
