from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


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


def monai_bundle(*arguments: str, cwd: Path = REPOSITORY, check: bool = True) -> subprocess.CompletedProcess:
    """`python -m monai.bundle ARGUMENTS` in `cwd`, output captured."""
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


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
