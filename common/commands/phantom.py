"""A data set with known truth: `python -m common phantom`."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data import SECTIONS, make_datalist, write_datalist
from ..datasets import folder, write_phantom
from ..datasets.phantom import MODALITIES


def phantom(
    output_dir: str, cases: int = 24, seed: int = 0, healthy_fraction: float = 0.15, kind: str = "plain"
) -> None:
    """Write a small data set with known truth, and its datalist.

    Args:
        output_dir: gets `<case>/flair.nii.gz`, `<case>/mask.nii.gz` and `datalist.json`.
        cases: number of volumes.
        seed: of volumes and split.
        healthy_fraction: share of volumes without a lesion.
        kind: `plain`, whose bright lesions a threshold finds, or `clinic`, where it takes learning: bodies as bright
            in every head, lesions partly as dark as brain, two scanners.

    Example:
        `python -m common phantom DIR --cases 40`
    """
    print(phantom_dataset(output_dir, cases=cases, seed=seed, healthy_fraction=healthy_fraction, kind=kind))


def phantom_dataset(
    output_dir: str | Path,
    *,
    cases: int = 24,
    seed: int = 0,
    healthy_fraction: float = 0.15,
    kind: str = "plain",
    modalities: int = 1,
) -> Path:
    """Write the phantom and its datalist (half training, a fifth validation, the rest test); returns the folder.

    Of `clinic` each section holds its share of the healthy; of others, too, where one would hold nothing else. Of
    several modalities a case has an image each, in the order of `common.datasets.phantom.MODALITIES`.

    Raises:
        ValueError: fewer cases than sections, before anything is written.
    """
    if cases < len(SECTIONS):
        raise ValueError(f"--cases: at least {len(SECTIONS)}, one for each section, got {cases}")
    output_dir = Path(output_dir)
    names = [*MODALITIES][:modalities]
    options: dict[str, Any] = {"healthy_fraction": healthy_fraction, "kind": kind, "modalities": modalities}
    write_phantom(output_dir, cases=cases, seed=seed, **options)
    found = folder(output_dir, modalities=names)
    draw = partial(
        make_datalist,
        found,
        name="phantom",
        classes=["none", "tumor"],
        modalities=names,
        dataset_dir=output_dir,
        fractions=(0.5, 0.2, 0.3),
        seed=seed,
    )
    if kind == "clinic" or sum(np.max(case["cls"]) > 0 for case in found) < len(SECTIONS):
        datalist = draw(stratify=kind == "clinic")
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                datalist = draw(stratify=False)
        except (UserWarning, ValueError):  # a section would hold no lesion
            datalist = draw(stratify=True)
    write_datalist(output_dir / "datalist.json", datalist)
    return output_dir
