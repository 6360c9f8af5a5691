"""Preprocessed volumes on disk, for training on more than fits into memory.

MONAI's `PersistentDataset` finds an item by the names in it, not by what the files hold, and reads it whole; here a
volume is found by the content of its files and by the preprocessing, and read slice by slice, from a file that is
mapped into memory and left again: what processes on one machine read is held once, by the system, while there is room.

An entry is a folder `<root>/<key[:2]>/<key>/` with `<name>.npy` for each tensor, `entry.json`, written last (a folder
without it is unfinished), and `.lock`, locked by the process that writes the entry.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from ignite.distributed import get_rank, get_world_size
from torch import Tensor
from tqdm import tqdm

from ..features import file_key
from ..features.fingerprint import describe
from ..files import PathLike, write, write_json, writing

logger = logging.getLogger(__name__)
FORMAT = "volumes 1"  # in every key: what is stored, and how


class Slices:
    """A stored tensor, read one slice at a time.

    Attributes:
        shape: `[Z, …]`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape = tuple(np.load(path, mmap_mode="r").shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, z: int | slice) -> Tensor:
        """A slice `[…]`, or some of them, in memory of its own."""
        return torch.from_numpy(np.array(np.load(self.path, mmap_mode="r")[z]))


Stored = dict[str, Tensor | Slices]


class CacheEntry:
    """What is stored of a volume.

    Attributes:
        about: what belongs to it beside tensors.
        bytes: on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        self.about: Any = content["about"]
        self.bytes: int = content["bytes"]
        self.names: list[str] = content["names"]

    def stored(self) -> Stored:
        """All tensors, to be read slice by slice; those of one number a slice are in memory."""
        found = {name: Slices(self._path(name)) for name in self.names}
        return {name: slices[:] if len(slices.shape) == 1 else slices for name, slices in found.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped into memory: read where it is looked at, for as long as it is held."""
        # Copy-on-write, since torch wants arrays that may be written to.
        return torch.from_numpy(np.load(self._path(name), mmap_mode="c"))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


class VolumeCache:
    """A folder of entries, shared by all processes and runs that use it.

    Args:
        root: the folder, made when needed. It may be removed at any time, but not in a training.
        settings: all that entries are made with, beside the cases' files: the preprocessing, sizes …

    Raises:
        ValueError: (see `common.features.fingerprint.describe`) a setting is random, or cannot be told from others.
    """

    def __init__(self, root: PathLike, *settings: Any) -> None:
        self.root = Path(root)
        self.settings = describe(settings)
        self.entries = self.made = self.bytes = 0

    def entry(
        self,
        files: Iterable[PathLike],
        make: Callable[[], Mapping[str, Tensor]],
        *more: Any,
        about: Callable[[], Any] = lambda: None,
    ) -> CacheEntry:
        """The entry for the content of files, made where there is none yet.

        Args:
            files: that it is made from, in their order.
            make: gives the tensors by name.
            more: what else it is made from, such as the case's label.
            about: called after `make`, gives what belongs to the tensors, as JSON can hold it.

        Raises:
            NotWritten: the disk is full.
        """
        key = file_key(FORMAT, files, f"{self.settings} {describe(more)}")
        folder = self.root / key[:2] / key
        entry = _found(folder)
        if entry is None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                entry = _found(folder)  # another process may have made it meanwhile
                if entry is None:
                    _write(folder, make(), about)
                    entry = CacheEntry(folder)
                    self.made += 1
        self.entries += 1
        self.bytes += entry.bytes
        return entry

    def report(self) -> str:
        """One line for the console."""
        return f"{self.root}: {self.entries} volumes, {self.made} of them made now, {self.bytes / 2**30:.2f} GiB"


def _found(folder: Path) -> CacheEntry | None:
    """The entry, if it is finished and nothing of it is missing or cut off."""
    try:
        entry = CacheEntry(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # unfinished, or emptied as the power failed
        return None
    sizes = [path.stat().st_size if path.is_file() else -1 for path in (folder / f"{name}.npy" for name in entry.names)]
    return entry if sum(sizes) == entry.bytes and -1 not in sizes else None


def _write(folder: Path, tensors: Mapping[str, Tensor], about: Callable[[], Any]) -> None:
    (folder / "entry.json").unlink(missing_ok=True)  # of a damaged entry
    for name, tensor in tensors.items():
        write(folder / f"{name}.npy", tensor.detach().cpu().contiguous().numpy())
    size = sum((folder / f"{name}.npy").stat().st_size for name in tensors)
    write_json(folder / "entry.json", {"format": FORMAT, "names": list(tensors), "bytes": size, "about": about()})


def in_turns(data: Sequence[Any], *, progress: bool = True) -> Iterable[int]:
    """Indices of data, with a progress bar; of several processes each begins with another part.

    So the processes of a distributed training share the work of filling a cache.
    """
    first = get_rank() * len(data) // get_world_size()
    indices = [*range(first, len(data)), *range(first)]
    return tqdm(indices, desc="reading", unit="case", leave=False, disable=not progress)


def warn_of_memory(tensors: Iterable[Tensor | Slices], count: int) -> None:
    """Say what to do where so many volumes like the one of these tensors are more than this machine's memory."""
    volume = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if volume * count > memory:
        logger.warning(
            "%d volumes like the first are %.1f GiB, this machine has %.1f GiB of memory: keep them on disk "
            "with --cache_dir DIR",
            count,
            volume * count / 2**30,
            memory / 2**30,
        )
