"""A datalist from a data set: `python -m common prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import SECTIONS, make_datalist, write_datalist
from ..datasets import read_cases
from .run import names


def prepare(
    adapter: str,
    root: str,
    *,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    classes: str | tuple[str, ...] | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
    seed: int = 0,
    for_scoring: bool = False,
    **options: Any,
) -> None:
    """Read a data set, derive yes/no labels, split by patient and write the datalist.

    Args:
        adapter: `folder` (`<case>/<modality>.nii.gz`, `<case>/mask.nii.gz`), `brats2020`, `kaggle_3m`,
            `decathlon_brain`, `decathlon_prostate`, `mosmed`, `mosmed_severity`, `autopet`, `duke`, `substacks`,
            `half_lungs`, `camelyon16` or `bracs`: functions of `common.datasets`, which document layouts and options.
        root: the data set as its owners publish it.
        dataset_dir: what paths in the datalist are relative to; by default `root`. Adapters that write files of
            their own (converted slices, parts of volumes) write them there, so it must be given.
        datalist: the file to write; by default `datalist.json` in `dataset_dir`.
        classes: names, class 0 first; by default the adapter's.
        fractions: of patients in training, validation, test.
        seed: of the split.
        for_scoring: thresholds will be chosen and masks scored on these cases, nothing will be trained: they need not
            hold negatives.
        options: of the adapter, e.g. `--modalities flair,t1ce`, `--label lesion`, `--min_slices 8`.
    """
    if "modalities" in options:
        options["modalities"] = names(options["modalities"])
    try:
        cases, default_classes, modalities = read_cases(adapter, root, dataset_dir, **options)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(str(error)) from error
    home = Path(dataset_dir or root)
    fixed = {case["patient"]: case.pop("section") for case in cases if "section" in case}
    content = make_datalist(
        cases,
        name=home.name,
        classes=names(classes) if classes else default_classes,
        modalities=modalities,
        dataset_dir=home,
        fractions=fractions,
        seed=seed,
        for_scoring=for_scoring,
    )
    drawn = [(section, case) for section in SECTIONS for case in content[section]]
    for section in SECTIONS:
        content[section] = [case for part, case in drawn if fixed.get(case["patient"], part) == section]
    path = Path(datalist) if datalist else home / "datalist.json"
    write_datalist(path, content)
    print(f"{path}: " + ", ".join(f"{len(content[s])} {s}" for s in SECTIONS))
