"""How long a volume takes, how much of that is the network, and what workers gain: `python -m benchmarks volume`."""

from __future__ import annotations

import shutil
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
    num_workers: int = 0,
    cases: int = 10,
    **overrides: Any,
) -> dict[str, float]:
    """Time a bundle's inference on one phantom volume, from file to files, and the bare forwards inside it.

    With `num_workers` also the volumes a minute of a run over `cases` copies of it, without workers and with them, in
    turn.

    Args:
        bundle: name under `bundles/`.
        config: file names in its `configs/`, comma-separated; later ones override earlier ones.
        shape: voxels of the phantom; 1 mm each.
        repeats: the fastest run counts.
        threads: CPU threads; 0 leaves torch's default.
        weights: load the config's `ckpt`; False leaves random weights.
        num_workers: of the second run; 0: there is none.
        cases: of each run for volumes a minute.
        overrides: top-level keys of the config.

    Returns:
        `total` and `forward` in seconds and `beside`, the share that everything beside the forwards adds to them. With
        workers also `per_minute`, `per_minute_workers` and their ratio, `gain` (the medians of the repeats).
    """
    if threads:
        torch.set_num_threads(threads)
    root = BUNDLES / bundle
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large_phantom(folder, shape)
        files = [str(root / "configs" / file) for file in config.split(",")]
        settings = {"dataset_dir": name, "output_dir": str(folder / "out"), "progress": False}
        settings |= {"check_range": False, **overrides}  # a phantom is not what weights were trained on
        evaluator, network = _evaluator(files, settings, weights)
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
        if num_workers:
            for number in range(1, cases):
                shutil.copytree(folder / "phantom_000", folder / f"phantom_{number:03d}")
            pair = [_evaluator(files, settings | {"num_workers": n}, weights)[0] for n in (0, num_workers)]
            result |= _rates(pair, cases, repeats)
            print(
                f"{cases} volumes: {result['per_minute']} a minute, with num_workers {num_workers} "
                f"{result['per_minute_workers']}: {result['gain']} times as many"
            )
    return result


def _evaluator(files: list[str], settings: dict[str, Any], weights: bool) -> tuple[Any, torch.nn.Module]:
    parser = ConfigParser()
    parser.read_config(files)
    parser.update(settings)
    evaluator: Any = parser.get_parsed_content("evaluator")
    network = parser.get_parsed_content("network")
    if weights:
        load_weights(network, parser.get_parsed_content("ckpt"))
    return evaluator, network


def _rates(evaluators: list[Any], cases: int, repeats: int) -> dict[str, float]:
    """Volumes a minute of two evaluators that take turns, so that a machine that others use is no slower for one."""
    rates = []
    for _ in range(repeats):
        seconds = []
        for evaluator in evaluators:
            start = time.perf_counter()
            evaluator.run()
            seconds.append(time.perf_counter() - start)
        rates.append([60 * cases / s for s in seconds])
    alone, workers = np.median(rates, axis=0)
    gain = float(np.median([b / a for a, b in rates]))
    return {
        "per_minute": round(float(alone), 1),
        "per_minute_workers": round(float(workers), 1),
        "gain": round(gain, 2),
    }


def write_large_phantom(folder: Path, shape: tuple[int, int, int]) -> None:
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
