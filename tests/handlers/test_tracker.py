from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from PIL import Image

from common.handlers import Tracker, tracker
from common.training import TrainingLog


def train(folder: Path, track: str, *, epochs: int = 2) -> None:
    """A training of two iterations an epoch, whose log has two metrics and whose first epoch leaves a picture."""
    trainer, validator = Engine(lambda engine, batch: {"loss": batch / engine.state.epoch}), Engine(lambda *_: None)
    validator.state.metrics = {"auc": 0.75, "undefined": float("nan")}
    log = TrainingLog(folder / "training_log.csv", validator=validator, progress=False)
    log.attach(trainer)
    (folder / "montages").mkdir(parents=True)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: draw(folder / "montages" / "p1_epoch_0001.png"))
    Tracker(track, folder, log=log).attach(trainer)
    trainer.run([1.0, 3.0], max_epochs=epochs)


def draw(path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(path)


def test_tensorboard_has_losses_metrics_and_pictures(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra [track] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert values.keys() == {"loss", "auc", "seconds", "loss of the iteration"}  # what is undefined is left out
    assert values["loss"] == [(1, 2.0), (2, 1.0)]
    assert values["auc"] == [(1, 0.75), (2, 0.75)]
    assert values["loss of the iteration"] == [(1, 1.0), (2, 3.0), (3, 0.5), (4, 1.5)]
    (picture,) = found.Images("montages/p1")
    assert (picture.step, picture.width, picture.height) == (1, 8, 4)


def test_mlflow_has_metrics_and_pictures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow, of the extra [track], is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlruns.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("weakseg").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "montages")] == ["montages/p1_epoch_0001.png"]
    assert list((tmp_path / "run" / "mlruns").glob("**/*.png"))


@pytest.mark.parametrize("track", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_said_with_what_brings_it(tmp_path, monkeypatch, track):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None if name == track else find_spec(name))
    with pytest.raises(RuntimeError, match=rf"{track} is not installed: pip install .*\[track\].*--track null"):
        Tracker(track, tmp_path, log=TrainingLog(tmp_path / "log.csv"))


def test_another_tracker_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(ValueError, match="track must be one of tensorboard, mlflow, or null; got 'wandb'"):
        Tracker("wandb", tmp_path, log=TrainingLog(tmp_path / "log.csv"))
