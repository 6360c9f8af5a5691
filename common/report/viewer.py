"""NiiVue, which shows volumes in the page: `python -m common report --get_viewer true` gets it, once for a user.

This module is a script, too, that needs nothing but Python. NiiVue is one file of a pinned version of its npm package,
kept outside the repository and checked by its digest; npm comes with Node.js, or with the extra `[report]`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.69.0"
MEMBER = "package/dist/niivue.umd.js"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
COMMAND = "python -m common report --get_viewer true"


def viewer_path() -> Path:
    """Where the file is kept: in the folder that WEAKSEG_CACHE names, else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WEAKSEG_CACHE") or Path(cache) / "weakseg") / f"niivue-{VERSION}.umd.js"


def read_viewer() -> str | None:
    """The script, None where it was never got.

    Raises:
        ValueError: the file is not what it should be.
    """
    path = viewer_path()
    if not path.is_file():
        return None
    data = path.read_bytes()
    _check(data, str(path))
    return data.decode("utf-8")


def get_viewer() -> Path:
    """Get the file by npm, unless it is there.

    Returns:
        Its path.

    Raises:
        RuntimeError: there is no npm, or it gets nothing; the message says what to do.
        ValueError: npm gave another file.
    """
    path = viewer_path()
    if path.is_file() and _right(path.read_bytes()):
        return path
    npm = shutil.which("npm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if npm is None:
        raise RuntimeError('there is no npm: install Node.js, or `pip install "weakseg-bundles[report]"`, which has it')
    beside = {"PATH": os.pathsep.join([str(Path(npm).parent), os.environ.get("PATH", "")])}  # npm looks for node there
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"@niivue/niivue@{VERSION}", "--silent"]
        done = subprocess.run(command, cwd=folder, env=os.environ | beside, capture_output=True, text=True)
        packages = list(Path(folder).glob("[!.]*.tgz"))
        if done.returncode or not packages:
            raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr.strip() or 'no package came'}")
        with tarfile.open(packages[0]) as archive:
            member = archive.extractfile(MEMBER)
            data = member.read() if member else b""
    _check(data, MEMBER)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path


def _right(data: bytes) -> bool:
    # Not by `common.files.file_digest`: a script of its own has no package to import from.
    return hashlib.sha256(data).hexdigest() == SHA256


def _check(data: bytes, name: str) -> None:
    if not _right(data):
        raise ValueError(f"{name} is not the one of NiiVue {VERSION}; remove it and run {COMMAND}")


if __name__ == "__main__":
    try:
        print(get_viewer())
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"NiiVue was not got, reports show pictures in its place: {error}") from error
