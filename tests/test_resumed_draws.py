"""What a resumed training draws and counts: each run is seeded as the first was, and yet sees other slices."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler

from common.checkpoint import TrainingCheckpoint


def test_a_resumed_training_does_not_draw_as_its_first_epoch_did(tmp_path):
    def run(epochs: int) -> list[int]:
        torch.manual_seed(0)  # as `set_determinism` at the beginning of every run
        drawn: list[int] = []
        network, data = torch.nn.Linear(1, 1), torch.arange(50)
        engine = Engine(lambda _, batch: drawn.extend(batch.tolist()))
        paths = {"path": tmp_path / "checkpoint.pt", "model_path": tmp_path / "model.pt"}
        TrainingCheckpoint(objects={"network": network}, model=network, **paths).attach(engine)
        engine.run(DataLoader(data, sampler=RandomSampler(data), batch_size=10), max_epochs=epochs)
        return drawn

    first, second, third = run(1), run(2), run(3)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(50))
    assert len({tuple(drawn) for drawn in (first, second, third)}) == 3


def test_a_schedule_that_waits_for_progress_goes_on_counting(tmp_path):
    """It has no length to be stepped anew for, and nobody knows its metric any more."""

    def rate(epochs: int) -> float:
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        engine = Engine(lambda *_: None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step(1.0))
        objects = {"optimizer": optimizer, "lr_scheduler": schedule}
        paths = {"path": tmp_path / "checkpoint.pt", "model_path": tmp_path / "model.pt"}
        TrainingCheckpoint(objects=objects, model=network, **paths).attach(engine)
        engine.run([0], max_epochs=epochs)
        return optimizer.param_groups[0]["lr"]

    assert [rate(3), rate(4), rate(6), rate(7)] == [1.0, 0.5, 0.5, 0.25]
