"""A training's log in TensorBoard or MLflow, through MONAI's handlers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ignite.distributed import get_rank
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler, TensorBoardStatsHandler
from PIL import Image

from ..files import PathLike
from ..training import TrainingLog
from .validation_montages import FOLDER

TRACKERS = ("tensorboard", "mlflow")


class Tracker:
    """Handler: what a training logs of an epoch, and pictures of validation cases where there are any, in a tracker.

    - `tensorboard`: event files in `<output_dir>/tensorboard`, with the loss of every iteration, too:
      `tensorboard --logdir DIR`;
    - `mlflow`: the server that `MLFLOW_TRACKING_URI` names, else `<output_dir>/mlruns.db`:
      `mlflow ui --backend-store-uri sqlite:///DIR/mlruns.db`. A run that was interrupted goes on.

    It comes after the log and whatever draws pictures. Of several processes the first one tracks.

    Args:
        track: which of the two.
        output_dir: of the training.
        log: of the epochs.
        experiment: name of MLflow's experiment; the run has that of the folder.

    Raises:
        ValueError: another tracker.
        RuntimeError: its package is not installed.
    """

    def __init__(self, track: str, output_dir: PathLike, *, log: TrainingLog, experiment: str = "weakseg") -> None:
        if track not in TRACKERS:
            raise ValueError(f"track must be one of {', '.join(TRACKERS)}, or null; got {track!r}")
        if find_spec(track) is None:
            raise RuntimeError(f'{track} is not installed: pip install "weakseg-bundles[track]", or --track null')
        self.track = track
        self.folder = Path(output_dir)
        self.log = log
        self.experiment = experiment
        self._sent: set[Path] = set()
        self._handler: Any = None
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        if get_rank() != 0:
            return
        self._sent = set(self._pictures())  # of an interrupted training, which has sent them
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._send)
        engine.add_event_handler(Events.COMPLETED, self._send)
        self._handler = self._tensorboard() if self.track == "tensorboard" else self._mlflow()
        self._handler.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _tensorboard(self) -> TensorBoardStatsHandler:
        from torch.utils.tensorboard import SummaryWriter  # of an extra

        self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        return TensorBoardStatsHandler(
            self._writer, epoch_event_writer=self._write_epoch, output_transform=_loss, tag_name="loss of the iteration"
        )

    def _mlflow(self) -> MLFlowHandler:
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder.resolve()
        own = not os.environ.get("MLFLOW_TRACKING_URI")
        handler = MLFlowHandler(
            tracking_uri=f"sqlite:///{home / 'mlruns.db'}" if own else None,
            iteration_log=False,
            epoch_logger=self._log_epoch,
            experiment_name=self.experiment,
            run_name=home.name,
            close_on_complete=True,
        )
        if own and handler.client.get_experiment_by_name(self.experiment) is None:
            handler.client.create_experiment(self.experiment, artifact_location=(home / "mlruns").as_uri())
        return handler

    def _numbers(self) -> Mapping[str, float]:
        row = self.log.rows[-1]
        return {key: value for key, value in row.items() if key != "epoch" and np.isfinite(value)}

    def _write_epoch(self, engine: Engine, writer: Any) -> None:
        for name, value in self._numbers().items():
            writer.add_scalar(name, value, engine.state.epoch)

    def _log_epoch(self, engine: Engine) -> None:
        self._handler._log_metrics(dict(self._numbers()), step=engine.state.epoch)

    def _pictures(self) -> list[Path]:
        return sorted((self.folder / FOLDER).glob("[!.]*_epoch_*.png"))

    def _send(self, engine: Engine) -> None:
        for path in self._pictures():
            if path in self._sent:
                continue
            self._sent.add(path)
            if self._writer is not None:
                case, _, epoch = path.stem.rpartition("_epoch_")
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self._writer.add_image(f"{FOLDER}/{case}", pixels, int(epoch), dataformats="HWC")
            else:
                self._handler.client.log_artifact(self._handler.cur_run.info.run_id, str(path), FOLDER)

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()


def _loss(output: Any) -> float:
    """Of an iteration, whose output is a list where it is decollated."""
    return float((output[0] if isinstance(output, Sequence) else output)["loss"])
