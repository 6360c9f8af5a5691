"""Files: whole or not at all; JSON and tables."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

PathLike = str | os.PathLike[str]


BLOCKS, BLOCK = 8, 4096  # of a file, at which `glance` looks
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What to do about a file that cannot be written, by the reason.
ADVICE = {
    **dict.fromkeys(NO_ROOM, "free space, then run again; what is whole stays"),
    errno.ENAMETOOLONG: "give shorter names to cases, or to folders",
}


class NotWritten(OSError):
    """A file cannot be written: the disk is full, or not ours."""


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` when the block ends without an error.

    The suffix is kept, because image writers choose the format by it. What a killed process leaves is hidden by the
    leading dot from `glob.glob`; not so from `Path.glob`.

    Raises:
        NotWritten: the folder cannot be made, or the disk is full.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write(path: PathLike, content: np.ndarray | str) -> None:
    """Write an array (as `.npy`) or a text; the file appears whole or not at all.

    Raises:
        NotWritten: the disk is full, or the folder is not ours.
    """
    buffer = io.BytesIO()
    if isinstance(content, str):
        buffer.write(content.encode())
    else:
        np.save(buffer, content)
    with writing(path), atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())  # np.save to a file may fail on a full disk without a word


@contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Say which file could not be written, and what to do: an `OSError` of the block becomes `NotWritten`."""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: PathLike, error: OSError) -> NotWritten:
    """The error that says which file, why, and what to do."""
    advice = ADVICE.get(error.errno or 0, "give a folder that is yours, and that no file is in the way of")
    return NotWritten(f"{path} cannot be written ({error}): {advice}")


def alone(folder: PathLike, work: str) -> BaseFileLock:
    """A lock: no other process does this work in the folder until `with` or `release` ends it, or this process ends.

    Args:
        folder: made when needed.
        work: its name, for the message, too.

    Raises:
        RuntimeError: another process does.
    """
    path = Path(folder) / f".{work}.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)  # within a process one training may follow another that failed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"another {work} is at work in {folder}, perhaps left by a command that was killed: wait until it ends, or "
            "end it, or give another folder"
        ) from None
    return lock


def read_json(path: PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is none; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def write_json(path: PathLike, value: Any) -> None:
    """Write JSON, see `json_text`; the file appears whole or not at all.

    Raises:
        NotWritten: the disk is full, or the folder is not ours.
    """
    write(path, json_text(value))


def json_text(value: Any) -> str:
    """JSON indented by 4, as a file holds it: null where a score is undefined or infinite, since `NaN` is no JSON.

    Paths become texts, NumPy's numbers plain ones.
    """
    return json.dumps(_strict(value), indent=4, allow_nan=False, default=os.fspath) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the union of their keys as columns, in order of first appearance.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with writing(path), atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def without_code(content: dict[str, Any], path: PathLike) -> dict[str, Any]:
    """What goes with weights, whose part `trained` a run takes into its config.

    Raises:
        ValueError: the config would evaluate it, or make an object of it.
    """
    if wrong := [key for key, value in content.get("trained", {}).items() if would_run(value)]:
        raise ValueError(f"{path}: {wrong[0]} of 'trained' is code, and no value; whose weights are these?")
    return content


def would_run(value: Any) -> bool:
    """Whether a config would evaluate a value, or make an object of it."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(would_run, value.values()))
    if isinstance(value, list):
        return any(map(would_run, value))
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with floats to four decimals, but probabilities, which a gate of any size parts, to seven digits."""
    digits = {key: ".7g" if key.startswith("probability") else ".4f" for key in row}
    return {key: float(format(v, digits[key])) if isinstance(v, float) else v for key, v in row.items()}


def file_digest(path: PathLike, *, unpack: bool = False) -> str:
    """SHA-256 of a file, or of what a `.gz` holds: around it stand the time and the name under which it was packed."""
    digest = hashlib.sha256()
    with gzip.open(path) if unpack else open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def glance(path: PathLike) -> bytes:
    """SHA-256 of a file's size and of blocks of it, evenly spread from its first bytes to its last: quick, not sure.

    The last bytes of a `.gz` are a checksum of all of it.
    """
    size = os.stat(path).st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(BLOCKS):
            file.seek(max(size - BLOCK, 0) * i // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
            if size <= BLOCK:
                break
    return digest.digest()


def print_any_text() -> None:
    """Where the console's encoding lacks a character (a case named in umlauts under `LC_ALL=C`), its code is printed.

    Otherwise the `print` that names the case would end the run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
