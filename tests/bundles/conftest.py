from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.commands.run import run_arguments
from tests.running import REPOSITORY, run_module


def load_script(bundle: str, name: str) -> ModuleType:
    """`bundles/<bundle>/scripts/<name>.py` in a package of its own name: two bundles' `scripts` must not meet."""
    package = f"{bundle}_scripts"
    if package not in sys.modules:
        folder = REPOSITORY / "bundles" / bundle / "scripts"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def monai_bundle(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle ARGUMENTS`, output captured; fails the test if the command fails and `check` is set.

    Options are those of `tests.running.Running`.
    """
    done = run_module("monai.bundle", *arguments, **options)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def run_bundle(bundle: str, configs: Sequence[str], **overrides: object) -> None:
    """`common.commands.run.run_bundle` in a forked process, without a progress bar; fails the test if the run fails."""
    monai_bundle(*run_arguments(bundle, list(configs), **{"progress": False} | overrides))


def infer(
    bundle: str,
    data: Path,
    ckpt: Path,
    output: Path,
    /,
    *,
    names: Sequence[str] = ("inference", "phantom"),
    cwd: Path = REPOSITORY,
    check: bool = True,
    **overrides: str,
) -> subprocess.CompletedProcess:
    """`monai.bundle run` of a bundle's inference over `data`, from the repository's root or, by `cwd`, the bundle's."""
    configs = REPOSITORY / "bundles" / bundle / "configs"
    files = [str((configs / f"{name}.json").relative_to(cwd)) for name in names]
    settings = {"dataset_dir": data, "image_pattern": "*/flair.nii.gz", "output_dir": output, "ckpt": ckpt}
    settings |= {"progress": "False"} | overrides
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return monai_bundle("run", "--config_file", str(files), *flags, cwd=cwd, check=check)


def shuffle_within_slices(path: Path) -> None:
    """Put every voxel of a mask elsewhere in its slice: the labels of slices and volume stay."""
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    rng = np.random.default_rng(0)
    for z in range(mask.shape[2]):
        mask[..., z] = rng.permutation(mask[..., z].ravel()).reshape(mask.shape[:2])
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
