"""What the handlers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ignite.engine import Engine


def iterate_cases(engine: Engine) -> Iterator[tuple[dict, dict]]:
    """The decollated `(batch, output)` of each volume of an iteration."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return zip(batch, output, strict=True)
