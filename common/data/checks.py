"""Is a datalist one? Types and keys, for those that were written by hand, and no patient in two sections."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..files import PathLike, would_run
from .splits import patient_of

SECTIONS = ("training", "validation", "test")


def check_cases(datalist: dict[str, Any], source: str) -> None:
    """Refuse a datalist whose classes or cases are not what they should be.

    Args:
        datalist: see `common.data.datalist`.
        source: its file, for messages.

    Raises:
        ValueError: naming section, case and key.
    """
    if any(cases and _lists(str, cases) for cases in map(datalist.get, SECTIONS)):
        raise ValueError(
            f"{source}: a split, which names who is in which section, and no datalist; this makes one of it: python -m "
            f"common prepare folder DIR --split {source} --datalist OUT (or another data set than `folder`)"
        )
    classes = datalist.get("classes")
    if not isinstance(classes, list) or len(classes) < 2:
        raise ValueError(f"{source}: 'classes' must list two or more names, the negative one first; got {classes!r}.")
    for key, name in [(k, name) for k in ("classes", "modalities") for name in datalist.get(k) or ()]:
        if would_run(name):  # `fit` writes them into configs, which would run, or look them up
            raise ValueError(f"{source}: {key}: a name cannot begin with '$', '@' or '%'; rename {name!r}.")
    for section in SECTIONS:
        cases = datalist.get(section, [])
        if not _lists(dict, cases):
            raise ValueError(f"{source}: {section!r} must be a list of cases, each a dict; got {str(cases)[:60]}.")
        for case in cases:
            _check_case(case, section, classes, source)


def _check_case(case: dict[str, Any], section: str, classes: Sequence[str], source: str) -> None:
    needed = ("case", "patient", "image", *(("cls",) if section == "training" else ()))
    lacking = [key for key in needed if key not in case]
    if lacking:
        unlabeled = ": a training needs the label of each case; add it, or its mask" if "cls" in lacking else ""
        raise ValueError(f"{source}: case {case.get('case', case)!r} of {section!r} lacks {lacking}{unlabeled}.")
    for key, value in case.items():
        if expected := _mistyped(key, value):
            raise ValueError(f"{source}: case {case['case']!r}: {key} must be {expected}; got {value!r}.")
    if "cls" in case and not _is_label(case["cls"], classes):
        raise ValueError(
            f"{source}: case {case['case']!r}: cls must be an int, or one int per slice, from 0 to "
            f"{len(classes) - 1} ({classes}), or a list of names among {classes[1:]}; got {case['cls']!r}."
        )


def _lists(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _mistyped(key: str, value: Any) -> str:
    """What a case's value should be; empty where it is, or may be anything."""
    if key == "image" and isinstance(value, list):
        return "" if value and _lists(str, value) else "a path, or one a modality"
    if key in ("label", "organ") and value is None:
        return ""
    if key == "patient" and isinstance(value, int):
        return ""
    return "a text" if key in ("case", "patient", "image", "label", "organ") and not isinstance(value, str) else ""


def _is_label(cls: Any, classes: Sequence[str]) -> bool:
    values = cls if isinstance(cls, list) else [cls]
    if isinstance(cls, list) and any(isinstance(c, str) for c in cls):
        return all(c in classes[1:] for c in cls) and len(set(cls)) == len(cls)
    return all(isinstance(c, int) and 0 <= c < len(classes) for c in values)


def named_sections(cases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The section of each patient whose cases name one, in their key `section`.

    Raises:
        ValueError: a patient's cases name two.
    """
    named: dict[str, str] = {}
    for case in cases:
        section = case.get("section")
        if section and (first := named.setdefault(patient_of(case), section)) != section:
            raise ValueError(
                f"patient {case['patient']!r} is to go to {first!r} and to {section!r} (case {case['case']!r}); all "
                "cases of a patient belong in one section."
            )
    return named


def check_patients(datalist: dict[str, Any], *, dataset_dir: PathLike = "") -> None:
    """Refuse a datalist in which one patient, or one image, is in two sections: scores would be of memory, not skill.

    A patient may be where slices are drawn on purpose, as `prepare --split paper` does: `"split": "paper"`.

    Args:
        datalist: see `common.data.datalist`.
        dataset_dir: folder that paths are relative to; without it one image is known again by like paths alone.

    Raises:
        ValueError: naming the patient, or the image, and the sections.
    """
    seen: dict[str, str] = {}
    images: dict[str, str] = {}
    for section in SECTIONS:
        for case in datalist.get(section, []):
            first = seen.setdefault(patient_of(case), section)
            if first != section and datalist.get("split") != "paper":
                raise ValueError(
                    f"patient {case['patient']!r} is in {first!r} and in {section!r} (case {case['case']!r}); "
                    "all cases of a patient belong in one section."
                )
            paths = case.get("image") or []
            for path in paths if isinstance(paths, list) else [paths]:
                place = os.path.normpath(os.path.join(dataset_dir, path))
                if (first := images.setdefault(place, section)) != section:
                    raise ValueError(f"the image {path} is in {first!r} and in {section!r}; it belongs in one section.")
