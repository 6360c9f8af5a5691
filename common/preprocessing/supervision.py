"""What weights learned from, for whoever reads their figures: labels of what, and which masks, if any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..checkpoint import read_beside
from ..data import Case, labels_in_words, labels_slices
from ..files import PathLike, file_digest

Source = Literal["labels", "pseudo_masks", "masks"]


def supervision_of(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    validation: Sequence[Case] = (),
    learns_from: Source = "labels",
    teacher_ckpt: PathLike | Sequence[PathLike] | None = None,
    unit: str = "volumes",
) -> dict[str, Any]:
    """What a training is told, as it is kept beside its weights under `trained_on`.

    Args:
        cases: of the training.
        classes: names, the negative one first.
        validation: cases that validate after an epoch, by their labels.
        learns_from: `labels`; `pseudo_masks`, which an earlier network drew; or `masks` of these very cases.
        teacher_ckpt: weights of that network, or of those that drew together.
        unit: what a case is where it has one label.

    Returns:
        `labels`: of what; `training` and `validation`: cases, patients and labels in words; `masks`: which were opened
        to train; for pseudo-masks `teacher`: `sha256` of its weights, and what lies beside them, its own `trained_on`
        and `chosen_from`; a list of these where there are several.

    Raises:
        ValueError: an unknown source.

    Example:
        >>> cases = [{"case": "p1", "patient": "p1", "cls": [0, 1, 1]}]
        >>> told = supervision_of(cases, classes=["none", "tumor"])
        >>> told["labels"], told["training"], told["masks"]
        ('slices', '1 cases of 1 patients, slices none 1, tumor 2', 'none')
    """
    masks = {"labels": "none", "pseudo_masks": "none", "masks": "those of its own cases"}
    if learns_from not in masks:
        raise ValueError(f"learns_from must be one of {', '.join(masks)}; got {learns_from!r}")
    of_slices = [labels_slices(case) for case in cases]
    kinds = [name for name, found in (("slices", any(of_slices)), (unit, not all(of_slices))) if found]
    told: dict[str, Any] = {
        "labels": " and ".join(kinds),
        "training": labels_in_words(cases, classes),
        "validation": labels_in_words(validation, classes) if validation else "none",
        "masks": masks[learns_from],
    }
    if learns_from == "pseudo_masks" and teacher_ckpt is not None:
        if isinstance(teacher_ckpt, (str, os.PathLike)):
            told["teacher"] = _teacher(teacher_ckpt)
        else:
            told["teacher"] = [_teacher(ckpt) for ckpt in teacher_ckpt]
    return told


def _teacher(ckpt: PathLike) -> dict[str, Any]:
    beside = read_beside(ckpt)
    own = {"sha256": file_digest(ckpt)} if Path(ckpt).is_file() else {}
    return own | {key: beside[key] for key in ("trained_on", "chosen_from") if key in beside}
