"""What a command shows while runs of bundles go on: steps, bars and warnings; all else they say goes to a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Without sections of their own MONAI's loggers keep the handlers that they bring.
LOGGING = """[loggers]
keys=root,monai
[handlers]
keys=file,console
[formatters]
keys=whole,short
[logger_root]
level=INFO
handlers=file,console
[logger_monai]
qualname=monai
level=INFO
handlers=
[handler_file]
class=FileHandler
level=INFO
formatter=whole
args=({log!r}, 'a', 'utf-8')
[handler_console]
class=StreamHandler
level={level}
formatter=short
args=(sys.stderr,)
[formatter_whole]
format=%(asctime)s %(levelname)s %(name)s: %(message)s
[formatter_short]
format=%(levelname)s: %(message)s
"""


@dataclass
class _Console:
    log: Path
    verbose: bool
    steps: int
    begun: int = 0


_CONSOLE: ContextVar[_Console | None] = ContextVar("console", default=None)


@contextmanager
def logged(log: Path, *, verbose: bool = False, steps: int = 0) -> Iterator[None]:
    """In the block, what runs of bundles say goes to a file; the console shows their bars, warnings and errors.

    Args:
        log: the file; lines are added to it.
        verbose: the console shows everything.
        steps: how often `step` will be called; 0: unknown.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    token = _CONSOLE.set(_Console(log.resolve(), verbose, steps))
    try:
        yield
    finally:
        _CONSOLE.reset(token)


def step(title: str) -> None:
    """Print what begins now, numbered where the number of steps is known."""
    console = _CONSOLE.get()
    if console is None or not console.steps:
        print(title, flush=True)
        return
    console.begun += 1
    print(f"[{console.begun}/{console.steps}] {title}", flush=True)


@contextmanager
def output_of_run() -> Iterator[tuple[dict[str, str], IO[str] | None]]:
    """Settings of `monai.bundle run` and the file of its stdout, as the block of `logged` asks; else none."""
    console = _CONSOLE.get()
    if console is None:
        yield {}, None
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "logging.conf"
        level = "INFO" if console.verbose else "WARNING"
        # A percent sign begins a substitution in this format.
        config.write_text(LOGGING.format(log=str(console.log).replace("%", "%%"), level=level), encoding="utf-8")
        if console.verbose:
            yield {"logging_file": str(config)}, None
            return
        with open(console.log, "a", encoding="utf-8") as stdout:
            yield {"logging_file": str(config)}, stdout
