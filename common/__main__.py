"""Command line: `python -m common COMMAND`. Running a bundle itself is `python -m monai.bundle run`."""

from __future__ import annotations

import json
from pathlib import Path

import fire

from . import adapters
from .benchmark import benchmark
from .data import make_datalist, write_datalist
from .demo import demo, phantom_dataset
from .splits import patient_folds, split_patients


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
    modalities: str | tuple[str, ...] = "flair",
    classes: tuple[str, ...] = ("none", "tumour"),
    fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
    seed: int = 0,
) -> None:
    """Read a data set, derive yes/no labels, split by patient and write the datalist.

    Args:
        adapter: `folder` (`<case>/<modality>.nii.gz`, `<case>/mask.nii.gz`), `brats2020` or `kaggle_3m`.
        root: the data set as its owners publish it.
        dataset_dir: what paths in the datalist are relative to; by default `root`. `kaggle_3m` converts its TIFF
            slices to NIfTI there, so it must be given.
        datalist: the file to write; by default `datalist.json` in `dataset_dir`.
        modalities: of `folder` and `kaggle_3m`, comma-separated.
        classes: names, class 0 first.
        fractions: of patients in training, validation, test.
        seed: of the split.
    """
    names = tuple(modalities.split(",")) if isinstance(modalities, str) else tuple(modalities)
    home = Path(dataset_dir or root)
    if adapter == "folder":
        cases = adapters.folder(root, modalities=names)
    elif adapter == "kaggle_3m":
        if dataset_dir is None:
            raise SystemExit("kaggle_3m converts slices to volumes: say where with --dataset_dir")
        cases = adapters.kaggle_3m(root, home, modalities=names)
    elif adapter == "brats2020":
        cases, names, classes = adapters.brats2020(root), adapters.BRATS_MODALITIES, ("healthy", "LGG", "HGG")
    else:
        raise SystemExit(f"unknown adapter {adapter!r}: use folder, brats2020 or kaggle_3m")
    content = make_datalist(
        cases, name=home.name, classes=classes, modalities=names, dataset_dir=home, fractions=fractions, seed=seed
    )
    path = Path(datalist) if datalist else home / "datalist.json"
    write_datalist(path, content)
    print(f"{path}: " + ", ".join(f"{len(content[s])} {s}" for s in ("training", "validation", "test")))


def folds(datalist: str, count: int = 5, seed: int = 0) -> None:
    """Write `<datalist>_fold<k>.json` for cross-validation by patient: fold k is the test section.

    A sixth of the other patients validates.

    Args:
        datalist: as `prepare` writes it; its own sections are dissolved.
        count: number of folds.
        seed: of the folds.
    """
    path = Path(datalist)
    content = json.loads(path.read_text())
    cases = [case for section in ("training", "validation", "test") for case in content.get(section, [])]
    patients = [case["patient"] for case in cases]
    for k, test in enumerate(patient_folds(patients, folds=count, seed=seed)):
        training, validation = split_patients(set(patients) - set(test), fractions=(5 / 6, 1 / 6), seed=seed)
        sections = {"training": training, "validation": validation, "test": test}
        fold = content | {s: [c for c in cases if c["patient"] in ids] for s, ids in sections.items()} | {"seed": seed}
        target = path.with_name(f"{path.stem}_fold{k}.json")
        write_datalist(target, fold)
        print(f"{target}: " + ", ".join(f"{len(ids)} {s}" for s, ids in sections.items()))


if __name__ == "__main__":
    commands = {"demo": demo, "phantom": phantom, "prepare": prepare, "folds": folds, "benchmark": benchmark}
    fire.Fire(commands, name="python -m common")
