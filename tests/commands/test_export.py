"""Zips that run where this project is not: in an environment with the packages of `metadata.json` and no others."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from packaging.requirements import Requirement

from common.commands.export import bundle_files, common_modules, export, export_bundle, third_party, write_zip
from common.commands.phantom import phantom_dataset
from common.commands.run import BUNDLES
from common.datasets import write_phantom
from tests.commands.there import Interpreters, There, environment
from tests.running import run_code

NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/models/model.pt"))
RUN, TRAIN = "insight_ct", "gp_unet_brats"
MONAI_BUNDLE = ("torch", "monai", "numpy", "fire")  # what `python -m monai.bundle` needs, whatever the bundle


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    return {name: export_bundle(BUNDLES / name, folder) for name in NAMES}


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    """One phantom case, small enough for every bundle to take seconds."""
    folder = tmp_path_factory.mktemp("data")
    write_phantom(folder, cases=1, shape=(32, 32, 8), spacing=(4.0, 4.0, 12.0), healthy_fraction=0.0)
    return folder


@pytest.fixture(scope="module")
def installed(zips, tmp_path_factory) -> Iterator[Callable[[str], There]]:
    """`installed(name)`: a python with what the metadata name, in a folder that holds nothing but the bundle.

    Another package `common` is in the way there. Bundles whose metadata name the same packages have one python.
    """
    pythons: dict[frozenset[str], Interpreters] = {}

    @cache
    def install(name: str) -> There:
        folder = tmp_path_factory.mktemp(name)
        metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
        packages = frozenset([*MONAI_BUNDLE, *metadata["required_packages_version"]])
        if packages not in pythons:
            pythons[packages] = Interpreters(environment(folder / "env", packages))
        there = There(pythons[packages], folder / "empty")
        (there.place / "common").mkdir(parents=True)
        (there.place / "common" / "__init__.py").write_text("raise RuntimeError('this is another common')")
        assert "No module named" in there.call("-P", "-c", "import common.data").stderr
        shutil.unpack_archive(zips[name], there.place)
        return there

    yield install
    for python in pythons.values():
        python.close()


def run(there: There, name: str, *configs: str, **overrides: object) -> None:
    """`python -m monai.bundle run` of a bundle there."""
    files = [f"{name}/configs/{config}.json" for config in configs]
    settings = {"config_file": files, "logging_file": f"{name}/configs/logging.conf"} | overrides
    flags = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    there.fork("-m", "monai.bundle", "run", *flags)


@pytest.fixture(scope="module")
def inferred(installed, head) -> Path:
    """What the inference of `RUN` wrote there."""
    there = installed(RUN)
    run(there, RUN, "inference", output_dir="out", dataset_dir=head, **quick())
    return there.place / "out"


def test_zip_runs_from_an_empty_folder_with_only_the_packages_that_its_metadata_names(inferred, head):
    image, mask = nib.load(head / "phantom_000" / "flair.nii.gz"), nib.load(inferred / "phantom_000_seg.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    with open(inferred / "predictions.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["phantom_000"]


def test_monai_downloads_the_zip_there(installed, zips):
    there = installed(RUN)
    source = ("--name", RUN, "--url", zips[RUN].as_uri(), "--bundle_dir", "downloaded")
    there.fork("-m", "monai.bundle", "download", *source)
    with zipfile.ZipFile(zips[RUN]) as archive:
        assert all(
            (there.place / "downloaded" / name).read_bytes() == archive.read(name) for name in archive.namelist()
        )


def test_python_example_of_the_readme_writes_what_the_command_writes(inferred, installed, head):
    there = installed(RUN)
    (code,) = re.findall(r"```python\n(.*?)```", (there.place / RUN / "docs" / "README.md").read_text(), re.DOTALL)
    options = ", ".join(f"{key}={value!r}" for key, value in quick().items())
    for old, new in {"bundles/": "", '"DIR"': f"{str(head)!r}, {options}", '"OUT"': "'by_example'"}.items():
        assert old in code
        code = code.replace(old, new)
    there.fork("-c", code)
    for kind in ("seg", "heatmap"):
        files = (folder / f"phantom_000_{kind}.nii.gz" for folder in (inferred, there.place / "by_example"))
        one, other = map(nib.load, files)
        np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())


def test_zip_trains_there_too_and_its_new_weights_make_masks(installed, head, tmp_path):
    there = installed(TRAIN)
    data = phantom_dataset(tmp_path, cases=10)
    options: dict[str, object] = {"device": "cpu", "progress": False}
    run(there, TRAIN, "train", "phantom", dataset_dir=data, output_dir="training", max_epochs=1, **options)
    with open(there.place / "training" / "training_log.csv", encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    options |= {"dataset_dir": head, "image_pattern": "*/flair.nii.gz", "ckpt": "training/model.pt"}
    run(there, TRAIN, "inference", "phantom", output_dir="trained", **options)
    assert (there.place / "trained" / "phantom_000_seg.nii.gz").is_file()


def quick() -> dict[str, object]:
    """Settings for a head, which weights for CT would refuse."""
    settings = {"image_pattern": "*/flair.nii.gz", "organ": "brain", "device": "cpu", "check_range": False}
    return settings | {"progress": False}


@pytest.fixture
def small(tmp_path) -> Path:
    """A bundle that is hardly more than its files, to be broken."""
    root = tmp_path / "small"
    inference = {
        "imports": ["$import common.data as data"],
        "handlers": [{"_target_": "common.handlers.CaseWriter"}],
        "inferer": {"_target_": "scipy.ndimage.label"},
    }
    metadata = {"version": "0.2.0", "changelog": {"0.2.0": "more", "0.1.0": "first"}}
    texts = {
        "LICENSE": "Apache License",
        "configs/inference.json": json.dumps(inference, indent=4),
        "configs/metadata.json": json.dumps(metadata, indent=4),
        "docs/README.md": "`common.masks` stays as it is in prose",
        "models/model.pt": "weights",
        "models/model.json": "{}",
        "scripts/networks.py": "import common.pooling\nfrom common.masks import gate_slices\n\n"
        "x = common.pooling.POOLINGS\n",
        "scripts/__pycache__/networks.pyc": "",
        "eval/old_seg.nii.gz": "",
        "docs/.hidden": "",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_same_files_give_the_same_bytes_whenever_and_wherever_they_lie(small, tmp_path):
    first = export_bundle(small, tmp_path / "one").read_bytes()
    other = shutil.copytree(small, tmp_path / "elsewhere" / "small")
    for path in other.rglob("*"):
        os.utime(path, (10**9, 10**9))
    (other / "LICENSE").chmod(0o600)
    assert export_bundle(other, tmp_path / "two").read_bytes() == first
    (other / "LICENSE").write_text("another")
    assert export_bundle(other, tmp_path / "two").read_bytes() != first


def test_zip_is_named_by_version_and_holds_one_folder_named_as_the_bundle(small, tmp_path):
    path = export_bundle(small, tmp_path)
    assert path.name == "small_v0.2.0.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        modes = {entry.external_attr >> 16 for entry in archive.infolist()}
    assert {name.split("/")[0] for name in names} == {"small"}
    assert names == sorted(names)
    assert modes == {0o644}


def test_neither_outputs_nor_caches_nor_hidden_files_travel(small):
    files = bundle_files(small)
    assert not [file for file in files if "eval" in file or "__pycache__" in file or "/." in file]
    assert {"LICENSE", "docs/README.md", "models/model.pt", "models/model.json", "scripts/__init__.py"} <= set(files)


def test_common_travels_with_its_license_and_only_as_far_as_it_is_imported(small):
    inside = {file.removeprefix("scripts/") for file in bundle_files(small) if file.startswith("scripts/common/")}
    load = "import sys; from common import data, handlers, masks; from common.images import dicom, dicom_seg; "
    loaded = run_code(load + "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('common')))").split()
    assert inside == {"common/LICENSE"} | {Path(file).relative_to(BUNDLES.parent).as_posix() for file in loaded}


def test_references_to_common_follow_it_and_nothing_else_changes(small):
    files = {file: data.decode() for file, data in bundle_files(small).items()}
    assert files["scripts/networks.py"] == (
        "import scripts.common.pooling\nfrom scripts.common.masks import gate_slices\n\n"
        "x = scripts.common.pooling.POOLINGS\n"
    )
    assert "$import scripts.common.data as data" in files["configs/inference.json"]
    assert '"scripts.common.handlers.CaseWriter"' in files["configs/inference.json"]
    assert files["docs/README.md"] == (small / "docs" / "README.md").read_text()
    assert files["scripts/common/masks/refine.py"] == (BUNDLES.parent / "common/masks/refine.py").read_text()


def test_a_linked_folder_travels_as_what_it_holds(small, tmp_path):
    before = bundle_files(small)
    shutil.move(small / "scripts", tmp_path / "code")
    (small / "scripts").mkdir()
    for path in (tmp_path / "code").iterdir():
        (small / "scripts" / path.name).symlink_to(path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "heads.py").write_text("x = 1\n")
    (small / "scripts" / "more").symlink_to(tmp_path / "more")
    assert bundle_files(small) == before | {"scripts/more/heads.py": b"x = 1\n"}


def test_the_original_is_untouched(small, tmp_path):
    before = {path: path.read_bytes() for path in small.rglob("*.*")}
    export_bundle(small, tmp_path / "dist")
    assert {path: path.read_bytes() for path in small.rglob("*.*")} == before


@pytest.mark.parametrize("name", NAMES)
def test_what_shipped_code_imports_is_named_in_the_metadata(name):
    metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
    named = [*MONAI_BUNDLE, *metadata["required_packages_version"]]
    provided = {file.parts[0] for package in named for file in distribution(package).files or []}
    assert set(third_party(bundle_files(BUNDLES / name))) <= {top.removesuffix(".py") for top in provided}


@pytest.mark.parametrize("name", NAMES)
def test_environment_of_monai_label_has_what_the_metadata_name(name):
    lines = (BUNDLES.parent / "tests" / "label_requirements.txt").read_text().splitlines()
    listed = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
    assert set(metadata["required_packages_version"]) <= listed


def test_third_party_counts_module_level_imports_and_targets_but_no_optional_ones(small):
    (small / "scripts" / "more.py").write_text(
        "from typing import TYPE_CHECKING\nimport os, zarr.core\nif TYPE_CHECKING:\n    import pandas\n"
        "try:\n    import h5py\nfinally:\n    pass\ndef late():\n    import finufft\n"
    )
    found = third_party(bundle_files(small))
    assert found["zarr"] == found["h5py"] == "scripts/more.py"
    assert found["scipy"] == "configs/inference.json"
    assert {"nibabel", "numpy", "torch"} <= set(found)
    assert not {"finufft", "pandas", "os", "common", "scripts"} & set(found)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("scripts/networks.py", "from common.nowhere import x", "scripts/networks.py refers to common.nowhere"),
        ("configs/train.json", '{"a": "$import common.nothing as n"}', "configs/train.json refers to common.nothing"),
        ("configs/metadata.json", '{"version": "3", "changelog": {}}', "version 3 has no entry in the changelog"),
    ],
)
def test_what_would_not_run_is_refused_by_name(small, tmp_path, file, text, message):
    (small / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        export_bundle(small, tmp_path / "dist")
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").iterdir())


def test_a_bundle_without_weights_is_refused(small, tmp_path):
    (small / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="small is not complete: models/model\\.pt missing"):
        export_bundle(small, tmp_path)


def test_modules_are_followed_through_from_dot_imports():
    files = set(common_modules({"a.py": "from common import masks"}))
    assert {"__init__.py", "masks/__init__.py", "masks/refine.py", "metrics/bootstrap.py", "images/tensors.py"} <= files
    assert not {file for file in files if file.startswith(("cam/", "commands/"))}


def test_an_interrupted_export_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_zip(tmp_path / "x.zip", {"a": b"", "b": 3})  # type: ignore[dict-item]
    assert not any(tmp_path.iterdir())


def test_command_wants_one_name_or_all(small, tmp_path, capsys):
    for arguments in ({}, {"name": "x", "all": True}):
        with pytest.raises(SystemExit, match="name one bundle, or say --all"):
            export(**arguments)
    export(str(small), output_dir=str(tmp_path / "dist"))
    assert "small_v0.2.0.zip" in capsys.readouterr().out
