from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.files import read_json
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


def run_bundle(
    bundle: str, configs: Sequence[str], *, cwd: Path = REPOSITORY, check: bool = True, **overrides: object
) -> subprocess.CompletedProcess[str]:
    """`common.commands.run.run_bundle` in a forked process, without a progress bar; fails the test if the run fails.

    Args:
        bundle: name under `bundles/`.
        configs: file names in its `configs/`.
        cwd: where the command is typed.
        check: whether it must succeed.
        overrides: top-level keys.
    """
    from common.commands.run import run_arguments  # not above: pytest-xdist's controller reads this, and needs no MONAI

    return monai_bundle(*run_arguments(bundle, list(configs), **{"progress": False} | overrides), cwd=cwd, check=check)


def infer(
    bundle: str,
    data: Path,
    ckpt: Path,
    output: Path,
    /,
    *,
    names: Sequence[str] = ("inference", "phantom"),
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """`run_bundle` of a bundle's inference over the FLAIR volumes in `data`; options are its, and overrides."""
    settings = {"dataset_dir": data, "image_pattern": "*/flair.nii.gz", "output_dir": output, "ckpt": ckpt} | options
    return run_bundle(bundle, [f"{name}.json" for name in names], **settings)


def infer_beside_a_broken_scan(
    bundle: str, data: Path, cases: Sequence[str], ckpt: Path, folder: Path, **options: Any
) -> Path:
    """Inference from the bundle's root on copies of some cases and a truncated one; returns the folder of the output.

    The broken one must be named and fail the command; the others' files must lie on the grids of their scans.
    """
    for case in cases:
        shutil.copytree(data / case, folder / "data" / case)
    broken = folder / "data" / "broken" / "flair.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes((data / cases[0] / "flair.nii.gz").read_bytes()[:2000])
    out = folder / "out"
    done = infer(bundle, folder / "data", ckpt, out, cwd=REPOSITORY / "bundles" / bundle, check=False, **options)
    assert done.returncode != 0
    assert f"1 of {len(cases) + 1} cases failed" in done.stderr
    assert "broken" in done.stderr
    for case in cases:
        image = nib.load(data / case / "flair.nii.gz")
        for name in ("seg", "heatmap"):
            written = nib.load(out / f"{case}_{name}.nii.gz")
            assert written.shape == image.shape
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    return out


def volumes(folder: Path, kind: str = "seg") -> dict[str, np.ndarray]:
    """Arrays of every `<case>_<kind>.nii.gz` in a folder by case; fails the test if there is none."""
    end = f"_{kind}.nii.gz"
    found = {path.name.removesuffix(end): np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob(f"*{end}"))}
    assert found, f"{folder} has no *{end}"
    return found


def shuffled_copy(data: Path, target: Path) -> Path:
    """A phantom in which every mask's voxels lie elsewhere in their slices; its yes/no labels are taken from these."""
    from common.commands.prepare import prepare

    shutil.copytree(data, target)
    rng = np.random.default_rng(0)
    moved = 0
    for path in target.glob("*/mask.nii.gz"):
        image = nib.load(path)
        mask = np.asarray(image.dataobj)
        flat = rng.permuted(mask.reshape(-1, mask.shape[2]), axis=0)
        moved += int((flat != mask.reshape(flat.shape)).sum())
        nib.save(nib.Nifti1Image(flat.reshape(mask.shape), image.affine), path)
    assert moved > 0
    before = read_json(target / "datalist.json")
    prepare("folder", str(target), fractions=(0.5, 0.2, 0.3))
    assert read_json(target / "datalist.json") == before | {"name": target.name}
    return target
