"""Plain folders of cases: `<case>/<modality>.nii.gz`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ..data import Case, find_cases, slice_labels
from ..data.matches import some
from ..files import PathLike
from ..images import is_dicom

logger = logging.getLogger(__name__)


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
    skip_incomplete: bool = False,
) -> list[Case]:
    """Read a plain layout: `<case>/<modality>.nii.gz`, masks as `<case>/<label>.nii.gz`, or any glob pattern.

    Multiple sclerosis as `<patient>/flair.nii.gz` and `<patient>/lesion.nii.gz`: `label="lesion"`. With sessions,
    `<patient>/<session>/flair.nii.gz`: also `pattern="*/*/{}.nii.gz"`. Files paired by other names, as in the
    longitudinal challenge of ISBI 2015: `pattern="*/preprocessed/*_{}_pp.nii"`,
    `label_pattern="*/masks/*_mask1.nii"` (wildcards must stand for the same text, see `find_cases`).

    Args:
        root: folder that holds the case folders.
        modalities: file names without suffix; with one, `image` is a path, with more, a list in this order.
        label: name of the mask file; cases without it get neither `label` nor `cls`, and are named. `None`: masks are
            ignored.
        organ: name of an organ's mask file, given as `organ`; `None`: there is none.
        pattern: glob relative to `root`; `{}` stands for the modality, and for `label`.
        label_pattern: glob of the masks, where it differs from `pattern`.
        patient_separator: where given, the patient is its name before the first occurrence (`"P07_scan2"`, `"_"` →
            `"P07"`). The name is that of the first folder for which the pattern has a wildcard, so sessions share a
            patient, or else of the file (`"images/*.png"`).
        cls_per: one `cls` per axial slice, or one per volume: 1 where the mask is not empty.
        skip_incomplete: leave out cases that lack a modality or the organ, with a warning.

    Raises:
        FileNotFoundError: no case, or a case lacks a modality.
        ValueError: a mask is unreadable or not 3D, or an unknown `cls_per`.
    """
    if cls_per not in ("slice", "volume"):
        raise ValueError(f"cls_per must be 'slice' or 'volume'; got {cls_per!r}.")
    patterns = [pattern.format(modality) for modality in modalities]
    masks = (label_pattern or pattern.format(label)) if label else None
    organs = pattern.format(organ) if organ else None
    first = patterns[0] if len(patterns) == 1 else patterns
    cases = find_cases(root, first, label_pattern=masks, organ_pattern=organs, skip_incomplete=skip_incomplete)
    for case in tqdm(cases, desc="reading masks", unit="case", disable=None):
        image = Path(case["image"] if isinstance(case["image"], str) else case["image"][0])
        if patient_separator or not is_dicom(image):  # a DICOM series says itself whose it is
            name = _outermost(image.relative_to(Path(root).absolute()), patterns[0]) or case["case"]
            case["patient"] = name.split(patient_separator)[0] if patient_separator else name
        if "label" in case:
            labels = slice_labels(case["label"], case["image"])
            case["cls"] = labels if cls_per == "slice" else max(labels)
    without = [case["case"] for case in cases if masks and "label" not in case]
    if without:
        told = "%s: %d case(s) have no mask %r, and so no label: %s"
        logger.warning(told, root, len(without), masks, some(without))
    return cases


def _outermost(image: Path, pattern: str) -> str:
    """The first folder that the pattern does not name itself, or the file where it names all; empty without folders."""
    parts = pattern.split("/")[:-1]
    named = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    # After `**`, which stands for any number of folders, those that the pattern names are known by their names alone.
    folders = [part for part in image.parts[named:-1] if "**" not in parts or part not in parts]
    if folders:
        return folders[0]
    return image.name.split(".")[0] if any(not has_magic(part) for part in parts) else ""
