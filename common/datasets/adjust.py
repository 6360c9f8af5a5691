"""Cases as other runs know them: patients, sections of another datalist, masks that a run wrote, fewer of one class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data import SECTIONS, Case, labels_slices, patient_of
from ..data.checks import named_sections
from ..files import PathLike, read_json

_MASKS = ("nii.gz", "png", "tif", "dcm")

logger = logging.getLogger(__name__)


def of_one_patient(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Cases of which those of some patients are of one: an adapter takes two scans of a patient for two patients.

    Args:
        cases: with `patient`.
        names: the patients, of whom the first one's name stays.

    Raises:
        ValueError: there is no such patient.

    Example:
        `of_one_patient(cases, ["P7", "P9"])`: what was P9's is P7's.
    """
    if unknown := sorted({*names} - {*map(patient_of, cases)}):
        raise ValueError(f"same_patient: no patient {', '.join(unknown)} among the cases, e.g. {cases[0]['patient']}.")
    return [case | ({"patient": names[0]} if patient_of(case) in names else {}) for case in cases]


def with_sections_of(cases: Sequence[Case], path: PathLike) -> list[Case]:
    """Cases with the key `section`: where a datalist has their patient. Those of other patients stay to be drawn.

    Args:
        cases: with `patient`.
        path: a datalist, or a file that lists patients by section: `{"training": ["P1", …], …}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, a patient is in two sections, or in another than his cases name already, or no
            patient of the cases is in one.
    """
    content = read_json(path)
    owner: dict[str, str] = {}
    for section in SECTIONS:
        for one in content.get(section, []) if isinstance(content, dict) else []:
            patient = str(one.get("patient") if isinstance(one, dict) else one)
            if owner.setdefault(patient, section) != section:
                raise ValueError(f"{path}: patient {patient!r} is in {owner[patient]!r} and in {section!r}.")
    others = sorted({patient_of(case) for case in cases if patient_of(case) not in owner})
    if len(others) == len({*map(patient_of, cases)}):
        raise ValueError(f"{path}: holds none of the patients, e.g. {others[0]!r}; it has {', '.join([*owner][:3])}, …")
    said = named_sections(cases)
    contrary = [f"{p!r} ({said[p]} there, {owner[p]} here)" for p in said if owner.get(p, said[p]) != said[p]]
    if contrary:
        raise ValueError(
            f"{path}: other sections than the data's own, e.g. in a column 'split', of {len(contrary)} patient(s), "
            f"e.g. {contrary[0]}: leave out --split, or that column"
        )
    if others:
        logger.warning("%s: without %d patient(s), who are drawn: %s", path, len(others), ", ".join(others[:10]))
    return [case | ({"section": owner[p]} if (p := patient_of(case)) in owner else {}) for case in cases]


def with_masks_of(cases: Sequence[Case], folder: PathLike) -> list[Case]:
    """Cases whose mask is the one that a run wrote, `<case>_seg.nii.gz`; labels stay. Those without have none.

    So a network learns, by `train_supervised.json`, from the masks of another one.

    Args:
        cases: with `case`.
        folder: the run's `output_dir`.

    Raises:
        FileNotFoundError: no case has a mask there.
    """
    files = {str(c["case"]): [Path(folder, f"{c['case']}_seg.{end}").absolute() for end in _MASKS] for c in cases}
    masks = {name: next((str(file) for file in some if file.is_file()), "") for name, some in files.items()}
    without = [name for name, mask in masks.items() if not mask]
    if len(without) == len(masks):
        raise FileNotFoundError(f"{folder}: no mask of any case, e.g. {without[0]}_seg.nii.gz; is it of a run?")
    if without:
        logger.warning("%s: no mask of %d case(s), e.g. %s", folder, len(without), ", ".join(without[:3]))
    plain = [{key: value for key, value in case.items() if key != "label"} for case in cases]
    return [case | ({"label": masks[case["case"]]} if masks[case["case"]] else {}) for case in plain]


def at_most(cases: Sequence[Case], counts: Mapping[str, int], classes: Sequence[str], *, seed: int = 0) -> list[Case]:
    """As many cases of some classes as are wanted, drawn at random; those of other classes all.

    A case with a label a slice is of the highest class among them. With one seed, of two draws the smaller one is
    part of the larger one.

    Args:
        cases: with `cls`, one for the case or one a slice.
        counts: number of cases by the name of their class.
        classes: names, the negative one first.
        seed: of the draw.

    Raises:
        ValueError: a name is not among `classes`, a number is none, or a case has the names of several classes.

    Example:
        `at_most(cases, {"pituitary": 60}, ("none", "meningioma", "pituitary"))` keeps 60 pituitary tumors.
    """
    for name, count in counts.items():
        if name not in classes or isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"at_most: {name!r}: {count!r}; expected a number for each of {', '.join(classes)}.")
    of_class: dict[str, list[str]] = {name: [] for name in classes}
    for case in sorted((case for case in cases if "cls" in case), key=lambda case: str(case["case"])):
        of_class[classes[_highest(case)]].append(str(case["case"]))
    dropped: set[str] = set()
    for name, count in counts.items():
        order = np.random.default_rng(seed).permutation(len(of_class[name]))
        dropped |= {of_class[name][k] for k in order[count:]}
    return [case for case in cases if case["case"] not in dropped]


def _highest(case: Case) -> int:
    """The class of a case: of its slices the highest."""
    if isinstance(case["cls"], list) and not labels_slices(case):
        raise ValueError(f"at_most: case {case['case']!r} has several labels at once: {case['cls']}.")
    return int(np.max(case["cls"]))
