"""MosMed as its owners publish it, with few and small studies, and what runs on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import nibabel as nib
import numpy as np

from common.commands.run import run_arguments
from tests.bundles.conftest import monai_bundle

SHAPE = (20, 20, 8)
AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])


def write_mosmed(root: Path, *, studies: int = 12, masks: int = 6) -> None:
    """`COVID19_1110`: every other study has a finding, and the first of these have a mask."""
    rng = np.random.default_rng(0)
    (root / "masks").mkdir(parents=True)
    for number in range(studies):
        ill = number % 2
        image, mask = rng.normal(-850, 30, SHAPE).astype(np.int16), np.zeros(SHAPE, np.uint8)
        if ill:
            x, y, z = rng.integers(3, (10, 10, 4))
            mask[x : x + 6, y : y + 6, z : z + 3] = 1
        image[mask > 0] += 700
        if ill and number < 2 * masks:
            nib.save(nib.Nifti1Image(mask, AFFINE), root / "masks" / f"study_{number:04d}_mask.nii.gz")
        folder = root / "studies" / f"CT-{ill}"
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"study_{number:04d}.nii.gz")


def run_with_modules(
    bundle: str, configs: Sequence[str], *, modules: Path, check: bool = True, **settings: object
) -> CompletedProcess[str]:
    """`run_bundle` of a bundle, with a folder of stand-ins for packages that are not installed, or have no weights."""
    arguments = run_arguments(bundle, list(configs), **{"progress": False} | settings)
    return monai_bundle(*arguments, check=check, environment={"PYTHONPATH": str(modules)})
