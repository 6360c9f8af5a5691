"""Data sets as their owners publish them, read into cases for a datalist: the table of adapters, and plain folders.

Each function returns cases as :func:`common.data.find_cases` does (absolute paths), with ``patient`` and with ``cls``:
one int per axial slice, inferior→superior, or one int for the volume. :data:`ADAPTERS` names them for
``python -m common prepare``. Masks, where there are any, derive ``cls`` and score; no training opens them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from .adapters_mri import BRATS_MODALITIES, KAGGLE_CHANNELS, brats2020, decathlon, kaggle_3m
from .adapters_parts import half_lungs, substacks
from .adapters_slides import BRACS_CLASSES, bracs, camelyon16
from .adapters_volumes import MOSMED_CATEGORIES, autopet, duke, mosmed
from .data import Case, PathLike, find_cases, slice_labels

__all__ = [
    "ADAPTERS",
    "BRACS_CLASSES",
    "BRATS_MODALITIES",
    "KAGGLE_CHANNELS",
    "Adapter",
    "autopet",
    "bracs",
    "brats2020",
    "camelyon16",
    "decathlon",
    "duke",
    "folder",
    "half_lungs",
    "kaggle_3m",
    "mosmed",
    "read_cases",
    "substacks",
]


def folder(
    root: PathLike,
    *,
    modalities: Sequence[str] = ("flair",),
    label: str | None = "mask",
    organ: str | None = None,
    pattern: str = "*/{}.nii.gz",
    label_pattern: str | None = None,
    patient_separator: str | None = None,
    cls_per: Literal["slice", "volume"] = "slice",
) -> list[Case]:
    """Read a plain layout: ``<case>/<modality>.nii.gz``, masks as ``<case>/<label>.nii.gz``, or any glob pattern.

    Multiple sclerosis as ``<patient>/flair.nii.gz`` and ``<patient>/lesion.nii.gz``: ``label="lesion"``. With sessions,
    ``<patient>/<session>/flair.nii.gz``: also ``pattern="*/*/{}.nii.gz"``. Files paired by other names, as in the
    longitudinal challenge of ISBI 2015: ``pattern="*/preprocessed/*_{}_pp.nii"``,
    ``label_pattern="*/masks/*_mask1.nii"`` (wildcards must stand for the same text, see ``find_cases``).

    Args:
        root: folder that holds the case folders.
        modalities: file names without suffix; with one, ``image`` is a path, with more, a list in this order.
        label: name of the mask file; cases without it get neither ``label`` nor ``cls``. ``None``: masks are ignored.
        organ: name of an organ's mask file, given as ``organ``; ``None``: there is none.
        pattern: glob relative to ``root``; ``{}`` stands for the modality, and for ``label``.
        label_pattern: glob of the masks, where it differs from ``pattern``.
        patient_separator: where given, the patient is its name before the first occurrence (``"P07_scan2"``, ``"_"`` →
            ``"P07"``). The name is that of the first folder below ``root``, so sessions share a patient.
        cls_per: one ``cls`` per axial slice, or one per volume: 1 where the mask is not empty.

    Raises:
        FileNotFoundError: no case, or a case lacks a modality.
        ValueError: a mask is unreadable or not 3D, or an unknown ``cls_per``.
    """
    if cls_per not in ("slice", "volume"):
        raise ValueError(f"cls_per must be 'slice' or 'volume'; got {cls_per!r}.")
    patterns = [pattern.format(modality) for modality in modalities]
    masks = (label_pattern or pattern.format(label)) if label else None
    organs = pattern.format(organ) if organ else None
    first = patterns[0] if len(patterns) == 1 else patterns
    cases = find_cases(root, first, label_pattern=masks, organ_pattern=organs)
    for case in tqdm(cases, desc="reading masks", unit="case", disable=None):
        image = case["image"] if isinstance(case["image"], str) else case["image"][0]
        below = Path(image).relative_to(Path(root).absolute()).parts
        name = below[0] if len(below) > 1 else case["case"]
        case["patient"] = name.split(patient_separator)[0] if patient_separator else name
        if "label" in case:
            labels = slice_labels(case["label"])
            case["cls"] = labels if cls_per == "slice" else max(labels)
    return cases


@dataclass(frozen=True)
class Adapter:
    """One row of the table.

    Attributes:
        read: function from ``root`` (and ``out_dir``, where it converts files) and options to cases.
        classes: names, the negative one first.
        modalities: names of the images of a case, by default.
    """

    read: Callable[..., list[Case]]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Keyword arguments of ``read`` beyond ``root`` and ``out_dir``, which say where files are."""
        fixed = self.read.keywords if isinstance(self.read, partial) else {}
        parameters = inspect.signature(self.read).parameters
        return {name: p for name, p in parameters.items() if name not in ("root", "out_dir", *fixed)}

    @property
    def converts(self) -> bool:
        """Whether it writes files of its own."""
        return "out_dir" in inspect.signature(self.read).parameters


ADAPTERS: dict[str, Adapter] = {
    "folder": Adapter(folder, ("none", "tumour"), ("flair",)),
    "brats2020": Adapter(brats2020, ("healthy", "LGG", "HGG"), BRATS_MODALITIES),
    "kaggle_3m": Adapter(kaggle_3m, ("none", "tumour"), ("flair",)),
    "decathlon_brain": Adapter(decathlon, ("none", "tumour"), ("FLAIR",)),
    "decathlon_prostate": Adapter(decathlon, ("none", "prostate"), ("ADC",)),
    "mosmed": Adapter(mosmed, ("none", "covid"), ("ct",)),
    "mosmed_severity": Adapter(partial(mosmed, severity=True), MOSMED_CATEGORIES, ("ct",)),
    "autopet": Adapter(autopet, ("none", "tumour"), ("SUV",)),
    "duke": Adapter(duke, ("none", "tumour"), ("post1",)),
    "substacks": Adapter(substacks, ("none", "tumour"), ("flair",)),
    "half_lungs": Adapter(half_lungs, ("none", "infection"), ("ct",)),
    "camelyon16": Adapter(camelyon16, ("none", "tumour"), ("HE",)),
    "bracs": Adapter(bracs, BRACS_CLASSES, ("HE",)),
}


def read_cases(
    adapter: str, root: PathLike, out_dir: PathLike | None = None, **options: Any
) -> tuple[list[Case], tuple[str, ...], tuple[str, ...]]:
    """Read a data set through an adapter of the table.

    Args:
        adapter: a key of :data:`ADAPTERS`.
        root: the data set.
        out_dir: where adapters that convert files write them.
        options: of the adapter's function.

    Returns:
        Cases, class names, and names of the modalities.

    Raises:
        ValueError: unknown adapter or option, or no ``out_dir`` for one that converts.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}; use one of {', '.join(ADAPTERS)}.")
    row = ADAPTERS[adapter]
    unknown = sorted(set(options) - set(row.options))
    if unknown:
        raise ValueError(f"{adapter} has no option {', '.join(unknown)}; it has {', '.join(row.options) or 'none'}.")
    if "modalities" in row.options:
        options.setdefault("modalities", row.modalities)
    if not row.converts:
        return row.read(root, **options), row.classes, tuple(options.get("modalities", row.modalities))
    if out_dir is None:
        raise ValueError(f"{adapter} writes files of its own: say where with --dataset_dir")
    return row.read(root, out_dir, **options), row.classes, tuple(options.get("modalities", row.modalities))
