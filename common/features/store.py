"""Features on disk: found again by what they were computed from, safe to interrupt and to share between processes.

An entry is a folder `<root>/<key[:2]>/<key>/` with

- `<first tile>.npy`: a chunk of features, float16 `[n, C, h, w]`;
- `inside.npy` (optional): share of the organ in each cell, float16 `[N, 1, h, w]`;
- `coordinates.npy` (optional): of each tile on its slide, `[N, 2]`;
- `entry.json`, written last: a folder without it is unfinished, and its chunks are taken up where they end;
- `.lock`, empty, locked by the process that writes the entry; the system releases it when that process ends.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ..encoders import Encoder
from ..files import PathLike, read_json, write, write_json, writing
from ..images import tensor_bytes
from ..images.sources import files_of
from .encoding import encode_batches

FORMAT = "features 2"  # in every key: what is stored, and how
LARGEST = float(np.finfo(np.float16).max)


class EntryLocked(RuntimeError):
    """Another process is writing this entry."""


def content_key(fingerprint: str, *tensors: Tensor) -> str:
    """Key of an entry by what goes into the encoder: sha256 (hex) of dtype, shape and elements.

    Args:
        fingerprint: of the encoder.
        tensors: the preprocessed input, organ included.
    """
    digest = hashlib.sha256(f"{FORMAT} content {fingerprint}".encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def file_key(fingerprint: str, files: Iterable[PathLike], preprocessing: str) -> str:
    """Key by what the input is made from: sha256 (hex) of the files' bytes, in their order, and the preprocessing.

    Args:
        fingerprint: of the encoder.
        files: that the input is made from; their names do not matter.
        preprocessing: as `common.features.fingerprint.describe` tells it.
    """
    digest = hashlib.sha256(f"{FORMAT} files {fingerprint} {preprocessing}".encode())
    for path in files:
        part = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                part.update(block)
        digest.update(part.digest())
    return digest.hexdigest()


def case_files(case: Mapping[str, Any], keys: Sequence[str] = ("image", "organ")) -> list[Path]:
    """The files that a case's preprocessed volume is made from, see `common.images.sources.files_of`.

    Raises:
        FileNotFoundError, ValueError: see there; a single file need not exist.
    """
    parts = [case[key] for key in keys if case.get(key) is not None]
    paths = [path for part in parts for path in ([part] if isinstance(part, str | os.PathLike) else part)]
    return [file for path in paths for file in files_of(path)]


class Entry:
    """The features of one case (`N` slices or tiles), read as far as they are asked for.

    Attributes:
        about: what `entry.json` says.
        shape: `(N, C, h, w)`.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = read_json(self.folder / "entry.json")
        self.shape: tuple[int, int, int, int] = tuple(self.about["shape"])  # type: ignore[assignment]
        self.chunk: int = self.about["chunk"]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor:
        """Features `[n, C, h, w]` (`[C, h, w]` for one number), float32.

        Raises:
            IndexError: there is no such tile.
            ValueError: a slice with a step, or a chunk that is damaged.
        """
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"tile {index} of {len(self)} in {self.folder}")
            return self[index % len(self) : index % len(self) + 1][0]
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("features are read in their order: a slice without a step")
        out = torch.empty((max(stop - start, 0), *self.shape[1:]))
        for first in range(start - start % self.chunk, stop, self.chunk):
            begin, end = max(start, first), min(stop, first + self.chunk)
            part = _read(self.folder / _chunk_name(first))
            if part is None or part.shape[1:] != self.shape[1:] or len(part) < end - first:
                raise ValueError(f"{self.folder / _chunk_name(first)} is damaged: remove the folder, extract again")
            out[begin - start : end - start] = torch.from_numpy(part[begin - first : end - first])
        return out

    def chunks(self, size: int | None = None) -> Iterator[Tensor]:
        """All features in their order, `size` tiles at a time (None: as they lie on the disk)."""
        step = size or self.chunk
        return (self[first : first + step] for first in range(0, len(self), step))

    @property
    def inside(self) -> Tensor | None:
        """Share of the organ in each cell, `[N, 1, h, w]` float32 in [0, 1], if there is an organ."""
        return self._optional("inside.npy", np.float32)

    @property
    def coordinates(self) -> Tensor | None:
        """`[N, 2]` of the tiles, as they were given, if there are any."""
        return self._optional("coordinates.npy", None)

    @property
    def indices(self) -> list[int]:
        """Which slices of the volume these are."""
        return self.about.get("indices") or list(range(len(self)))

    def _optional(self, name: str, dtype: Any) -> Tensor | None:
        path = self.folder / name
        return torch.from_numpy(np.load(path).astype(dtype, copy=False)) if path.is_file() else None


class FeatureStore:
    """A folder of entries.

    Args:
        root: the folder, made when needed.
    """

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def get(self, key: str | None) -> Entry | None:
        """The entry, or None where there is none, or one that is unfinished or was emptied as the power failed."""
        try:
            return None if key is None else Entry(self.folder(key))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def open(self, key: str) -> Entry:
        """The entry.

        Raises:
            FileNotFoundError: there is none, or an unfinished one.
        """
        entry = self.get(key)
        if entry is None:
            raise FileNotFoundError(f"no finished features in {self.folder(key)}: run `python -m common features`")
        return entry

    def entries(self) -> Iterator[Entry]:
        """All finished entries."""
        return (Entry(path.parent) for path in sorted(self.root.glob("??/*/entry.json")))

    def set_alias(self, alias: str, key: str) -> None:
        """Remember under which content key the features of a `file_key` lie."""
        write(self.folder(alias).with_suffix(".key"), key)

    def resolve(self, alias: str) -> str | None:
        """The content key that goes with a `file_key`."""
        path = self.folder(alias).with_suffix(".key")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def compute(
        self,
        key: str,
        tiles: Any,
        encoder: Encoder,
        *,
        inside: Tensor | None = None,
        coordinates: Any = None,
        batch_size: int = 16,
        chunk: int = 32,
        progress: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Encode tiles and write their entry; finished entries and chunks are not computed again.

        Args:
            key: see `content_key`.
            tiles: has a length N > 0, and `tiles[i:j]` is an image `[n, 1 or 3, H, W]`; a tensor is fine.
            encoder: see `common.encoders.Encoder`; it says where the computing is done.
            inside: share of the organ in each cell, `[N, 1, h, w]` in [0, 1].
            coordinates: `[N, 2]`.
            batch_size: tiles per forward.
            chunk: tiles per file.
            progress: show a progress bar with the time left.
            about: what else `entry.json` should say, e.g. `case`, `files`, `indices`.

        Raises:
            EntryLocked: another process is at it.
            ValueError: there are no tiles, or features are NaN, infinite or too large for float16.
            NotWritten: the disk is full.
        """
        if (entry := self.get(key)) is not None:
            return entry
        if len(tiles) == 0:
            raise ValueError("there is nothing to encode: no slice holds any organ, or no tile any tissue")
        folder = self.folder(key)
        bar = tqdm(total=len(tiles), desc=key[:8], unit="tile", leave=False, disable=not progress)
        with bar, _locked(folder):
            shape = [len(tiles), *_write_chunks(folder, tiles, encoder, chunk, batch_size, bar)]
            if inside is not None:
                if list(inside.shape) != [shape[0], 1, *shape[2:]]:
                    raise ValueError(f"inside must be {[shape[0], 1, *shape[2:]]}, got {list(inside.shape)}")
                write(folder / "inside.npy", np.asarray(inside.cpu(), dtype=np.float16))
            if coordinates is not None:
                write(folder / "coordinates.npy", np.asarray(coordinates))
            content = {
                "format": FORMAT,
                "key": key,
                "shape": shape,
                "dtype": "float16",
                "chunk": chunk,
                "encoder": getattr(encoder, "options", None),
                "fingerprint": getattr(encoder, "fingerprint", ""),
                "bytes": sum(path.stat().st_size for path in folder.glob("[!.]*.npy")),
            }
            write_json(folder / "entry.json", content | dict(about or {}))
        return self.open(key)


def _locked(folder: Path) -> AbstractContextManager:
    """The lock of an entry's folder, already held; the end of the block releases it.

    Raises:
        EntryLocked: another process holds it.
        NotWritten: the disk is full.
    """
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(path).acquire(timeout=0)
        except Timeout:
            raise EntryLocked(f"{folder} is being written by another process") from None


def _write_chunks(
    folder: Path, tiles: Any, encoder: Encoder, chunk: int, batch_size: int, bar: tqdm
) -> tuple[int, ...]:
    """Write the chunks that are not there yet, and remove what is none of them; the shape of a tile's features."""
    shapes, chunks = set(), set()
    for first in range(0, len(tiles), chunk):
        stop = min(first + chunk, len(tiles))
        path = folder / _chunk_name(first)
        done = _read(path)
        if done is None or done.dtype != np.float16 or len(done) != stop - first:
            done = _encoded(encoder, tiles, first, stop, batch_size)
            write(path, done)
        shapes.add(done.shape[1:])
        chunks.add(path)
        bar.update(len(done))
    if len(shapes) > 1:
        raise ValueError(f"{folder}: chunks of different shapes {sorted(shapes)}; remove the folder")
    for stray in {path for path in folder.iterdir() if path.suffix == ".npy"} - chunks:
        stray.unlink()  # of a run with other chunks, or one that was killed while it wrote
    return shapes.pop()


def _encoded(encoder: Encoder, tiles: Any, start: int, stop: int, batch_size: int) -> np.ndarray:
    parts = []
    for number, features in enumerate(encode_batches(encoder, tiles, batch_size, start=start, stop=stop)):
        largest = float(features.abs().max())
        if not largest <= LARGEST:
            what = "too large for float16" if largest < float("inf") else "NaN or infinite"
            first = start + number * batch_size
            raise ValueError(f"the features of tiles {first} to {first + len(features) - 1} are {what} ({largest:g})")
        parts.append(features.half().cpu().numpy())
    return np.concatenate(parts)


def _chunk_name(first: int) -> str:
    return f"{first:07d}.npy"  # by its first tile, so that chunks of another length cannot be mistaken for it


def _read(path: Path) -> np.ndarray | None:
    """A chunk, mapped into memory; None where there is none, or a damaged one."""
    try:
        return np.load(path, mmap_mode="c")  # copy-on-write: torch wants writable arrays
    except (OSError, ValueError, EOFError):
        return None
