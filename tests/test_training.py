from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common.checkpoint import TrainingCheckpoint, load_weights
from common.training import (
    OneCycle,
    RandIntensityd,
    TrainingLog,
    WeightAverage,
    clip_gradients,
    mask_targets,
    parameter_groups,
    prepare_batch,
)

QUIET: dict[str, Any] = {"gamma": 0.0, "gain": 0.0, "blur": 0.0, "noise": 0.0, "upper": 100.0}


def test_weights_without_nan_stay_where_a_training_fails(tmp_path):
    network, engine = nn.Linear(1, 1), Engine(lambda *_: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: nn.init.constant_(network.bias, torch.nan))
    paths = tmp_path / "checkpoint.pt", tmp_path / "model.pt"
    TrainingCheckpoint(paths[0], {"network": network}, model=network, model_path=paths[1]).attach(engine)
    with pytest.raises(ValueError, match=r"model.pt: NaN in the weights \(bias\), the training has failed"):
        engine.run([0], max_epochs=3)
    load_weights(nn.Linear(1, 1), paths[1])
    assert torch.load(paths[0], weights_only=True)["epoch"] == 1


class TestRandIntensityd:
    def image(self) -> torch.Tensor:
        return torch.rand((2, 9, 11), generator=torch.Generator().manual_seed(0)) * 3

    def changed(self, seed: int = 0, **options: Any) -> torch.Tensor:
        transform = RandIntensityd("image", **options)
        transform.set_random_state(seed)
        return transform({"image": self.image()})["image"]

    def test_gamma_keeps_the_median_at_one_and_the_order_of_values(self):
        image = self.image() / self.image().median()
        for seed in range(10):
            transform = RandIntensityd("image", **QUIET | {"gamma": 0.5})
            transform.set_random_state(seed)
            out = transform({"image": image})["image"]
            assert not torch.allclose(out, image)
            assert float(out.median()) == pytest.approx(1.0)
            assert torch.equal(out.flatten().argsort(), image.flatten().argsort())

    def test_gamma_and_gain_stay_in_their_ranges_and_reach_both_sides(self):
        exponents, gains = [], []
        for seed in range(200):
            out = self.changed(seed, **QUIET | {"gamma": 0.25, "gain": 0.12}).double()
            slope, intercept = np.polyfit(self.image().double().log().flatten(), out.log().flatten(), 1)
            exponents.append(np.log(slope))
            gains.append(intercept)
        for values, limit in ((exponents, 0.25), (gains, 0.12)):
            assert -limit - 1e-4 <= min(values) < -0.9 * limit
            assert 0.9 * limit < max(values) <= limit + 1e-4

    def test_values_are_clipped_to_zero_and_upper(self):
        out = self.changed(noise=2.0, gain=1.0, upper=1.5)
        assert float(out.min()) == 0.0
        assert float(out.max()) == 1.5

    @pytest.mark.parametrize("options", [{"prob": 0.0}, QUIET])
    def test_probability_or_strength_zero_changes_nothing(self, options):
        torch.testing.assert_close(self.changed(**options), self.image())

    def test_same_seed_same_result_and_draws_differ(self):
        assert torch.equal(self.changed(3), self.changed(3))
        assert not torch.allclose(self.changed(3), self.changed(4))
        transform = RandIntensityd("image")
        transform.set_random_state(0)
        first, second = (transform({"image": self.image()})["image"] for _ in range(2))
        assert not torch.allclose(first, second)

    def test_input_is_left_alone_and_keys_share_gamma_and_gain(self):
        image = self.image()
        transform = RandIntensityd(["image", "other"], **QUIET | {"gamma": 0.5, "gain": 0.5})
        transform.set_random_state(1)
        out = transform({"image": image, "other": image.clone()})
        assert torch.equal(image, self.image())
        assert torch.equal(out["image"], out["other"])

    def test_blur_smooths_and_keeps_the_mean_of_a_flat_image(self):
        transform = RandIntensityd("image", **QUIET | {"blur": 1.0})
        transform.set_random_state(0)
        spike = torch.zeros(1, 21, 21)
        spike[0, 10, 10] = 1.0
        out = transform({"image": spike})["image"]
        assert 0.05 < float(out.max()) < 0.95
        assert float(out.sum()) == pytest.approx(1.0, abs=1e-3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.encoder_top = nn.Linear(4, 2)
        self.head = nn.Linear(2, 1)


class TestParameterGroups:
    def test_every_parameter_is_in_exactly_one_group(self):
        net = Net()
        groups = parameter_groups(net, {"encoder_top": 3.0, "encoder": 2.0, "": 1.0})
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters())
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert {name: rates[id(p)] for name, p in net.named_parameters()} == {
            "encoder.weight": 2.0, "encoder.bias": 2.0, "encoder_top.weight": 3.0, "encoder_top.bias": 3.0,
            "head.weight": 1.0, "head.bias": 1.0,
        }  # fmt: skip

    def test_a_module_is_not_taken_for_another_whose_name_begins_alike(self):
        groups = parameter_groups(Net(), {"encoder": 2.0, "head.weight": 3.0, "": 1.0})
        shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]
        assert shapes == [[(4, 3), (4,)], [(1, 2)], [(2, 4), (2,), (1,)]]

    def test_names_are_those_of_the_network_inside_a_wrapper(self):
        groups = parameter_groups(nn.DataParallel(Net()), {"head": 1.0, "": 0.1})
        assert [len(group["params"]) for group in groups] == [2, 4]

    def test_empty_groups_are_left_out(self):
        assert len(parameter_groups(Net(), {"decoder": 1.0, "": 0.1})) == 1

    def test_a_parameter_without_learning_rate_is_named(self):
        with pytest.raises(ValueError, match=r"no learning rate for the parameter 'head.weight'"):
            parameter_groups(Net(), {"encoder": 1.0, "encoder_top": 1.0})


class TestClipGradients:
    GRADIENTS = torch.tensor([3.0, -4.0, 0.5])

    def step(self, **options: float) -> torch.Tensor:
        """What one step of plain gradient descent with rate 1 subtracts."""
        weight = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([{"params": [weight]}], lr=1.0)
        assert clip_gradients(optimizer, **options) is optimizer
        weight.grad = self.GRADIENTS.clone()
        optimizer.step()
        return -weight.detach()

    def test_norm_scales_all_gradients_together(self):
        norm = self.GRADIENTS.norm()
        torch.testing.assert_close(self.step(norm=1.0), self.GRADIENTS / norm, atol=1e-5, rtol=0)
        torch.testing.assert_close(self.step(norm=50.0), self.GRADIENTS)

    def test_value_bounds_each_entry(self):
        torch.testing.assert_close(self.step(value=1.0), torch.tensor([1.0, -1.0, 0.5]))

    def test_norm_comes_before_value_and_without_both_nothing_is_clipped(self):
        scaled = self.GRADIENTS / self.GRADIENTS.norm() * 2
        torch.testing.assert_close(self.step(norm=2.0, value=1.0), scaled.clamp(-1, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(self.step(), self.GRADIENTS)


def optimizer_of(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter], lr=0.1, momentum=0.9)


class TestOneCycle:
    def rates(self, schedule: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            schedule.optimizer.step()
            schedule.step() if len(rates) < steps else None
        return rates

    @pytest.mark.parametrize(("steps", "share"), [(5, 0.2), (10, 0.1), (2, 0.5)])
    def test_a_warm_up_of_one_step_rises_and_the_rest_falls(self, steps, share):
        rates = self.rates(OneCycle(optimizer_of(nn.Parameter(torch.zeros(1))), 0.1, steps, share), steps)
        assert rates[0] == pytest.approx(0.1 / 25)
        assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
        assert rates[2:] == sorted(rates[2:], reverse=True)

    @pytest.mark.parametrize("steps", [1, 3, 4, 6, 29])
    def test_of_any_other_length_it_is_torchs_own(self, steps):
        ours, theirs = (
            kind(optimizer_of(nn.Parameter(torch.zeros(1))), 0.1, total_steps=steps, pct_start=0.2)
            for kind in (OneCycle, torch.optim.lr_scheduler.OneCycleLR)
        )
        assert self.rates(ours, steps) == self.rates(theirs, steps)

    def test_no_step_says_why(self):
        with pytest.raises(ValueError, match=r"training of 0 steps: .*smaller than batch_size"):
            OneCycle(optimizer_of(nn.Parameter(torch.zeros(1))), 0.1, 0)


def test_weight_average_is_the_exponential_moving_average_in_closed_form():
    network = nn.Linear(1, 1, bias=False)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    weights = [1.0, 3.0, -2.0, 5.0]

    def step(engine: Engine, value: float) -> None:
        with torch.no_grad():
            network.weight.fill_(value)

    engine = Engine(step)
    WeightAverage(average, network).attach(engine)
    engine.run(weights)
    # The first weights are taken as they are; each later one enters with 1 - 0.8.
    expected = 0.8**3 * 1.0 + 0.2 * (0.8**2 * 3.0 + 0.8 * -2.0 + 5.0)
    assert average.module.weight.item() == pytest.approx(expected)


class TestTrainingLog:
    LOSSES = (2.0, 1.0, 0.6)

    def train(
        self,
        path: Path,
        epochs: int,
        *,
        after: int = 0,
        validator: Any = None,
        as_list: bool = False,
        progress: bool = False,
    ) -> None:
        """Train for some epochs, the first `after` of them in an earlier process."""

        def step(engine: Engine, loss: float) -> Any:
            output = {"loss": torch.tensor(loss * engine.state.epoch)}
            return [output] if as_list else output

        engine = Engine(step)
        TrainingLog(path, validator=validator, progress=progress).attach(engine)
        if after:
            engine.load_state_dict({"epoch": after, "max_epochs": epochs, "epoch_length": 3})
        engine.run(self.LOSSES, max_epochs=epochs)

    def rows(self, path: Path) -> list[dict[str, str]]:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @pytest.mark.parametrize("as_list", [False, True])
    def test_each_epoch_has_a_row_with_its_mean_loss(self, tmp_path, as_list):
        self.train(tmp_path / "log.csv", 3, as_list=as_list)
        rows = self.rows(tmp_path / "log.csv")
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
        assert [float(row["loss"]) for row in rows] == pytest.approx([1.2, 2.4, 3.6])
        assert all(0 <= float(row["seconds"]) < 10 for row in rows)

    def test_validation_metrics_stand_beside_the_loss(self, tmp_path):
        validator = SimpleNamespace(state=SimpleNamespace(metrics={"auc": 0.1234567, "f1": torch.tensor(0.5)}))
        self.train(tmp_path / "log.csv", 1, validator=validator)
        assert list(self.rows(tmp_path / "log.csv")[0])[:4] == ["epoch", "loss", "auc", "f1"]
        assert self.rows(tmp_path / "log.csv")[0]["auc"] == "0.12346"

    def test_an_epoch_without_validation_has_no_metrics(self, tmp_path):
        validator = SimpleNamespace(state=SimpleNamespace(metrics={"auc": 0.5}, epoch=2))
        self.train(tmp_path / "log.csv", 3, validator=validator)
        assert [row["auc"] for row in self.rows(tmp_path / "log.csv")] == ["", "0.5", ""]

    def test_one_bar_counts_the_epochs_from_where_a_training_goes_on(self, tmp_path, capsys):
        self.train(tmp_path / "log.csv", 5, after=2, progress=True)
        last = capsys.readouterr().err.strip().rpartition("\r")[2]
        assert last.startswith("training: 100%")
        assert " 5/5 " in last
        assert "loss=6.000" in last
        self.train(tmp_path / "log.csv", 2)
        assert capsys.readouterr().err == ""

    def test_resumed_training_goes_on_below_the_earlier_rows(self, tmp_path):
        validator = SimpleNamespace(state=SimpleNamespace(metrics={"recall, top 3": 0.5}))
        self.train(tmp_path / "log.csv", 4, validator=validator)
        # Interrupted after epoch 4, its checkpoint being of epoch 2.
        self.train(tmp_path / "log.csv", 5, after=2, validator=validator)
        rows = self.rows(tmp_path / "log.csv")
        assert list(rows[0]) == ["epoch", "loss", "recall, top 3", "seconds"]
        assert [row["recall, top 3"] for row in rows] == ["0.5"] * 5
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
        assert [float(row["loss"]) for row in rows] == pytest.approx([1.2, 2.4, 3.6, 4.8, 6.0])

    def test_training_from_the_start_replaces_an_older_log(self, tmp_path):
        self.train(tmp_path / "log.csv", 4)
        self.train(tmp_path / "log.csv", 2)
        assert len(self.rows(tmp_path / "log.csv")) == 2

    def test_resuming_without_the_log_begins_one(self, tmp_path):
        self.train(tmp_path / "log.csv", 3, after=2)
        assert [int(row["epoch"]) for row in self.rows(tmp_path / "log.csv")] == [3]


def test_prepared_batch_is_a_plain_channels_last_tensor_with_its_labels():
    image = torch.rand(2, 3, 4, 5)
    out, cls = prepare_batch({"image": MetaTensor(image), "cls": torch.tensor([0, 1])}, torch.device("cpu"))
    assert type(out) is torch.Tensor
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, image)
    assert cls.tolist() == [0, 1]


def test_the_organ_of_a_loss_on_maps_is_the_last_channel():
    image = torch.stack([torch.full((2, 2), 3.0), torch.tensor([[0.0, 0.4], [0.6, 1.0]])])[None]
    found = mask_targets({"pseudo": torch.ones(1, 1, 2, 2), "counts": torch.tensor([True])}, image)
    assert found["organ"].tolist() == [[[[0.0, 0.0], [1.0, 1.0]]]]
    assert found["counts"].tolist() == [1.0]
