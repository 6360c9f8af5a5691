"""How long a volume takes, and how much of that is the network: `python -m benchmarks volume`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import zoom

from common.checkpoint import load_weights
from common.commands.run import BUNDLES
from common.datasets import write_phantom


def benchmark_volume(
    bundle: str = "gp_unet_brats",
    config: str = "inference.json",
    shape: tuple[int, int, int] = (240, 240, 155),
    repeats: int = 3,
    threads: int = 0,
    weights: bool = True,
    **overrides: Any,
) -> dict[str, float]:
    """Time a bundle's inference on one phantom volume, from file to files, and the bare forwards inside it.

    Args:
        bundle: name under `bundles/`.
        config: file names in its `configs/`, comma-separated; later ones override earlier ones.
        shape: voxels of the phantom; 1 mm each.
        repeats: the fastest run counts.
        threads: CPU threads; 0 leaves torch's default.
        weights: load the config's `ckpt`; False leaves random weights.
        overrides: top-level keys of the config.

    Returns:
        `total` and `forward` in seconds and `beside`, the share that everything beside the forwards adds to them.
    """
    if threads:
        torch.set_num_threads(threads)
    root = BUNDLES / bundle
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory() as folder:
        _write_large_phantom(Path(folder), shape)
        parser = ConfigParser()
        parser.read_config([str(root / "configs" / name) for name in config.split(",")])
        parser.update({"dataset_dir": folder, "output_dir": str(Path(folder) / "out"), "progress": False, **overrides})
        evaluator: Any = parser.get_parsed_content("evaluator")
        network = parser.get_parsed_content("network")
        if weights:
            load_weights(network, parser.get_parsed_content("ckpt"))
        spent = _timed(network)
        runs = []
        for _ in range(repeats):
            spent.clear()
            start = time.perf_counter()
            evaluator.run()
            runs.append((time.perf_counter() - start, sum(spent)))
    total, forward = min(runs)
    result = {"total": round(total, 2), "forward": round(forward, 2), "beside": round(total / forward - 1, 3)}
    print(f"{bundle} {config} {shape}: {total:.2f} s a volume, {forward:.2f} s of it in the network")
    return result


def _write_large_phantom(folder: Path, shape: tuple[int, int, int]) -> None:
    """A phantom enlarged from a third of `shape`: drawing one at full size would take longer than the benchmark."""
    small = (-(-shape[0] // 3), -(-shape[1] // 3), -(-shape[2] // 3))
    write_phantom(folder, cases=1, shape=small, spacing=(3.0, 3.0, 3.0), healthy_fraction=0.0)
    for path in folder.glob("*/*.nii.gz"):
        image: Any = nib.load(path)
        large = zoom(np.asarray(image.dataobj), 3, order=1)[: shape[0], : shape[1], : shape[2]]
        nib.save(nib.Nifti1Image(large, image.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1])), path)


def _timed(network: torch.nn.Module) -> list[float]:
    """Seconds of each call of `network.explain`, appended as they happen."""
    spent: list[float] = []
    explain: Any = network.explain

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        output = explain(*args)
        spent.append(time.perf_counter() - start)
        return output

    network.explain = timed  # type: ignore[assignment]
    return spent
