"""Datalists: which image has which yes/no label, and who is in training, validation and test.

A datalist is one JSON file:

    {"name": str, "classes": ["none", "tumor"], "modalities": ["flair"], "seed": 0,
     "training": [case, ...], "validation": [case, ...], "test": [case, ...]}

and each case of it is:

    {"case": unique name, "patient": id, "image": path or list of paths (one per modality), "cls": label,
     "label": mask path (optional), "organ": path of an organ's mask (optional), "box": corners (optional)}

An image is a file, the folder of a DICOM series, or `<folder>/<SeriesInstanceUID>`.
`cls` is one int for the whole volume, or one int per axial slice, ordered inferior→superior, or, where several
classes may be present at once, the list of their names (`["ADH", "DCIS"]`; `[]`: none of them). Paths are relative
to `dataset_dir`. Training sees `cls` only; the mask derives it here and scores later.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import PathLike, write_json
from ..images import in_axes_of, read_mask
from ..images.dicom_files import has_series
from .checks import SECTIONS, check_cases, check_patients, named_sections
from .find import Case, check_names, find_cases, map_paths, with_paths_relative
from .splits import class_against_class, kinds_of_patients, signs_of_patients, split_patients, stratified_split

_HALVES = " Of an organ of two sides, healthy halves are negatives: prepare --halves."


def _check(datalist: dict[str, Any], source: str, dataset_dir: PathLike = "") -> None:
    """The checks of reading and writing: keys, types, class range, unique names, no patient in two sections."""
    check_cases(datalist, source)
    check_names((case for section in SECTIONS for case in datalist.get(section, [])), source)
    check_patients(datalist, dataset_dir=dataset_dir)


def label_of(case: Case) -> Any:
    """The `cls` of a case.

    Raises:
        ValueError: it has none.
    """
    if case.get("cls") is None:
        raise ValueError(f"case {case['case']!r} has no `cls` in the datalist: `python -m common prepare` derives it")
    return case["cls"]


def labels_slices(case: Case) -> bool:
    """Whether a case has one label a slice; else it has one, or the names of several, for the volume.

    Raises:
        ValueError: it has none.
    """
    cls = label_of(case)
    return isinstance(cls, list) and bool(cls) and not isinstance(cls[0], str)


def label_counts(cases: Iterable[Case], classes: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """How many volumes and how many slices are labeled with each class; cases without a label are left out."""
    volumes, slices = Counter[str](), Counter[str]()
    for case in cases:
        cls = case.get("cls")
        if isinstance(cls, int):
            volumes[classes[cls]] += 1
        elif cls is not None and labels_slices(case):
            slices.update(classes[c] for c in cls)
        elif cls is not None:
            volumes.update(cls or [classes[0]])
    return volumes, slices


def absent_classes(datalist: dict[str, Any], classes: Sequence[str]) -> dict[str, list[str]]:
    """Positive classes that some case has and none of a section, by section; sections without labels lack none."""
    present = {s: set().union(*label_counts(datalist.get(s) or [], classes)) for s in SECTIONS}
    anywhere = set().union(*present.values())
    return {s: [c for c in classes[1:] if c in anywhere - found] for s, found in present.items() if found}


def labels_in_words(cases: Sequence[Case], classes: Sequence[str], *, whole: str = "volumes") -> str:
    """Counts of cases, patients, and each class among volumes (named `whole`) and slices, as users read them."""
    volumes, slices = label_counts(cases, classes)
    parts = [f"{len(cases)} cases of {len({str(case['patient']) for case in cases})} patients"]
    for what, count in ((whole, volumes), ("slices", slices)):
        if count:
            parts.append(f"{what} " + ", ".join(f"{name} {count[name]}" for name in classes))
    return ", ".join(parts)


def multi_hot(cls: int | Sequence[str], classes: Sequence[str]) -> list[int]:
    """The label of a whole case as one 0 or 1 for each class but the negative one.

    Args:
        cls: a class index, 0 for the negative one, or the names of the classes that are present.
        classes: names, the negative one first.

    Returns:
        A list of length `len(classes) - 1`.

    Raises:
        ValueError: not a label of the whole case: one label per slice, an unknown name, an index out of range.
    """
    names = [classes[cls]] if isinstance(cls, int) and 0 <= cls < len(classes) else cls
    if isinstance(names, int | str) or not all(name in classes for name in names):
        raise ValueError(f"cls must be an index or a list of names of {list(classes)} for the whole case; got {cls!r}.")
    return [int(name in names) for name in classes[1:]]


def load_datalist(path: PathLike, section: str, *, dataset_dir: PathLike) -> list[Case]:
    """Read one section of a datalist, checked, with absolute paths.

    Args:
        path: the JSON file.
        section: `training`, `validation` or `test`.
        dataset_dir: folder that the paths in the file are relative to.

    Raises:
        FileNotFoundError: the datalist, or an image or mask that the section names, does not exist.
        ValueError: no valid JSON, a section absent or empty, a wrong `cls`, a name twice, a patient in two sections.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'{path} does not exist: `python -m common prepare` writes a datalist; without one (--datalist "") '
            "patterns find the cases"
        )
    try:
        datalist = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error}); write it with write_datalist.") from error
    if not isinstance(datalist, dict) or not datalist.get(section):
        filled = [s for s in SECTIONS if isinstance(datalist, dict) and datalist.get(s)]
        raise ValueError(f"{path}: the section {section!r} is absent or empty; sections with cases: {filled}.")
    root = Path(dataset_dir).absolute()
    _check(datalist, str(path), root)
    cases = [map_paths(case, lambda p: str(root / p)) for case in datalist[section]]
    files: list[str] = []
    for case in cases:
        map_paths(case, files.append)
    no_files = [file for file in files if not Path(file).is_file()]
    missing = [path for path, is_series in zip(no_files, has_series(no_files), strict=True) if not is_series]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(files)} files of {section!r} do not exist, e.g. {', '.join(missing[:3])}; "
            f"check dataset_dir ({root}); masks of halves are written by `prepare … --halves`."
        )
    return cases


def cases(
    dataset_dir: PathLike,
    image_pattern: str | Sequence[str],
    *,
    label_pattern: str | None = None,
    organ_pattern: str | None = None,
    datalist: PathLike | None = None,
    section: str = "test",
) -> list[Case]:
    """Cases of a run: one section of a datalist where there is one, else whatever the patterns find.

    Args:
        dataset_dir: folder of the data.
        image_pattern, label_pattern, organ_pattern: see `find_cases`; unused with a datalist.
        datalist: JSON file; `None` or an empty text takes the patterns instead.
        section: of the datalist; `training+validation` joins two.
    """
    if datalist:
        parts = [load_datalist(datalist, part, dataset_dir=dataset_dir) for part in section.split("+")]
        return [case for part in parts for case in part]
    return find_cases(dataset_dir, image_pattern, label_pattern=label_pattern, organ_pattern=organ_pattern)


def write_datalist(path: PathLike, datalist: dict[str, Any]) -> None:
    """Check a datalist and write it as JSON, atomically.

    Raises:
        ValueError: no training cases, a key missing, a wrong `cls`, a name twice, a patient in two sections.
    """
    if not datalist.get("training"):
        raise ValueError(f"{path}: the section 'training' is absent or empty; nothing could be learned from it.")
    _check(datalist, str(path))
    write_json(path, datalist)


def slice_labels(mask: PathLike, image: PathLike | Sequence[PathLike], *, class_if_positive: int = 1) -> list[int]:
    """One label per axial slice of an image, inferior→superior, from its mask.

    DICOM series without positions count from feet to head, as `dicom_geometry` `assume_axial` has them.

    Args:
        mask: a 3D file on the image's grid, its axes in any order; voxels > 0 are the finding.
        image: the file that is trained on, or the files of its modalities: the slices are those of the first.
        class_if_positive: the label (e.g. the tumor grade) of a slice that holds such a voxel; others get 0.

    Raises:
        ValueError: a file cannot be decoded, the mask is not 3D, or both do not lie on one grid.
    """
    first = image if isinstance(image, str | os.PathLike) else image[0]
    # Of series without positions the slices have an order at least; to train on them, `dicom_geometry` must say so.
    volume = read_mask(mask, first, dicom_geometry="assume_axial")
    upright, _ = in_axes_of(volume.array, volume.affine, np.eye(4))
    positive: np.ndarray = np.any(upright > 0, axis=(0, 1))
    return [class_if_positive * int(z) for z in positive]


def make_datalist(
    cases: Sequence[Case],
    *,
    name: str,
    classes: Sequence[str],
    modalities: Sequence[str],
    dataset_dir: PathLike,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    seed: int = 0,
    for_scoring: bool = False,
    stratify: bool = False,
) -> dict[str, Any]:
    """Split cases by patient and assemble a datalist with paths relative to `dataset_dir`.

    Cases with the key `section` go there, with all others of their patient.

    Args:
        cases: cases with absolute paths, `patient` and `cls`, as adapters return them.
        name: name of the data set.
        classes: class names; index 0 is the negative one.
        modalities: names of the images of a case, in their order.
        dataset_dir: folder that paths are made relative to.
        fractions: shares of training, validation and test.
        seed: seed of the split, recorded in the datalist.
        for_scoring: nothing will be trained on these cases, so they need not hold negatives.
        stratify: split patients with and without a positive label apart, see `stratified_split`, so that each section
            has its share of both; one without positives or negatives is an error then. Where nothing is negative and
            there are several classes, patients of each are split apart in any case.

    Raises:
        ValueError: a case has another number of images than `modalities`, a patient's cases name two sections, or
            training (with `stratify` any section) lacks positives or negatives.

    Warns:
        UserWarning: validation or test lacks positives or negatives, so that some scores there are undefined.
    """
    for case in cases:
        if np.size(case["image"]) != len(modalities):
            raise ValueError(f"case {case['case']!r}: {np.size(case['image'])} image(s), but modalities={modalities}.")
    root = Path(dataset_dir).absolute()
    relative = [with_paths_relative(case, root) for case in cases]
    datalist: dict[str, Any] = {"name": name, "classes": list(classes), "modalities": list(modalities), "seed": seed}
    if np.shape(fractions) != (len(SECTIONS),):
        raise ValueError(f"fractions must be three numbers, for {', '.join(SECTIONS)}; got {fractions}.")
    against = class_against_class(cases)
    drawn = _sections_of_patients(cases, apart=stratify or bool(against), fractions=fractions, seed=seed)
    for section in SECTIONS:
        own = [case for case in relative if drawn[str(case["patient"])] == section]
        datalist[section] = [{key: value for key, value in case.items() if key != "section"} for case in own]
    _check(datalist, name, root)
    if not for_scoring and not against:
        _check_signs(datalist, int(np.count_nonzero(fractions)), stratify=stratify)
    if not for_scoring and len(classes) > 2:
        _check_classes(datalist, stratify=stratify)
    return datalist


def _sections_of_patients(cases: Sequence[Case], *, apart: bool, **draw: Any) -> dict[str, str]:
    """The section of each patient: that of his cases where they have one, else a drawn one."""
    fixed = {patient: SECTIONS.index(section) for patient, section in named_sections(cases).items()}
    if apart:
        parts = stratified_split(kinds_of_patients(cases), fixed=fixed, **draw)
    else:  # a section that some cases have moves no others
        parts = split_patients([str(case["patient"]) for case in cases], **draw)
    drawn = {patient: k for k, patients in enumerate(parts) for patient in patients} | fixed
    return {patient: SECTIONS[k] for patient, k in drawn.items()}


def _check_signs(datalist: dict[str, Any], sections: int, *, stratify: bool) -> None:
    """Refuse a training section (with `stratify` any) without positives or negatives; warn of another."""
    cases = [case for section in SECTIONS for case in datalist[section]]
    signs = signs_of_patients(cases).values()
    positive, negative = (sum(sign in found for found in signs) for sign in (True, False))
    counts = (
        f"of {len(signs)} patients {positive} have positive labels and {negative} negative ones, and each of "
        f"{sections} sections needs one of both: add cases, choose other fractions (0 leaves a section out) or "
        "another seed."
    )
    halves = "" if any("half" in case for case in cases) else _HALVES
    for section in filter(datalist.get, SECTIONS):
        found = set().union(*signs_of_patients(datalist[section]).values())
        for sign, word, more in ((True, "positive", ""), (False, "negative", halves)):
            message = f"{datalist['name']}: {section!r} holds no {word} label; {counts}{more}"
            if sign not in found:
                _refuse_or_warn(message, refuse=stratify or section == "training")


def _check_classes(datalist: dict[str, Any], *, stratify: bool) -> None:
    """Warn of a section without a class that another has; with `stratify`, refuse it for training."""
    for section, absent in absent_classes(datalist, datalist["classes"]).items():
        message = f"{datalist['name']}: {section!r} holds no {' and no '.join(absent)}, which other sections do"
        refuse = stratify and section == "training"
        if absent:
            more = ": nothing can be learned of it. Add cases, or choose another seed." if refuse else ""
            _refuse_or_warn(message + more, refuse=refuse)


def _refuse_or_warn(message: str, *, refuse: bool) -> None:
    if refuse:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)  # of who calls `make_datalist`
