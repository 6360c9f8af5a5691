"""What training needs beside MONAI's trainer: intensity augmentation, averaged weights, a log that plots."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.distributed import get_rank
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from .checkpoint import load_weights, unwrapped
from .files import PathLike, write_csv


class RandIntensityd(RandomizableTransform, MapTransform):
    """Random gamma, gain, blur and noise of images in multiples of the organ's median.

    Gamma acts as `x ** g`, which leaves the median (1) where it is. Afterwards values are clipped to `[0, upper]`.

    Args:
        keys: images `[C, *spatial]`, non-negative.
        gamma, gain: standard range r; the factor is `exp(uniform(-r, r))`.
        blur: probability of a Gaussian blur of 0.4 to 1.2 pixels.
        noise: the noise's standard deviation is `uniform(0, noise)`.
        upper: clip value.
        prob: of changing an image at all.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        gamma: float = 0.25,
        gain: float = 0.12,
        blur: float = 0.3,
        noise: float = 0.06,
        upper: float = 4.0,
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.gamma = gamma
        self.gain = gain
        self.blur = blur
        self.noise = noise
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return data
        uniform = self.R.uniform
        gamma, gain = torch.exp(torch.tensor(uniform(-1, 1, 2)) * torch.tensor([self.gamma, self.gain])).tolist()
        sigma = uniform(0.4, 1.2) if uniform() < self.blur else 0.0
        noise = uniform(0, self.noise)
        for key in self.key_iterator(data):
            image = data[key] ** gamma * gain
            if sigma > 0:
                image = GaussianSmooth(sigma)(image)
            if noise > 0:
                image = image + torch.as_tensor(self.R.normal(0, noise, image.shape), dtype=image.dtype)
            data[key] = image.clamp(0, self.upper)
        return data


def parameter_groups(network: torch.nn.Module, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Optimizer groups by the modules that hold the parameters.

    Args:
        network: whose parameters these are.
        learning_rates: by the name of a module (or parameter), as `encoder` or `members.0.body`, which stands for all
            within it, and not for `encoder1`; the first that fits a parameter counts, and `""` fits all.

    Raises:
        ValueError: nothing fits a parameter.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {module: [] for module in learning_rates}
    for name, parameter in unwrapped(network).named_parameters():
        fitting = [module for module in groups if not module or f"{name}.".startswith(f"{module}.")]
        if not fitting:
            raise ValueError(f"no learning rate for the parameter {name!r}: add one under its module, or under ''")
        groups[fitting[0]].append(parameter)
    return [{"params": groups[module], "lr": rate} for module, rate in learning_rates.items() if groups[module]]


def clip_gradients(
    optimizer: torch.optim.Optimizer, *, norm: float | None = None, value: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer, which from now on clips gradients to a total norm, or each entry to ± `value`, before a step."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, norm)
        if value is not None:
            torch.nn.utils.clip_grad_value_(parameters, value)

    optimizer.register_step_pre_hook(clip)
    return optimizer


class OneCycle(OneCycleLR):
    """torch's `OneCycleLR` for a training of any length: a warm-up of exactly one step divides by zero there.

    Args:
        optimizer, max_lr, options: see `OneCycleLR`.
        total_steps: of the training.
        pct_start: share of the steps that the rate rises in.

    Raises:
        ValueError: there is no step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_lr: float | list[float],
        total_steps: int,
        pct_start: float = 0.3,
        **options: Any,
    ) -> None:
        if total_steps < 1:
            raise ValueError(
                f"a training of {total_steps} steps: is max_epochs 0, or the training section smaller than batch_size?"
            )
        if math.isclose(pct_start * total_steps, 1):
            pct_start = 1.5 / total_steps
        super().__init__(optimizer, max_lr, total_steps, pct_start=pct_start, **options)


class WeightAverage:
    """Handler: exponential moving average of the weights after every iteration (the shipped weights are these)."""

    def __init__(self, average: AveragedModel, network: torch.nn.Module) -> None:
        self.average = average
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        self.average.update_parameters(self.network)


HIDDEN = ("epoch", "learning_rate")  # columns of the log that the progress bar does not repeat


class TrainingLog:
    """Handler: a progress bar over the epochs, and a row for each in `training_log.csv`.

    A row holds epoch, loss, metrics of a validation after that epoch, the learning rate of the first group of
    parameters, and seconds.

    Args:
        path: of the CSV file; a resumed training goes on from its rows.
        validator: evaluator whose latest metrics are logged beside the loss.
        progress: show the bar.
    """

    def __init__(self, path: str | Path, *, validator: Engine | None = None, progress: bool = True) -> None:
        self.path = Path(path)
        self.validator = validator
        self.progress = progress
        self.rows: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.start = 0.0
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _begin(self, engine: Engine) -> None:
        self.losses, self.start = [], time.perf_counter()
        if self._bar is None:  # a resumed training knows its epoch only now
            total, done = engine.state.max_epochs, engine.state.epoch - 1
            hidden = not self.progress or get_rank() != 0
            self._bar = tqdm(total=total, initial=done, desc="training", unit="epoch", disable=hidden)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.losses.append(float((output[0] if isinstance(output, Sequence) else output)["loss"]))

    def _end(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": engine.state.epoch, "loss": round(sum(self.losses) / len(self.losses), 5)}
        if self.validator is not None and getattr(self.validator.state, "epoch", 0) in (0, engine.state.epoch):
            row |= {k: round(float(v), 5) for k, v in self.validator.state.metrics.items()}
        if (optimizer := getattr(engine, "optimizer", None)) is not None:
            row["learning_rate"] = float(f"{optimizer.param_groups[0]['lr']:.4g}")  # at the epoch's end
        if self._bar is not None:
            self._bar.set_postfix(
                {key: f"{value:.3f}" for key, value in row.items() if key not in HIDDEN}, refresh=False
            )
            self._bar.update()
        row["seconds"] = round(time.perf_counter() - self.start, 1)
        self.rows.append(row)
        if get_rank() == 0:
            write_csv(self.path, self._earlier(engine.state.epoch) + self.rows)

    def _earlier(self, epoch: int) -> list[dict[str, Any]]:
        """Rows that an interrupted run left, up to where this one resumed."""
        first = epoch - len(self.rows) + 1
        if first == 1 or not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["epoch"]) < first]


def start_from(network: torch.nn.Module, ckpt: PathLike | None) -> torch.nn.Module:
    """The network, with the weights that its training begins with; None: it begins as it was made.

    Raises:
        FileNotFoundError, ValueError: as of `common.checkpoint.load_weights`.
    """
    return network if ckpt is None else load_weights(network, ckpt)


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """`(image, cls)` of a batch for MONAI's trainers and evaluators; `cls` is the image-level label.

    The image is a plain tensor in channels-last order: a `MetaTensor` would carry its meta data through every layer.
    """
    image = convert_to_tensor(batch["image"], track_meta=False)
    layout = torch.channels_last_3d if image.dim() == 5 else torch.channels_last
    image = image.to(device, non_blocking=non_blocking).contiguous(memory_format=layout)
    return image, batch["cls"].to(device, non_blocking=non_blocking)


def prepare_bags(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, {"cls", "bag"})` of a batch, for `common.losses.BagLoss`; see `prepare_batch`."""
    image, cls = prepare_batch(batch, device, non_blocking)
    return image, {"cls": cls, "bag": batch["bag"].to(device, non_blocking=non_blocking)}


def mask_targets(batch: dict, image: Tensor) -> dict[str, Tensor]:
    """What `common.data.pseudo_masks` or `true_masks` gave to a batch, where its image is, for a loss on the maps.

    Returns:
        `pseudo` as in the batch, `counts` as numbers, and `organ`, the image's last channel as 0 and 1.
    """
    pseudo, counts = (torch.as_tensor(batch[key]).to(image.device) for key in ("pseudo", "counts"))
    return {"pseudo": pseudo, "counts": counts.float(), "organ": (image[:, -1:] > 0.5).float()}


def prepare_masks(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, {"cls", "bag", "pseudo", "counts", "organ"})` of a batch; see `prepare_bags` and `mask_targets`."""
    image, target = prepare_bags(batch, device, non_blocking)
    return image, target | mask_targets(batch, image)
