"""Command line: `python -m common COMMAND`. Running a bundle itself is `python -m monai.bundle run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire

from .ablate import ablate
from .adapters import read_cases
from .benchmark import benchmark
from .cam_benchmark import benchmark_cam
from .crossvalidate import crossvalidate, names, write_folds
from .data import SECTIONS, make_datalist, write_datalist
from .demo import demo, phantom_dataset
from .export import export
from .features_command import features
from .radon_benchmark import benchmark_radon
from .verify import verify


def phantom(output_dir: str, cases: int = 24, seed: int = 0) -> None:
    """Write a small data set with known truth, and its datalist.

    Args:
        output_dir: gets `<case>/flair.nii.gz`, `<case>/mask.nii.gz` and `datalist.json`.
        cases: number of volumes.
        seed: of volumes and split.
    """
    print(phantom_dataset(output_dir, cases=cases, seed=seed))


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
            `half_lungs`, `camelyon16` or `bracs`: functions of `common.adapters`, which document layouts and options.
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


def folds(datalist: str, count: int = 5, seed: int = 0) -> None:
    """Write `<datalist>_fold<k>.json` for cross-validation by patient: fold k is the test section.

    A sixth of the other patients validates.

    Args:
        datalist: as `prepare` writes it; its own sections are dissolved.
        count: number of folds.
        seed: of the folds.
    """
    for path in write_folds(datalist, Path(datalist).parent, count=count, seed=seed):
        content = json.loads(path.read_text())
        print(f"{path}: " + ", ".join(f"{len(content[s])} {s}" for s in SECTIONS))


if __name__ == "__main__":
    commands = {"demo": demo, "phantom": phantom, "prepare": prepare, "folds": folds, "crossvalidate": crossvalidate}
    commands |= {"benchmark": benchmark, "benchmark_cam": benchmark_cam, "benchmark_radon": benchmark_radon}
    commands |= {"export": export, "verify": verify, "features": features, "ablate": ablate}
    fire.Fire(commands, name="python -m common")
