"""How supervision was used, in sentences: labels of what, masks for what, scored on whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import Run


def plural(number: float, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{int(number)} {noun}{'' if int(number) == 1 else 's'}"


def supervision(run: Run) -> list[str]:
    """Of a run: what its weights learned from, what chose their settings, and which masks it opened itself."""
    weights = run.record.get("weights") or {}
    lines = [*learned(weights), *chosen(weights.get("chosen_from") or {})]
    if not weights:
        lines.append("What the weights learned from is not recorded in this folder.")
    elif not lines:
        lines.append("Nothing beside the weights says what they learned from, or what chose their settings.")
    scored = sum(row.get("dice") is not None for row in run.metrics.values())
    if scored:
        where = f" of the {run.record['section']} section" if run.record.get("section") else ""
        lines.append(f"Masks of {plural(scored, 'case')}{where} were opened here, to score.")
    else:
        lines.append("No ground-truth mask was opened here.")
    if any(key.startswith("dice_baseline_") for key in run.summary):
        lines.append("The intensity thresholds of the baselines were fitted to masks of training patients.")
    return lines


def learned(weights: Mapping[str, Any]) -> list[str]:
    """What weights learned from.

    Args:
        weights: `trained_on`, see `common.preprocessing.supervision_of`, and `seen`, of `described_weights`; older
            ones have `seen` alone.
    """
    told, seen = weights.get("trained_on") or {}, weights.get("seen") or {}
    lines = []
    if told.get("labels"):
        whom = f": {told['training']}" if told.get("training") else ""
        lines.append(f"The network learned from yes/no labels of {told['labels']}{whom}.")
    elif seen.get("cases"):
        patients = f" of {plural(seen['patients'], 'patient')}" if seen.get("patients") else ""
        lines.append(f"Training saw {plural(seen['cases'], 'case')}{patients}.")
    lines += _taught(told)
    if told.get("masks") == "none":
        lines.append("No ground-truth mask was opened in training.")
    elif told.get("masks"):
        lines.append(f"Ground-truth masks in training: {told['masks']}.")
    if told.get("validation") not in (None, "none"):
        lines.append(f"Validation after each epoch, by labels alone: {told['validation']}.")
    return lines


def _taught(told: Mapping[str, Any]) -> list[str]:
    """Where the pseudo-masks of a training came from, back to networks that had labels alone."""
    teachers = told.get("teacher") or []
    return [line for one in (teachers if isinstance(teachers, list) else [teachers]) for line in _drawn_by(one)]


def _drawn_by(teacher: Mapping[str, Any]) -> list[str]:
    told, source = teacher.get("trained_on") or {}, teacher.get("chosen_from") or {}
    said = []
    if told.get("labels"):
        said.append(
            f"which learned from yes/no labels of {told['labels']} (masks: {told.get('masks', 'not recorded')})"
        )
    if source:
        labels = f"labels of {source['labels']}" if source.get("labels") else "no labels"
        said.append(f"its threshold chosen from {labels} (masks: {source.get('masks', 'not recorded')})")
    said = said or ["about which nothing is recorded"]
    return [f"It learned from pseudo-masks, too, drawn by an earlier network, {', '.join(said)}.", *_taught(told)]


def chosen(source: Mapping[str, Any]) -> list[str]:
    """What gate and thresholds were chosen from: `chosen_from` beside weights."""
    if not source:
        return []
    if rule := source.get("rule"):  # no label was negative: there was nothing to choose from
        told = source.get("classes_told_apart")
        whom = f"the {source['labels']} of {plural(source['cases'], 'case')}" if source.get("cases") else "these cases"
        more = f"Of each class, on average {told:.0%} of {whom} were called so there." if told is not None else None
        return [f"{rule[0].upper()}{rule[1:]}.", *([more] if more else [])]
    labels = f"yes/no labels of {source['labels']}" if source.get("labels") else "what is told below"
    where = f" of the {source['section']} section" if source.get("section") else ""
    cases = f" of {plural(source['cases'], 'case')}{where}" if source.get("cases") else where
    kinds = [f"{_words(source[kind])} {kind[:-1]}" for kind in ("positives", "negatives") if kind in source]
    counts = f" ({', '.join(kinds)})" if kinds else ""
    lines = [f"Gate and thresholds were chosen from {labels}{cases}{counts}."]
    lines.append(f"Masks used for these choices: {source.get('masks', 'not recorded')}.")
    if source.get("pseudo_masks"):
        lines.append(f"Pseudo-masks of the training came from: {source['pseudo_masks']}.")
    return lines


def _words(value: Any) -> str:
    """A count, or one for each of several labels."""
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
