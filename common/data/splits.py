"""Splits and folds by patient, and weights that keep a slice's position from giving its label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from monai.data import partition_dataset

Parts = list[list[str]]  # patients of each


def patient_of(case: Mapping[str, Any]) -> str:
    """Whose case of a datalist it is; one that names no patient is a patient of its own."""
    return str(case["patient"] if "patient" in case else case["case"])


def split_patients(
    patients: Iterable[str], *, fractions: Sequence[float] = (0.6, 0.15, 0.25), seed: int = 0
) -> list[list[str]]:
    """Split patients at random into training, validation and test.

    Args:
        patients: ids; repeats and order do not matter.
        fractions: share of each part; they sum to 1. Every part with a share gets one patient or more.
        seed: the same patients and seed give the same split.

    Returns:
        One sorted list of ids per fraction.

    Raises:
        ValueError: fractions negative or not summing to 1, or fewer patients than parts.
    """
    share = _shares(fractions)
    ids = sorted(set(patients))
    if len(ids) < np.count_nonzero(share):
        raise ValueError(f"{len(ids)} patient(s) cannot fill {np.count_nonzero(share)} parts; add patients.")
    return _draw(ids, _sizes(len(ids), share), seed)


def stratified_split(
    positive: Mapping[str, int],
    *,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    seed: int = 0,
    fixed: Mapping[str, int] | None = None,
) -> list[list[str]]:
    """Split patients as `split_patients` does, those with and those without a finding, or of several classes, apart.

    So each part has its share of each, and one or more where there are as many as parts. Patients of a class that has
    fewer are split with those of the most frequent one; where too few have a finding, or none, all are split as one, so
    that each part has one with a finding if that can be.

    Args:
        positive: whether each patient has a finding, or its class.
        fractions: share of each part; they sum to 1.
        seed: of the draw.
        fixed: the part of patients that are not drawn; the others fill up the shares of all.

    Returns:
        One sorted list of ids per fraction.

    Raises:
        ValueError: fractions negative or not summing to 1, or fewer patients than parts.
    """
    share, fixed = _shares(fractions), fixed or {}
    kinds = _apart(positive, least=int(np.count_nonzero(share)))[::-1]
    parts: list[list[str]] = [[] for _ in share]
    for ids in kinds:
        free = [p for p in ids if p not in fixed]
        if free and len(ids) < np.count_nonzero(share):
            raise ValueError(f"{len(ids)} patient(s) cannot fill {np.count_nonzero(share)} parts; add patients.")
        held = [[p for p in ids if fixed.get(p) == k] for k in range(len(share))]
        missing = np.maximum(_sizes(len(ids), share) - [len(some) for some in held], 0)
        draw = partial(_draw, free, _sizes(len(free), missing / max(missing.sum(), 1)))
        suits = partial(_have_findings, held=held, positive=positive)
        drawn = first_that(suits, draw, seed=seed) if len(kinds) == 1 else draw(seed)
        for k, part in enumerate(parts):
            part += drawn[k] + held[k]
    return [sorted(part) for part in parts]


def _have_findings(drawn: Parts, *, held: Parts, positive: Mapping[str, int]) -> bool:
    """Whether each part has someone with a finding, drawn or held; one that nobody is drawn into cannot be helped."""
    return all(any(positive[p] for p in (*part, *held[k])) for k, part in enumerate(drawn) if part)


def first_that(suits: Callable[[Parts], bool], draw: Callable[[int], Parts], *, seed: int) -> Parts:
    """Parts of the first of a hundred seeds, `seed` on, whose draw suits; where none does, those of `seed`."""
    for k in range(100):
        if suits(parts := draw(seed + k)):
            return parts
    return draw(seed)


def class_against_class(cases: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The class of each patient, where no case and no slice is negative and there are several classes; else empty.

    What is learned then tells classes from one another, and a patient of several counts as of the first.
    """
    labels: dict[str, list[Any]] = {}
    for case in cases:
        cls = case.get("cls")
        labels.setdefault(patient_of(case), []).extend(cls if isinstance(cls, list) else [cls])
    found = {label for several in labels.values() for label in several}
    if len(found) < 2 or not all(isinstance(label, int) and label > 0 for label in found):
        return {}
    return {patient: several[0] for patient, several in labels.items()}


def tells_classes_apart(datalist: Mapping[str, Any]) -> bool:
    """Whether training and validation of a datalist hold nothing but classes that are told from one another.

    Training alone must have several, and no label of either may say that nothing is there: see `class_against_class`.
    """
    training, validation = (datalist.get(section) or [] for section in ("training", "validation"))
    return bool(class_against_class(training) and class_against_class([*training, *validation]))


def kinds_of_patients(cases: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What tells patients apart in a stratified split: their highest class, 0 where no label is positive.

    See `class_against_class` for data without negatives. Labels of which a case has several count as one class.
    """
    if against := class_against_class(cases):
        return against
    highest = {patient: int(True in found) for patient, found in signs_of_patients(cases).items()}
    for case in cases:
        labels = case.get("cls", 0)
        numbers = [k for k in (labels if isinstance(labels, list) else [labels]) if isinstance(k, int)]
        highest[patient_of(case)] = max(highest[patient_of(case)], *numbers, 0)
    return highest


def signs_of_patients(cases: Sequence[Mapping[str, Any]]) -> dict[str, set[bool]]:
    """Whether each patient has a positive label, and whether a negative one."""
    signs: dict[str, set[bool]] = {patient_of(case): set() for case in cases}
    for case in cases:
        signs[patient_of(case)] |= signs_of(case["cls"]) if "cls" in case else set()
    return signs


def signs_of(cls: Any) -> set[bool]:
    """Whether a label, or one of several, is positive, and whether one is negative."""
    if isinstance(cls, list) and (not cls or isinstance(cls[0], str)):
        return {bool(cls)}
    return {c > 0 for c in (cls if isinstance(cls, list) else [cls])}


def _shares(fractions: Sequence[float]) -> np.ndarray:
    share = np.asarray(fractions, dtype=float)
    if (share < 0).any() or not np.isclose(share.sum(), 1):
        raise ValueError(f"fractions must be 0 or more and sum to 1; got {tuple(fractions)}.")
    return share


def _sizes(count: int, share: np.ndarray) -> np.ndarray:
    """Sizes of the parts: the nearest whole numbers, none of them 0 where there are enough."""
    sizes = np.floor(share * count + 1e-9).astype(int)
    while share.any() and sizes.sum() < count:  # largest remainder first
        sizes[np.argmax(share * count - sizes)] += 1
    if count >= np.count_nonzero(share):
        for part in np.flatnonzero((sizes == 0) & (share > 0)):
            sizes[np.argmax(sizes)] -= 1
            sizes[part] = 1
    return sizes


def _draw(ids: Sequence[str], sizes: np.ndarray, seed: int) -> list[list[str]]:
    # The last part is drawn first, so that the test patients stay the same when training and validation trade places.
    order = np.random.default_rng(seed).permutation(len(ids))
    parts = np.split(order, np.cumsum(sizes[::-1])[:-1])[::-1]
    return [sorted(ids[i] for i in part) for part in parts]


def patient_folds(
    patients: Iterable[str], *, folds: int, seed: int = 0, kinds: Mapping[str, int] | None = None
) -> list[list[str]]:
    """Deal patients into cross-validation folds; each is in exactly one, and fold sizes differ by one at most.

    Args:
        patients: ids; repeats and order do not matter.
        folds: number of folds.
        seed: of the deal.
        kinds: of each patient, e.g. whether there is a finding, or its class. They are dealt apart, so that each fold
            has its share of each; classes of fewer patients than folds as in `stratified_split`.

    Raises:
        ValueError: fewer than two folds, or fewer patients than folds.
    """
    ids = sorted(set(patients))
    if not 2 <= folds <= len(ids):
        raise ValueError(f"folds must lie between 2 and the number of patients ({len(ids)}); got {folds}.")
    apart = _apart({p: (kinds or {}).get(p, 0) for p in ids}, least=folds)
    dealt = [partition_dataset(group, num_partitions=folds, shuffle=True, seed=seed) for group in apart]
    # The first folds get what is left over, of the second kind the last ones, of further kinds the smallest.
    parts = [list(chain(*some)) for some in zip(dealt[0], *(group[::-1] for group in dealt[1:2]), strict=True)]
    for group in dealt[2:]:
        for part, more in zip(sorted(parts, key=len), sorted(group, key=len, reverse=True), strict=True):
            part += more
    return [sorted(part) for part in parts]


def _apart(kinds: Mapping[str, int], *, least: int) -> list[list[str]]:
    """Patients of each kind, sorted; positive kinds of fewer than `least` join the most frequent positive one."""
    counts = Counter(kind for kind in kinds.values() if kind)
    usual = max(counts, key=lambda kind: (counts[kind], -kind), default=0)
    joined = {patient: usual if kind and counts[kind] < least else kind for patient, kind in kinds.items()}
    groups = [[p for p in sorted(joined) if joined[p] == kind] for kind in sorted(set(joined.values()))]
    return groups if min(map(len, groups), default=0) >= least else [sorted(joined)]


def matched_weights(
    cls: Sequence[int] | np.ndarray, positions: Sequence[float] | np.ndarray, *, bins: int = 10, floor: float = 0.05
) -> np.ndarray:
    """Sampling weights under which the position of a slice tells nothing about its label.

    Positives and negatives are drawn 1:1, positive classes in equal shares, and negatives (class 0) follow the
    positives' distribution over position bins. Without this a network can tell "middle of the head" from "top" and
    call it a tumor. Negatives in bins without positives share `floor` of the negatives' draws, equally. Positives
    in bins without negatives keep their weight: there is nothing to match them with.

    Args:
        cls: shape (slices,), class of each slice.
        positions: shape (slices,), position in the volume, 0 (lowest slice) to 1 (highest).
        bins: number of equal position bins.
        floor: share of negatives drawn from bins without positives, 0 to 1.

    Returns:
        Weights, shape (slices,), summing to 1, e.g. for `torch.utils.data.WeightedRandomSampler`.

    Raises:
        ValueError: shapes differ, positions outside [0, 1], or no positive or no negative slice.
    """
    label, where = np.asarray(cls), np.asarray(positions, dtype=float)
    if label.ndim != 1 or label.shape != where.shape:
        raise ValueError(f"cls and positions must be 1D and equally long; got {label.shape} and {where.shape}.")
    if not ((where >= 0) & (where <= 1)).all() or not 0 <= floor <= 1:
        raise ValueError("positions and floor must lie in [0, 1].")
    if not (label > 0).any() or not (label == 0).any():
        raise ValueError("cls needs at least one positive (> 0) and one negative (0) slice.")
    index = np.minimum((where * bins).astype(int), bins - 1)
    weights = np.zeros(len(label))
    grades = np.unique(label[label > 0])
    for grade in grades:
        weights[label == grade] = 0.5 / len(grades) / np.count_nonzero(label == grade)
    negative = label == 0
    available = np.bincount(index[negative], minlength=bins)
    of_positives = np.bincount(index[~negative], weights[~negative], minlength=bins) * (available > 0)
    lone = negative & (of_positives[index] == 0)
    if of_positives.any():
        rest = floor if lone.any() else 0.0
        target = 0.5 * (1 - rest) * of_positives / of_positives.sum()
        weights[negative] = target[index[negative]] / available[index[negative]]
    else:  # no bin holds both, so there is nothing to match
        rest = 1.0
    weights[lone] = 0.5 * rest / max(int(lone.sum()), 1)
    return weights


def stratified_weights(
    cases: Sequence[Mapping[str, Any]], positive: Sequence[bool], *, stratify_by: Sequence[str] = (), bins: int = 4
) -> np.ndarray:
    """Sampling weights under which neither a volume's stratum nor its patient tells anything about its label.

    Positives and negatives are drawn 1:1, and each from where the other comes from: if the healthy lungs are left
    ones, a network can tell left from right and be right. A stratum weighs as much as it has patients of the class
    that fewer have; strata with only one class weigh nothing. Within a stratum and class every patient weighs the
    same, however many volumes were cut from the scan.

    Args:
        cases: of each volume, with `patient`.
        positive: whether each volume holds a finding.
        stratify_by: keys of the cases whose values together are a stratum, e.g. `side`, see `stratum`; without any,
            all volumes are one.
        bins: of `stratum`.

    Returns:
        Weights, shape (volumes,).

    Raises:
        ValueError: lengths differ, no positives or no negatives, none in the same stratum, or a case lacks a key.
    """
    if len(positive) != len(cases):
        raise ValueError(f"got {len(positive)} labels for {len(cases)} volumes.")
    if all(positive) or not any(positive):
        raise ValueError("training needs volumes with and without a finding; the datalist's labels are all alike.")
    volumes = [
        (stratum(case, stratify_by, bins=bins), bool(label), patient_of(case))
        for case, label in zip(cases, positive, strict=True)
    ]
    # Patients of each class in each stratum, and volumes of each patient in it.
    members: dict[tuple, dict[str, int]] = {}
    for group, label, patient in volumes:
        counts = members.setdefault((group, label), {})
        counts[patient] = counts.get(patient, 0) + 1
    mass = {g: min(len(members[g, True]), len(members.get((g, False), ()))) for g, label in members if label}
    if not any(mass.values()):
        raise ValueError("no stratum holds both positives and negatives; use fewer strata.")
    return np.array(
        [mass.get(g, 0) / len(members[g, label]) / members[g, label][patient] for g, label, patient in volumes]
    )


def stratum(case: Mapping[str, Any], keys: Sequence[str], *, bins: int = 4) -> tuple:
    """A case's values of `keys`, e.g. `side`; its `position` (0 to 1) as one of `bins` bins.

    Raises:
        ValueError: the case lacks a key.
    """
    lacking = [key for key in keys if key not in case]
    if lacking:
        raise ValueError(f"case {case['case']!r} has no {lacking[0]!r} in the datalist, which `stratify_by` asks for.")
    return tuple(min(int(case[k] * bins), bins - 1) if k == "position" else case[k] for k in keys)
