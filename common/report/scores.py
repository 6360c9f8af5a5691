"""The sentence of a report: the headline number with its interval, the strongest baseline beside it, and on what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..metrics import bootstrap_by_patient
from .classes import class_table
from .supervision import plural
from .tables import Run, patient_of_row

# What each baseline is wherever it is named, and whether it uses anything that was learned: marked slices are those
# that the network takes for positive. `common.masks.BaselineMasksd` makes them.
BASELINES = {
    "dice_empty": ("empty mask", False),
    "dice_tissue": ("all tissue", False),
    "dice_baseline_threshold": ("intensity threshold", False),
    "dice_baseline_opened": ("threshold without thin parts", False),
    "dice_baseline_gated": ("threshold in marked slices", True),
    "dice_baseline_opened_gated": ("threshold without thin parts in marked slices", True),
}
CHANCE = {"name": "chance", "value": 0.5, "low": None, "high": None, "learned": False}
PAIRS = 2000  # resamples of paired differences


def baselines(run: Run) -> list[dict[str, Any]]:
    """The method's mask, its raw map, and whatever competes, the best first: mean Dice with 95 % interval, median.

    `better`: in how many of the cases that both score the method's Dice is higher, and `cases`, of how many.
    `difference`: the method minus this one, paired by case, its mean and 95 % interval by patient.
    """
    rows = []
    for key, scores in run.summary.items():
        if key not in ("dice", "dice_raw") and not key.startswith(("dice_empty", "dice_tissue", "dice_baseline_")):
            continue
        if not isinstance(scores, Mapping) or scores.get("mean") is None:
            continue
        name, learned = BASELINES.get(key, (key.removeprefix("dice_baseline_").replace("_", " "), True))
        if key in ("dice", "dice_raw"):
            name, learned = ("this method", True) if key == "dice" else ("its raw map above the threshold", True)
        row = {"key": key, "name": name, "learned": learned, "own": key in ("dice", "dice_raw"), **_interval(scores)}
        rows.append(row | (compared(run.metrics, key) if key != "dice" else {}))
    return sorted(rows, key=lambda row: -row["value"])


def compared(metrics: Mapping[str, Mapping[str, Any]], other: str) -> dict[str, Any]:
    """The method's Dice against another's, case by case, see `baselines`."""
    both = [row for row in metrics.values() if row.get("dice") is not None and row.get(other) is not None]
    if not both:
        return {}
    gains = np.array([row["dice"] - row[other] for row in both])
    low, high = bootstrap_by_patient([*map(patient_of_row, both)], np.mean, gains, resamples=PAIRS)
    difference = {"value": float(gains.mean()), "low": _number(low), "high": _number(high)}
    return {"better": int((gains > 0).sum()), "cases": len(both), "difference": difference}


def headline(run: Run) -> dict[str, Any]:
    """What a reader should know first: Dice where there are masks, else how labels are told apart, else counts.

    Returns:
        `measure`, `value`, `low`, `high`, `on` (whom), `note`; and `rival`, the strongest baseline, where one is known.
    """
    known = (of_kind(run) for of_kind in (_mean_dice, _auc_of_labels, _class_accuracy, _auc_of_slides))
    return next(filter(None, known), None) or _count_of_masks(run)


def _mean_dice(run: Run) -> dict[str, Any] | None:
    rows = baselines(run)
    own = next((row for row in rows if row["key"] == "dice"), None)
    if own is None:
        return None
    number = _count(run.summary["dice"].get("count"), len(run.metrics))
    return {
        "measure": "mean Dice",
        **{key: own[key] for key in ("value", "low", "high", "median")},
        "on": f"{plural(number, _noun(run))} with a ground-truth mask",
        "note": "1 is a perfect overlap of volumes, 0 none. Interval: 95 %, bootstrap over patients." + _healthy(run),
        "rival": next((row for row in rows if not row["own"]), None),
    }


def _auc_of_labels(run: Run) -> dict[str, Any] | None:
    for kind, scores in _labels(run):
        if scores.get("auc") is not None:
            low, high = scores.get("auc_interval") or (None, None)
            counts = f"{scores['positives']} positive and {scores['negatives']} negative {kind}"
            note = "No mask is known: scored is how well yes/no labels are told apart. 0.5 is chance."
            return {
                **{"measure": f"AUC of {kind}", "value": scores["auc"], "low": low, "high": high, "on": counts},
                "note": note + (f" {_sentence(scores['note'])}" if _lacks_interval(scores, low) else ""),
                "rival": CHANCE,
            }
    return None


def _class_accuracy(run: Run) -> dict[str, Any] | None:
    classes = class_table(run)
    if classes is None:
        return None
    return {
        **{"measure": "class accuracy", "value": classes["accuracy"], "low": None, "high": None},
        "on": plural(classes["slices"], "slice"),
        "note": "No mask is known: scored is how often a slice is called by the name of its class.",
        "rival": CHANCE | {"name": "the most frequent class, for all slices", "value": classes["commonest"]},
    }


def _auc_of_slides(run: Run) -> dict[str, Any] | None:
    if run.summary.get("auc_macro") is None:
        return None
    return {
        **{"measure": "AUC of slides", "value": run.summary["auc_macro"], "low": None, "high": None},
        "on": f"{len(run.labels)} slides, mean over the labels",
        "note": "No outline is known: scored is how well yes/no labels are told apart. 0.5 is chance.",
        "rival": CHANCE,
    }


def _count_of_masks(run: Run) -> dict[str, Any]:
    marked = sum(_marked(row) for row in run.predictions.values())
    return {
        **{"measure": f"{_noun(run)}s with a mask", "value": marked, "low": None, "high": None, "rival": None},
        "on": f"of {plural(len(run.predictions), _noun(run))}",
        "note": "Neither masks nor labels are known here: nothing can be scored.",
    }


def facts(run: Run) -> list[dict[str, str]]:
    """Other numbers of the first screen, each `name`, `value` and `on` whom."""
    found = [fact for kind, scores in _labels(run) for fact in _label_facts(kind, scores)]
    if classes := class_table(run):
        on = f"{plural(classes['slices'], 'slice')}; the most frequent class alone {classes['commonest']:.3f}"
        found.append(("class accuracy", f"{classes['accuracy']:.3f}", on))
    position = (run.summary.get("slices") or {}).get("auc_position_alone")
    if position is not None:
        found.append(("AUC of a slice's position alone", f"{position:.3f}", "what needs no image"))
    for name, area in (run.summary.get("auc") or {}).items():
        found.append((f"AUC of {name}", f"{area:.3f}", f"{len(run.labels)} slides with a label"))
    milliliters = [row["volume_ml"] for row in run.predictions.values() if row.get("volume_ml") is not None]
    if milliliters:
        found.append(("median volume of a mask", f"{np.median(milliliters):.1f} ml", plural(len(milliliters), "case")))
    return [{"name": name, "value": value, "on": on} for name, value, on in found]


def _label_facts(kind: str, scores: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """How well labels are told apart by the probability, and at the gate."""
    counts = f"{scores.get('positives')} positive, {scores.get('negatives')} negative {kind}"
    if scores.get("auc") is not None:
        low, high = scores.get("auc_interval") or (None, None)
        interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
        on = f"{counts}; {scores['note']}" if _lacks_interval(scores, low) else counts
        yield f"AUC of {kind}", f"{scores['auc']:.3f}{interval}", on
    if scores.get("sensitivity") is not None and scores.get("specificity") is not None:
        value = f"{scores['sensitivity']:.2f} / {scores['specificity']:.2f}"
        yield f"sensitivity / specificity of {kind}", value, f"{counts}, at the gate"


def _labels(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """Scores of yes/no labels, of volumes first; empty where there are none."""
    return [(kind, run.label_summary.get(kind) or {}) for kind in ("volumes", "slices")]


def _noun(run: Run) -> str:
    return "slide" if run.unit == "slides" else "case"


def _lacks_interval(scores: Mapping[str, Any], low: float | None) -> bool:
    """Whether there is no interval for a reason that is noted with the scores: few patients."""
    return low is None and "note" in scores


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _interval(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": scores["mean"], **{key: scores.get(key) for key in ("low", "high", "median", "count")}}


def _marked(row: Mapping[str, Any]) -> bool:
    sizes = (row[key] for key in row if key in ("volume_ml", "area_pixels") or key.startswith("area_mm2_"))
    return any(map(bool, sizes))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _healthy(run: Run) -> str:
    """What to know of a mean in which healthy cases count; empty if there are none."""
    ill = run.summary.get("dice_positive") or {}
    healthy = _count(run.summary["dice"].get("count"), 0) - _count(ill.get("count"), 0)
    if not ill or healthy <= 0 or ill.get("mean") is None:
        return ""
    return (
        f" Without a lesion: {plural(healthy, 'case')}, each 1 where nothing is marked, else 0; "
        f"{ill['mean']:.3f} in the {ill['count']} with one."
    )


def _count(value: Any, default: int) -> int:
    return default if value is None else int(value)
