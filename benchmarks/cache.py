"""What a cache of preprocessed volumes costs a training, and what it saves: `python -m benchmarks cache`."""

from __future__ import annotations

import os
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

from common.commands.run import BUNDLES
from common.data import SliceDataset
from common.data.cache import Slices

from .volume import write_large_phantom


def benchmark_cache(
    bundle: str = "gp_unet_brats",
    config: str = "train.json",
    volumes: int = 8,
    many: int = 1000,
    shape: tuple[int, int, int] = (240, 240, 155),
    items: int = 320,
    repeats: int = 3,
    folder: str | None = None,
    **overrides: Any,
) -> dict[str, float]:
    """Read and augment slices as a training does, from memory and from the cache in turn, and from many volumes.

    Args:
        bundle: name under `bundles/`, one that trains on slices.
        config: file names in its `configs/`, comma-separated.
        volumes: phantoms that are preprocessed.
        many: volumes on disk for the last reading: copies of those. 0: none.
        shape: voxels of a phantom, 1 mm each.
        items: slices of a reading.
        repeats: readings; the medians count.
        folder: for all files; None: a temporary one of the system.
        overrides: top-level keys of the config.

    Returns:
        Seconds `first` and `second` of starting with an empty and with a filled cache; milliseconds a slice
        `memory`, `cache` and `many`, the ratio of the first two, and the largest memory in MB of the process that
        reads from many volumes, `mb_many`.
    """
    root = BUNDLES / bundle
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        cases = _write_volumes(place / "in", volumes, shape)
        parser = ConfigParser()
        parser.read_config([str(root / "configs" / file) for file in config.split(",")])
        parser.update(overrides)
        preprocessing: Any = parser.get_parsed_content("train#preprocessing")
        augment: Any = parser.get_parsed_content("train#augment")

        def dataset(cache: Path | None) -> tuple[SliceDataset, float]:
            start = time.perf_counter()
            data = SliceDataset(cases, preprocessing, augment=augment, cache_dir=cache, progress=False)
            return data, time.perf_counter() - start

        first = dataset(place / "cache")[1]
        stored, second = dataset(place / "cache")
        result = {"first": round(first, 2), "second": round(second, 2)}
        if many:
            large = _enlarged(stored, many, place / "copies")
            milliseconds, peak = _reading(large, items)
            result |= {"many": round(milliseconds, 2), "mb_many": round(peak), "mb_alone": round(_memory())}
        held, _ = dataset(None)
        pairs = [(_reading(held, items)[0], _reading(stored, items)[0]) for _ in range(repeats)]
        memory, cache = np.median(pairs, axis=0)
        ratio = float(np.median([b / a for a, b in pairs]))
        result |= {"memory": round(float(memory), 2), "cache": round(float(cache), 2), "ratio": round(ratio, 3)}
    print(
        f"{volumes} volumes {shape}: {first:.1f} s to fill the cache, {second:.2f} s to start with it; a slice takes "
        f"{memory:.2f} ms from memory, {cache:.2f} ms from the cache ({ratio:.2f} times)"
    )
    if many:
        print(f"{many} volumes: {result['many']} ms a slice, the process needs {result['mb_many']} MB")
    return result


def _write_volumes(folder: Path, volumes: int, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Cases of copies of one phantom that differ in a voxel."""
    write_large_phantom(folder, shape)
    image: Any = nib.load(folder / "phantom_000" / "flair.nii.gz")
    array = np.asarray(image.dataobj)
    cls = [int(abs(z - shape[2] // 2) < shape[2] // 5) for z in range(shape[2])]
    cases = []
    for number in range(volumes):
        array[0, 0, 0] = number
        path = folder / f"v{number}.nii.gz"
        nib.save(nib.Nifti1Image(array, image.affine), path)
        cases.append({"case": f"v{number}", "image": str(path), "cls": cls})
    return cases


def _enlarged(data: SliceDataset, many: int, folder: Path) -> SliceDataset:
    """A data set of many volumes, each a file of its own."""
    large = object.__new__(SliceDataset)
    large.__dict__ |= vars(data)
    folder.mkdir()
    large.volumes = []
    for number in range(many):
        origin: Any = data.volumes[number % len(data.volumes)]["image"]
        large.volumes.append({"image": Slices(Path(shutil.copy(origin.path, folder / f"{number}.npy")))})
    slices = [[i for i, (volume, _) in enumerate(data.where) if volume == v] for v in range(len(data.volumes))]
    items = [(number, i) for number in range(many) for i in slices[number % len(slices)]]
    for name, value in vars(data).items():
        if isinstance(value, list) and len(value) == len(data):  # what is known of each slice
            setattr(large, name, [value[i] for _, i in items])
    large.where = [(number, data.where[i][1]) for number, i in items]
    return large


def _reading(data: SliceDataset, items: int) -> tuple[float, float]:
    """Milliseconds a slice, drawn at random, and the most memory meanwhile in MB."""
    order = torch.randint(len(data), (items,), generator=torch.Generator().manual_seed(0)).tolist()
    peak, start = 0.0, time.perf_counter()
    for index in order:
        data[index]
        peak = max(peak, _memory())
    return 1000 * (time.perf_counter() - start) / items, peak


def _memory() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
