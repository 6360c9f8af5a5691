"""Files that several processes write: locks, and whole files or none."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from ..files import _writing, write


class EntryLocked(RuntimeError):
    """Another process is writing this."""


class Lock:
    """A file that says who is writing, renewed by its modification time.

    Two processes may take over a dead one's lock at the same moment. The later one keeps it, the other notices at its
    next `renew`. So what they write must be the same whoever writes it, and appear whole.

    Args:
        path: of the file, in a folder that is made when needed.
        stale_seconds: a lock that was not renewed for so long is taken over; one of a process that has ended on this
            host, at once.

    Raises:
        EntryLocked: (on entering) another process holds it; (from `renew`) another has taken it over.
        NotWritten: the disk is full.
    """

    def __init__(self, path: Path, stale_seconds: float) -> None:
        self.path = path
        self.stale_seconds = stale_seconds
        self.owner = f"{os.getpid()} {socket.gethostname()} {time.time_ns()}"

    def __enter__(self) -> Lock:
        try:
            with _writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "x", encoding="utf-8") as file:
                    file.write(self.owner)
        except FileExistsError:
            if not self._is_dead():
                raise EntryLocked(f"{self.path.parent} is being written by process {self._owner()}") from None
            write(self.path, self.owner)
        return self

    def __exit__(self, *_: object) -> None:
        if self._owner() == self.owner:
            self.path.unlink(missing_ok=True)

    def renew(self) -> None:
        if self._owner() != self.owner:
            raise EntryLocked(f"{self.path.parent} was taken over by process {self._owner()}")
        os.utime(self.path)

    def _owner(self) -> str:
        with contextlib.suppress(OSError):
            return self.path.read_text(encoding="utf-8")
        return ""

    def _is_dead(self) -> bool:
        try:
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return True  # released meanwhile
        pid, host, *_ = [*self._owner().split(), "", ""]
        return age > self.stale_seconds or (host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)))


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 is none on Windows; a lock ages there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
