"""What a training tells while it runs and when it ends: its log, a page with curves and pictures, a tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.distributed import get_rank
from ignite.engine import Engine, Events

from ..engines import raise_together, running_config
from ..files import PathLike, write_json
from ..handlers import Tracker, ValidationMontages
from ..training import TrainingLog
from .build import write_training_report
from .record import training_record
from .training import LOG, RECORD

logger = logging.getLogger(__name__)


class TrainingReport:
    """Handler: `training_log.csv` and, as training ends, its record and, where `montages` are given, `report.html`.

    `python -m common report DIR` makes the page afterwards, without pictures where none were drawn.

    Args:
        output_dir: of the training.
        validator: evaluator whose metrics are logged beside the loss.
        progress: show a bar over the epochs.
        montages: options of `common.handlers.ValidationMontages`, which ask for the page; None: no page, no pictures.
        inferer, transform: two more of them.
        track: also log to `tensorboard` or `mlflow`, see `common.handlers.Tracker`; None: to neither.
        about: `bundle_root` and `datalist`, for the record.
    """

    def __init__(
        self,
        output_dir: PathLike,
        *,
        validator: Engine | None = None,
        progress: bool = True,
        montages: Mapping[str, Any] | None = None,
        inferer: Callable | None = None,
        transform: Callable | None = None,
        track: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.about = dict(about or {})
        self.enabled = montages is not None
        log = TrainingLog(self.output_dir / LOG, validator=validator, progress=progress)
        self.handlers: list[Any] = [log]
        if montages is not None and inferer is not None:
            self.handlers.append(ValidationMontages(self.output_dir, **montages, inferer=inferer, transform=transform))
        if track is not None:
            name = Path(self.about["bundle_root"]).name if self.about.get("bundle_root") else "weakseg"
            self.handlers.append(Tracker(track, self.output_dir, log=log, experiment=name))
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        for handler in self.handlers:
            handler.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._began = time.time()

    def _finish(self, engine: Engine) -> None:
        error = None
        try:
            if get_rank() == 0:
                self._write(engine)
        except Exception as met:
            error = met
        raise_together(error)

    def _write(self, engine: Any) -> None:
        config, settings = running_config()
        device = str(engine.state.device)
        seconds = time.time() - self._began
        record = training_record(config=config, settings=settings, seconds=seconds, device=device, **self.about)
        write_json(self.output_dir / RECORD, record)
        if self.enabled:
            logger.info("report: %s", write_training_report(self.output_dir))
