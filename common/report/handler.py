"""The last handler of a run: its record, and the page about it where one is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.distributed import get_rank
from ignite.engine import Engine, Events

from ..engines import gathered, raise_together, running_config
from ..files import PathLike, write_json
from .build import write_report
from .record import run_record
from .tables import RECORD, SUMMARIES, TABLES

logger = logging.getLogger(__name__)


class Report:
    """Handler: writes `run.json`, the record of a run, and, when `enabled`, `report.html` from the run's files.

    It comes after all other handlers, wherever it stands among them, and needs no case: those that an earlier run
    finished are in the page, too. Scores that an earlier run has left in the folder are of other masks: they are out of
    the page, with a warning. Of several processes the first one writes.

    Args:
        output_dir: the run's folder.
        enabled: write the page. Afterwards `python -m common report DIR` does it.
        bundle_root, ckpt, datalist, section, chosen: see `common.report.record.run_record`.
        max_embedded, max_mb: see `build_report`.
    """

    def __init__(
        self,
        output_dir: PathLike,
        *,
        enabled: bool = False,
        bundle_root: PathLike | None = None,
        ckpt: PathLike | None = None,
        datalist: PathLike | None = None,
        section: str | None = None,
        chosen: Mapping[str, Any] | None = None,
        max_embedded: int = 8,
        max_mb: float = 15.0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.enabled = enabled
        self.about: dict[str, Any] = {
            **{"bundle_root": bundle_root, "ckpt": ckpt, "datalist": datalist, "section": section},
            "chosen": dict(chosen or {}),
        }
        self.limits: dict[str, Any] = {"max_embedded": max_embedded, "max_mb": max_mb}
        self._began = 0.0
        self._earlier: dict[str, tuple[int, ...]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)

    def finished(self, engine: Any) -> None:
        """No case is needed for this handler's sake, see `CaseHandler.finished`."""

    def _start(self, engine: Engine) -> None:
        self._began = time.time()
        self._earlier = _scores_in(self.output_dir)
        if engine.has_event_handler(self._finish, Events.COMPLETED):
            engine.remove_event_handler(self._finish, Events.COMPLETED)
        engine.add_event_handler(Events.COMPLETED, self._finish)  # now, so that the other handlers' files are there

    def _finish(self, engine: Any) -> None:
        error = None
        failed = {case: reason for part in gathered(engine.failed) for case, reason in part.items()}
        try:
            if get_rank() == 0:
                self._write(engine, failed)
        except Exception as met:
            error = met
        raise_together(error)

    def _write(self, engine: Any, failed: Mapping[str, str]) -> None:
        config, settings = running_config()
        now = _scores_in(self.output_dir)
        own = [name for name, state in now.items() if state != self._earlier.get(name)]
        if others := [name for name in now if name not in own]:
            told = "%s: %s are of an earlier run, not of these masks, and out of the report; remove them"
            logger.warning(told, self.output_dir, ", ".join(others))
        record = run_record(
            engine.cases,
            config=config,
            settings=settings,
            seconds=time.time() - self._began,
            failed=failed,
            scores=own,
            device=str(engine.state.device),
            **self.about,
        )
        write_json(self.output_dir / RECORD, record)
        if self.enabled:
            logger.info("report: %s", write_report(self.output_dir, **self.limits))


def _scores_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Files of scores in a folder by name; who writes one anew leaves another file, or another time."""
    found = {name: folder / name for name in (*TABLES, *SUMMARIES)}
    states = {name: path.stat() for name, path in found.items() if path.is_file()}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states.items()}
