"""What the handlers share: a look at each case of a run, and files at its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ignite.distributed import get_rank, get_world_size
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from ..engines import gathered, gathered_rows, raise_together
from ..files import PathLike

logger = logging.getLogger(__name__)

OF_MEMORY = "split 'paper': other slices of these patients may have been trained on, so scores are of memory, too"


def chosen_from_section(section: str | None, datalist: PathLike | None) -> dict[str, str]:
    """The section of a datalist that settings are chosen from, for `chosen_from`; test cases are warned of."""
    if not section or not datalist:
        return {}
    if "test" in section.split("+"):
        logger.warning(
            "gate and thresholds are chosen from the section %r: scores of these test cases flatter them from now on; "
            "say --section validation to choose again",
            section,
        )
    return {"section": section}


def iterate_cases(engine: Engine) -> Iterator[tuple[dict, dict]]:
    """The `(batch, output)` of each case of an iteration, decollated or, where an iteration is one case, as it is."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return zip(*((batch, output) if isinstance(batch, list) else ([batch], [output])), strict=True)


class CaseHandler:
    """Base of the handlers that look at each case of a run, and write what they found when it ends.

    A subclass overrides `_collect`, which adds to `rows`, and `_write`. Of several processes (`torchrun`) each collects
    its share of the cases; at the end all of them hold all rows, and the first one writes.

    Args:
        output_dir: where the files go.

    Attributes:
        rows: what was found, each with its `case`; a case may have several, or none.
        of_memory: whether `prepare --split paper` drew some of the cases, which scores say by `OF_MEMORY`.
        one_process: of a subclass, whether it needs all cases as it goes, so that several processes are refused.
    """

    one_process = False

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.rows: list[dict] = []
        self.of_memory = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._iterate)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _iterate(self, engine: Engine) -> None:
        for batch, output in iterate_cases(engine):
            self._collect(batch, output, engine)
            self.of_memory |= batch.get("split") == "paper"

    def _finish(self, engine: Engine) -> None:
        self._gather(getattr(engine, "cases", ()))
        self._check()
        error = None
        try:
            if get_rank() == 0:
                self._write()
        except Exception as met:
            error = met
        raise_together(error)

    def finished(self, engine: Any) -> set[str]:
        """Cases that a run may skip because an earlier one left all that this handler would; asked before it begins.

        Returns:
            Their names; none where every case is needed, as for scores.
        """
        return set()

    def _start(self) -> None:
        """Begin afresh, whatever an earlier run has left."""
        if self.one_process and get_world_size() > 1:
            name, count = type(self).__name__, get_world_size()
            raise RuntimeError(
                f"{name} looks at all cases in one process, but {count} were started: run it without torchrun"
            )
        self.rows, self.of_memory = [], False

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        """Add what there is to say about a case to `rows`; an exception marks the case as failed."""
        raise NotImplementedError

    def _gather(self, cases: Sequence[str]) -> None:
        """Bring together what the processes have found, in the order of `cases`."""
        self.rows = gathered_rows(self.rows, cases)
        self.of_memory = any(gathered(self.of_memory))

    def _check(self) -> None:
        """Raise a `RuntimeError` where too little was found; in every process, so that none waits for the others."""

    def _write(self) -> None:
        """Write the files, in the first process only."""
        raise NotImplementedError
