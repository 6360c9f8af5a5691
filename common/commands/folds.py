"""Cross-validation folds as files: `python -m common folds`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import SECTIONS, Case, kinds_of_patients, patient_folds, patient_of, stratified_split, write_datalist
from ..data.checks import check_cases
from ..data.matches import some
from ..data.splits import first_that, signs_of_patients
from ..files import PathLike, read_json
from .fit_minutes import cases_of

logger = logging.getLogger(__name__)


def folds(datalist: str, count: int = 5, seed: int = 0, keep: str | None = None) -> None:
    """Write `<datalist>_fold<k>.json` for cross-validation by patient: fold k is the test section.

    A sixth of the other patients validates, with yes and no among their labels. Patients with and without a finding are
    dealt apart where there are enough.

    Args:
        datalist: as `prepare` writes it; its own sections are dissolved.
        count: number of folds.
        seed: of the folds.
        keep: a section that is not dissolved, `test` say: its cases are in no fold.

    Example:
        `python -m common folds DIR/datalist.json --count 4`
    """
    for path in write_folds(datalist, Path(datalist).parent, count=count, seed=seed, keep=keep):
        content = read_json(path)
        print(f"{path}: " + ", ".join(f"{len(content[s])} {s}" for s in SECTIONS))
    if others := _of_other_folds(Path(datalist), count):
        logger.warning("of folds dealt before, whose test patients are tested in these, too: remove %s", some(others))


def _of_other_folds(datalist: Path, count: int) -> list[str]:
    """Files of the folds of a datalist that lie beside the first `count`."""
    stem = re.escape(datalist.stem)
    numbers = {path: re.fullmatch(rf"{stem}_fold(\d+)\.json", path.name) for path in sorted(datalist.parent.iterdir())}
    return [str(path) for path, number in numbers.items() if number and int(number[1]) >= count]


def write_folds(
    datalist: PathLike, output_dir: PathLike, *, count: int, seed: int = 0, keep: str | None = None
) -> list[Path]:
    """Write the files of `folds` into a folder of their own.

    Slices that `prepare --split paper` drew whatever patient they are of are dealt by patient: the mark goes.

    Args:
        datalist: as `prepare` writes it; its own sections are dissolved.
        output_dir: gets the files; paths in them stay relative to the same folder of the data.
        count: number of folds.
        seed: of the folds.
        keep: a section whose cases are in no fold.

    Returns:
        The files.

    Raises:
        ValueError: a split in place of a datalist, or no such section, or it is empty, or its patients are in other
            sections, too; or some cases are halves of scans, and some are not.
    """
    content = read_json(datalist)
    check_cases(content, str(datalist))
    everything = _dissolved(content, str(datalist), keep)
    if content.get("split") == "paper":
        del content["split"]
        everything = [{key: value for key, value in case.items() if key != "split"} for case in everything]
    content.pop("masked_section", None)  # its test part is a fold
    kinds, signs = kinds_of_patients(everything), signs_of_patients(everything)
    files = []
    for k, test in enumerate(patient_folds(kinds, folds=count, seed=seed, kinds=kinds)):
        others = {patient: kind for patient, kind in kinds.items() if patient not in test}
        training, validation = _with_both_labels(others, signs, seed=seed)
        parts = {"training": training, "validation": validation, "test": test}
        fold = content | {s: [c for c in everything if patient_of(c) in ids] for s, ids in parts.items()}
        files.append(Path(output_dir) / f"{Path(datalist).stem}_fold{k}.json")
        write_datalist(files[-1], fold | {"seed": seed})
    return files


def _dissolved(content: Mapping[str, Any], source: str, keep: str | None) -> list[Case]:
    """Cases of all sections but the one that is kept; refused where that cannot be, see `write_folds`."""
    filled = [section for section in SECTIONS if content.get(section)]
    if keep is not None and keep not in filled:
        raise ValueError(f"{source}: there is no section {keep!r} to keep; it has {filled}")
    if keep is not None and content.get("split") == "paper":
        raise ValueError(
            f"{source}: drawn by --split paper, so patients of {keep!r} are in other sections, too: leave out "
            "--keep, or prepare the data by patient"
        )
    cases = [case for section in filled if section != keep for case in content[section]]
    if len({"half" in case for case in cases}) > 1:
        raise ValueError(
            f"{source}: halves of scans and whole ones, which cannot teach together: list halves alone (prepare "
            "--halves … --fractions 0.8,0.2,0), the whole scans in another file, and name that by --scans"
        )
    return cases


def _with_both_labels(kinds: Mapping[str, int], signs: Mapping[str, set[bool]], *, seed: int) -> list[list[str]]:
    """Patients for training and validation, with yes and no in both where a draw has that.

    Few patients validate, and there may be some whose labels are all alike.
    """
    return first_that(
        lambda parts: all(len(set().union(*(signs[patient] for patient in part))) == 2 for part in parts),
        lambda number: stratified_split(kinds, fractions=(5 / 6, 1 / 6), seed=number),
        seed=seed,
    )


def scans_of_fold(scans: PathLike, fold: Path, *, sections: Sequence[str] = SECTIONS) -> Path:
    """Write the datalist of a fold of parts with the whole scans of the same patients in their place.

    Args:
        scans: datalist of the scans, whose own sections are dissolved.
        fold: as `write_folds` writes it.
        sections: which take scans; the others keep the parts.

    Returns:
        The file, `<fold>_scans.json`.

    Raises:
        ValueError: a scan of a patient who is in no section of the fold, or a patient of the fold without a scan.
    """
    parts, everything = read_json(fold), cases_of(read_json(scans))
    patients = {section: {patient_of(case) for case in parts[section]} for section in SECTIONS}
    with_parts, with_scans = set().union(*patients.values()), {patient_of(case) for case in everything}
    if unknown := sorted(with_scans - with_parts):
        raise ValueError(f"{scans}: patients {unknown} have no parts in {fold}; name them alike in both")
    if absent := sorted(with_parts - with_scans):
        raise ValueError(
            f"{scans}: patients {absent} of {fold} have no scan; name them alike in both, or list their scans, too"
        )
    whole = {section: [case for case in everything if patient_of(case) in patients[section]] for section in sections}
    path = fold.with_name(f"{fold.stem}_scans.json")
    write_datalist(path, parts | whole)
    return path
