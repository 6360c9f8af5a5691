"""Checks exported bundles in a running MONAI Label server; `make label` calls it in an environment of its own.

python tests/label_server.py CASE.nii.gz BUNDLE.zip ...

One server holds all bundles. A NIfTI in an oblique, anisotropic frame goes to each of them over HTTP, twice, in both
orders; the mask that comes back must lie on the input's grid, hold the labels of the metadata and no other, and be the
one that `python -m monai.bundle run` writes. Training through the server is switched off.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

# Values of `inference.json` that make a check on a head quick, or possible. The server reads them there; `run`, which
# holds what weights depend on (size, organ) against their training, is told them; a server does without `check_range`.
CHANGES = {
    "tonno_mosmed": {"num_directions": 24, "num_slices": 24, "size": 64, "check_range": False},
    "insight_ct": {"organ": "brain", "gate": 0.0, "check_range": False},
}
# What MONAI Label takes from torchvision, to draw 2D results: nothing that these bundles use.
STAND_IN = "def make_grid(*args, **kwargs):\n    raise NotImplementedError\n\n\nsave_image = make_grid\n"


def main(case: str, *zips: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        app = Path(shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", home / "app"))
        for path in zips:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(app / "model")
        bundles = sorted(path.name for path in (app / "model").iterdir() if (path / "configs").is_dir())
        for name in bundles:
            config = app / "model" / name / "configs" / "inference.json"
            content = json.loads(config.read_text())
            config.write_text(json.dumps(content | CHANGES.get(name, {})))
        image = turned(Path(case), home / "studies" / "head.nii.gz")
        expected = {name: written_by_run(app / "model" / name, image, home / "run" / name) for name in bundles}
        with server(app, home / "studies", bundles, home / "server.log") as url:
            info = requests.get(f"{url}/info/", timeout=60).json()
            assert sorted(info["models"]) == bundles, f"the server has the models {sorted(info['models'])}"
            assert not info["trainers"], "training was to be switched off"
            for name in [*bundles, *reversed(bundles)]:
                start = time.perf_counter()
                mask = answer(url, name, image, home / "answer.nii.gz")
                seconds = time.perf_counter() - start
                check(mask, image, labels(app / "model" / name, info["models"][name]), expected[name], name)
                print(f"{name}: {int((mask.get_fdata() > 0).sum())} voxels in {seconds:.1f} s, as by `run`", flush=True)
    print(f"{len(bundles)} bundles in one server: all masks right")


def turned(source: Path, target: Path) -> Path:
    """The case with its axes permuted and flipped, turned by 20 degrees, so that a wrong grid cannot pass."""
    image: Any = nib.load(source)
    array = np.asarray(image.dataobj).transpose(1, 2, 0)[::-1]
    affine = image.affine @ np.array([[0, 0, 1, 0], [-1, 0, 0, array.shape[0] - 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    sine, cosine = np.sin(np.deg2rad(20)), np.cos(np.deg2rad(20))
    turn = np.array([[cosine, -sine, 0, 5], [sine, cosine, 0, -9], [0, 0, 1, 3], [0, 0, 0, 1]])
    target.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(array, turn @ affine), target)
    return target


def written_by_run(bundle: Path, image: Path, output: Path) -> np.ndarray:
    arguments = {"config_file": bundle / "configs" / "inference.json", "dataset_dir": image.parent, "device": "cpu"}
    arguments |= {"image_pattern": "*.nii.gz", "output_dir": output, "progress": False} | CHANGES.get(bundle.name, {})
    flags = [str(part) for key, value in arguments.items() for part in (f"--{key}", value)]
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", *flags], check=True, stdout=subprocess.DEVNULL)
    written: Any = nib.load(output / "head_seg.nii.gz")
    return np.asarray(written.dataobj)


@contextmanager
def server(app: Path, studies: Path, bundles: list[str], log: Path) -> Iterator[str]:
    """MONAI Label on a free port; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", port, "--conf", "models", ",".join(bundles)]
    command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false", "--conf", "skip_trainers", "true"]
    environment = os.environ | {"PYTHONPATH": str(torchvision_stand_in(app.parent))}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen([str(c) for c in command], stdout=file, stderr=file, env=environment)
    try:
        yield wait(f"http://127.0.0.1:{port}", process, log)
    except (AssertionError, requests.RequestException):
        print(log.read_text(encoding="utf-8")[-6000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(timeout=60)


def torchvision_stand_in(folder: Path) -> Path | str:
    """A folder for the path: nothing where torchvision imports; some builds of torch have no torchvision to match."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        package = folder / "stand_in" / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "utils.py").write_text(STAND_IN)
        return package.parent
    return ""


def wait(url: str, process: subprocess.Popen, log: Path, seconds: float = 300) -> str:
    """The address, once the server answers there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            requests.get(f"{url}/info/", timeout=10).raise_for_status()
            return url
        except requests.RequestException:
            if process.poll() is not None:
                break
            time.sleep(1)
    raise AssertionError(f"the server did not start:\n{log.read_text(encoding='utf-8')[-6000:]}")


def answer(url: str, bundle: str, image: Path, target: Path) -> Any:
    """The mask that the server sends back for one file."""
    with open(image, "rb") as file:
        reply = requests.post(
            f"{url}/infer/{bundle}?output=image",
            files={"file": (image.name, file)},
            data={"params": json.dumps({"device": "cpu"})},
            timeout=600,
        )
    assert reply.ok, f"{bundle}: {reply.status_code} {reply.text[:500]}"
    target.write_bytes(reply.content)
    return nib.load(target)


def labels(bundle: Path, shown: dict) -> set[int]:
    """Label values that the metadata define; the server must show the user the same."""
    outputs = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    defined = {int(value): name.lower() for value, name in outputs["pred"]["channel_def"].items()}
    assert shown["labels"] == {n: v for v, n in defined.items() if n != "background"}, f"labels: {shown['labels']}"
    return set(defined)


def check(mask: Any, image: Path, values: set[int], expected: np.ndarray, name: str) -> None:
    source: Any = nib.load(image)
    array = np.asarray(mask.dataobj)
    assert array.shape == source.shape, f"{name}: the mask's shape is {array.shape}, the image's {source.shape}"
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-3, err_msg=f"{name}: the mask is on another grid")
    found = set(np.unique(array).astype(int).tolist())
    assert found <= values, f"{name}: the mask holds {found}, the metadata define {values}"
    assert (array > 0).any(), f"{name}: the mask is empty, which shows nothing"
    differ = int((array.astype(int) != expected.astype(int)).sum())
    assert differ == 0, f"{name}: {differ} voxels differ from what `python -m monai.bundle run` writes"


if __name__ == "__main__":
    main(*sys.argv[1:])
