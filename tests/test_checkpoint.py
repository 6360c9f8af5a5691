from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from ignite.engine import Engine, Events
from monai.handlers import EarlyStopHandler
from torch import nn
from torch.optim import lr_scheduler

from common.checkpoint import TrainingCheckpoint, load_weights, save_weights, unwrapped, usable_device
from common.training import OneCycle


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestUsableDevice:
    def test_cpu_is_always_there(self):
        assert usable_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda:3")])
    def test_cuda_without_cuda_says_what_to_do(self, device):
        if torch.cuda.is_available():
            pytest.skip("CUDA is here")
        with pytest.raises(RuntimeError, match=r"device cuda.* was asked for, but CUDA sees 0 device.*--device cpu"):
            usable_device(device)


class TestLoadWeights:
    def test_weights_come_back_as_they_were_saved(self, tmp_path):
        save_weights(net(1), tmp_path / "new" / "model.pt")
        target = net(2)
        assert load_weights(target, tmp_path / "new" / "model.pt") is target
        assert equal(target, net(1))
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.pt"]

    def test_wrappers_are_looked_through_on_both_sides(self, tmp_path):
        save_weights(nn.DataParallel(net(1)), tmp_path / "model.pt")
        target = nn.DataParallel(net(2))
        load_weights(target, tmp_path / "model.pt")
        assert equal(unwrapped(target), net(1))

    def test_a_state_dict_under_model_is_taken(self, tmp_path):
        torch.save({"model": net(1).state_dict(), "epoch": 3}, tmp_path / "model.pt")
        assert equal(load_weights(net(2), tmp_path / "model.pt"), net(1))

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no weights at .*absent.pt: train first, or .*--ckpt"):
            load_weights(net(), tmp_path / "absent.pt")

    @pytest.mark.parametrize("keep", [0, 10, 700])
    def test_truncated_file_is_named_and_changes_nothing(self, tmp_path, keep):
        save_weights(net(1), tmp_path / "model.pt")
        whole = (tmp_path / "model.pt").read_bytes()
        (tmp_path / "model.pt").write_bytes(whole[:keep])
        target = net(2)
        with pytest.raises(ValueError, match=r"model.pt is not a readable checkpoint"):
            load_weights(target, tmp_path / "model.pt")
        assert equal(target, net(2))

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (nn.Linear(3, 4).state_dict(), r"Sequential: 6 entries differ, e.g. \['0.bias', '0.weight', '2.bias'\]"),
            (net(width=5).state_dict(), r"3 entries differ, e.g. \['0.weight', '0.bias', '2.weight'\]"),
            ({**net(1).state_dict(), "extra": torch.ones(1)}, r"1 entries differ, e.g. \['extra'\]"),
            ([1, 2], r"\(not a dictionary\)"),
            ({1: torch.ones(1)}, r"5 entries differ, e.g. \['0.bias', '0.weight', 1\]"),
            ({**net(1).state_dict(), "2.bias": 3}, r"1 entries differ, e.g. \['2.bias'\]"),
            ({**net(1).state_dict(), "2.bias": torch.tensor([torch.nan])}, r"NaN in the weights \(2.bias\), the train"),
        ],
    )
    def test_weights_that_cannot_be_the_networks_are_refused_whole_with_the_first_keys(self, tmp_path, state, message):
        torch.save(state, tmp_path / "model.pt")
        target = net(2)
        with pytest.raises(ValueError, match=rf"model.pt.*{message}"):
            load_weights(target, tmp_path / "model.pt")
        assert equal(target, net(2))


class TestTrainingCheckpoint:
    def train(self, folder: Path, epochs: int, *, stop_in: int | None = None, width: int = 4) -> tuple[Any, list[int]]:
        """Adam with a schedule on four fixed batches; `stop_in` interrupts in the middle of that epoch."""
        network = net(0, width)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        schedule = lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randn(5, 3, generator=generator) for _ in range(4)]
        seen: list[int] = []

        def step(engine: Engine, x: torch.Tensor) -> None:
            if engine.state.epoch == stop_in and engine.state.iteration % 4 == 2:
                raise KeyboardInterrupt
            optimizer.zero_grad()
            (network(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()

        engine = Engine(step)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: seen.append(e.state.epoch))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step())
        TrainingCheckpoint(
            folder / "checkpoint.pt",
            {"network": network, "optimizer": optimizer, "schedule": schedule},
            model=network,
            model_path=folder / "model.pt",
        ).attach(engine)
        engine.run(batches, max_epochs=epochs)
        return network, seen

    def test_interrupted_and_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(self, tmp_path):
        expected, seen = self.train(tmp_path / "whole", 5)
        assert seen == [1, 2, 3, 4, 5]
        with pytest.raises(KeyboardInterrupt):
            self.train(tmp_path / "parts", 5, stop_in=4)
        resumed, seen = self.train(tmp_path / "parts", 5)
        assert seen == [4, 5]
        assert equal(resumed, expected)
        assert equal(load_weights(net(3), tmp_path / "parts" / "model.pt"), expected)

    def test_a_finished_training_is_not_repeated(self, tmp_path):
        expected, _ = self.train(tmp_path, 3)
        again, seen = self.train(tmp_path, 3)
        assert seen == []
        assert equal(again, expected)

    def test_more_epochs_go_on_from_the_last(self, tmp_path):
        self.train(tmp_path / "parts", 2)
        resumed, seen = self.train(tmp_path / "parts", 4)
        assert seen == [3, 4]
        assert equal(resumed, self.train(tmp_path / "whole", 4)[0])

    def test_checkpoint_of_another_network_or_file_is_refused(self, tmp_path):
        self.train(tmp_path, 1)
        with pytest.raises(ValueError, match=r"(?s)checkpoint.pt belongs to another training \(network: .*output_dir"):
            self.train(tmp_path, 2, width=5)
        state = torch.load(tmp_path / "checkpoint.pt")
        torch.save({key: value for key, value in state.items() if key != "schedule"}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"belongs to another training \(schedule"):
            self.train(tmp_path, 2)
        torch.save({"epoch": 1, "network": net().state_dict()}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"belongs to another training \(optimizer"):
            self.train(tmp_path, 2)
        (tmp_path / "checkpoint.pt").write_bytes(b"cut off")
        with pytest.raises(ValueError, match=r"checkpoint.pt is not a readable checkpoint.*remove it"):
            self.train(tmp_path, 2)

    def test_only_complete_files_are_left_and_one_training_is_at_work_in_a_folder(self, tmp_path):
        self.train(tmp_path, 2)
        assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["checkpoint.pt", "model.pt"]
        with FileLock(tmp_path / ".training.lock", timeout=0), pytest.raises(RuntimeError, match="another training is"):
            self.train(tmp_path, 3)


def sequential(optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=steps // 4)
    return lr_scheduler.SequentialLR(
        optimizer, [warm, lr_scheduler.CosineAnnealingLR(optimizer, steps - steps // 4)], milestones=[steps // 4]
    )


class TestScheduleOfResumedTraining:
    """Schedules by the number of steps that a training has."""

    SCHEDULES: tuple[Callable[[Any, int], Any], ...] = (
        lambda optimizer, steps: OneCycle(optimizer, 0.1, steps, 0.2),
        lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
        lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps),
        lambda optimizer, steps: lr_scheduler.ConstantLR(optimizer, 0.5, steps // 3),
        sequential,
    )

    def train(
        self,
        folder: Path,
        schedule: Callable[[Any, int], Any],
        batches: int,
        epochs: int,
        *,
        stop_after: int = 99,
        each: Events = Events.ITERATION_COMPLETED,
    ) -> list[tuple[float, Any]]:
        """Learning rate and betas of each step; `stop_after` interrupts when that epoch's checkpoint is written."""
        network = net()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        steps = schedule(optimizer, epochs * batches if each == Events.ITERATION_COMPLETED else epochs)
        seen: list[tuple[float, Any]] = []

        def step(engine: Engine, x: torch.Tensor) -> None:
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
            network(x).sum().backward()
            optimizer.step()

        engine = Engine(step)
        engine.add_event_handler(each, lambda _: steps.step())
        objects = {"network": network, "optimizer": optimizer, "lr_scheduler": steps}
        TrainingCheckpoint(folder / "c.pt", objects, model=network, model_path=folder / "m.pt").attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda e: e.terminate())
        engine.run([torch.ones(2, 3)] * batches, max_epochs=epochs)
        return seen

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize(("batches", "epochs"), [(4, 6), (7, 6), (3, 6), (4, 9), (2, 4)])
    def test_rates_are_those_of_a_training_that_always_had_the_new_length(self, tmp_path, schedule, batches, epochs):
        expected = self.train(tmp_path / "whole", schedule, batches, epochs)
        before = self.train(tmp_path / "parts", schedule, 4, 6, stop_after=3)
        after = self.train(tmp_path / "parts", schedule, batches, epochs)
        assert len(before) == 12
        assert after == expected[3 * batches :]

    def test_a_schedule_by_epochs_keeps_its_epochs(self, tmp_path):
        schedule = self.SCHEDULES[0]
        self.train(tmp_path / "parts", schedule, 4, 10, stop_after=4, each=Events.EPOCH_COMPLETED)
        after = self.train(tmp_path / "parts", schedule, 7, 10, each=Events.EPOCH_COMPLETED)
        assert after == self.train(tmp_path / "whole", schedule, 7, 10, each=Events.EPOCH_COMPLETED)[4 * 7 :]

    def test_what_changed_is_named(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            for batches, epochs, stop in ((4, 6, 3), (4, 6, 4), (3, 8, 99)):
                assert caplog.text == ""
                self.train(tmp_path, self.SCHEDULES[1], batches, epochs, stop_after=stop)
        assert "'epochs 6 before, 8 now', 'steps an epoch 4 before, 3 now'" in caplog.text
        assert "4 of 8 epochs are done" in caplog.text
        assert "batch size" not in caplog.text  # that stayed

    def test_a_schedule_that_cannot_go_so_far_is_refused_at_the_start(self, tmp_path):
        self.train(tmp_path, self.SCHEDULES[0], 4, 6, stop_after=3)
        with pytest.raises(ValueError, match=r"lr_scheduler \(OneCycleLR\) cannot make the 21 steps .*new length, .*7"):
            self.train(tmp_path, lambda optimizer, _: lr_scheduler.OneCycleLR(optimizer, 0.1, 10), 7, 6)

    def test_a_checkpoint_that_does_not_say_how_long_its_epochs_were_is_refused(self, tmp_path):
        self.train(tmp_path, self.SCHEDULES[0], 4, 6, stop_after=3)
        state = torch.load(tmp_path / "c.pt", weights_only=True)
        del state["length"]
        torch.save(state, tmp_path / "c.pt")
        with pytest.raises(ValueError, match=r"c.pt does not say how many steps its epochs had"):
            self.train(tmp_path, self.SCHEDULES[0], 4, 6)


class TestBestOf:
    def train(self, folder: Path, reached: list[float | None]) -> dict[str, list[int]]:
        """Epoch n leaves the weight n; the validation after it reaches `reached[n - 1]`, None: there is none."""
        network = nn.Linear(1, 1, bias=False)
        validator = Engine(lambda *_: None)
        validator.state.key_metric_name = "auc"  # type: ignore[attr-defined]
        kept: dict[str, list[int]] = {"model.pt": [], "checkpoint.pt": []}

        def learn(engine: Engine) -> None:
            nn.init.constant_(network.weight, float(engine.state.epoch))
            if (auc := reached[engine.state.epoch - 1]) is not None:
                validator.state.metrics = {"auc": auc, "loss": 9.0}
                validator.state.epoch = engine.state.epoch

        def look(engine: Engine) -> None:
            model, state = (torch.load(folder / name, weights_only=True) for name in kept)
            kept["model.pt"].append(int(model["weight"]))
            kept["checkpoint.pt"].append(int(state["network"]["weight"]))

        engine = Engine(lambda *_: None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, learn)
        TrainingCheckpoint(
            folder / "checkpoint.pt",
            {"network": network},
            model=network,
            model_path=folder / "model.pt",
            best_of=validator,
        ).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, look)
        engine.run([0], max_epochs=len(reached))
        return kept

    @pytest.mark.parametrize(
        ("reached", "best"),
        [
            ([0.5, 0.7, 0.6, 0.9, 0.8], [1, 2, 2, 4, 4]),
            ([0.7, 0.7, 0.6, 0.7], [1, 2, 2, 4]),  # of equals the later one
            ([0.9, float("nan"), 0.8, 0.9], [1, 2, 2, 4]),  # an undefined metric keeps nothing back
            ([float("nan"), 0.3, 0.2], [1, 2, 2]),
            ([None, 0.5, None, 0.5, None], [1, 2, 2, 4, 4]),  # what was not validated is not as good as what was
        ],
    )
    def test_weights_are_those_of_the_best_epoch_and_the_checkpoint_that_of_the_last(self, tmp_path, reached, best):
        kept = self.train(tmp_path, reached)
        assert kept["model.pt"] == best
        assert kept["checkpoint.pt"] == list(range(1, len(reached) + 1))

    @pytest.mark.parametrize("parts", [(8,), (1, 8), (3, 8), (4, 8), (4, 4, 8), (1, 2, 3, 4, 8)])
    def test_early_stopping_counts_on_where_an_interrupted_training_was(self, tmp_path, parts):
        reached = [0.5, 0.6, 0.6, 0.5, 0.9, 0.9, 0.9, 0.9]  # two without progress end it after epoch 4
        assert [self.stop(tmp_path, reached, patience=2, epochs=epochs) for epochs in parts][-1] == 4
        assert self.stop(tmp_path, reached, patience=3, epochs=8) == 8  # a longer patience goes on

    def stop(self, folder: Path, reached: list[float], *, patience: int, epochs: int) -> int:
        """Train up to so many epochs, and return after which one it was over."""
        network, validator, engine = nn.Linear(1, 1), Engine(lambda *_: None), Engine(lambda *_: None)
        stopping = EarlyStopHandler(patience, lambda _: reached[engine.state.epoch - 1], trainer=engine)
        stopping.attach(validator)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run([0]))
        names = {"model": network, "model_path": folder / "model.pt", "stopping": stopping}
        TrainingCheckpoint(folder / "checkpoint.pt", {"network": network}, **names).attach(engine)
        engine.run([0], max_epochs=epochs)
        return engine.state.epoch

    def test_a_resumed_training_remembers_what_was_reached(self, tmp_path):
        self.train(tmp_path, [0.5, 0.8])
        assert self.train(tmp_path, [0.5, 0.8, 0.7, 0.8])["model.pt"] == [2, 4]
