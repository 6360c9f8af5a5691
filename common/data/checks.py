"""Is a datalist one? Types and keys, for those that were written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_cases(datalist: dict[str, Any], source: str, sections: Sequence[str]) -> None:
    """Refuse a datalist whose classes or cases are not what they should be.

    Args:
        datalist: see `common.data.datalist`.
        source: its file, for messages.
        sections: which of its keys hold cases; the first is trained on.

    Raises:
        ValueError: naming section, case and key.
    """
    classes = datalist.get("classes")
    listed = [datalist.get(section) for section in sections]
    if any(isinstance(cases, list) and cases and all(isinstance(case, str) for case in cases) for cases in listed):
        raise ValueError(
            f"{source}: a split, which names who is in which section, and no datalist; this makes one of it: python -m "
            f"common prepare folder DIR --split {source} --datalist OUT (or another data set than `folder`)"
        )
    if not isinstance(classes, list) or len(classes) < 2:
        raise ValueError(f"{source}: 'classes' must list two or more names, the negative one first; got {classes!r}.")
    for section in sections:
        cases = datalist.get(section, [])
        if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
            raise ValueError(f"{source}: {section!r} must be a list of cases, each a dict; got {str(cases)[:60]}.")
        for case in cases:
            needed = ("case", "patient", "image", *(("cls",) if section == sections[0] else ()))
            lacking = [key for key in needed if key not in case]
            if lacking:
                raise ValueError(f"{source}: case {case.get('case', case)!r} of {section!r} lacks {lacking}.")
            for key, value in case.items():
                if expected := _mistyped(key, value):
                    raise ValueError(f"{source}: case {case['case']!r}: {key} must be {expected}; got {value!r}.")
            if "cls" in case and not _is_label(case["cls"], classes):
                raise ValueError(
                    f"{source}: case {case['case']!r}: cls must be an int, or one int per slice, from 0 to "
                    f"{len(classes) - 1} ({classes}), or a list of names among {classes[1:]}; got {case['cls']!r}."
                )


def _mistyped(key: str, value: Any) -> str:
    """What a case's value should be; empty where it is, or may be anything."""
    if key == "image" and isinstance(value, list):
        return "" if value and all(isinstance(path, str) for path in value) else "a path, or one a modality"
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
