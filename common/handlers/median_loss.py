"""What GP's authors select an epoch by: the median of the batches' losses in validation."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.handlers import from_engine
from torch import Tensor


class MedianLoss(Metric):
    """Minus the median, over a validation's batches, of their weighted cross-entropy: a key metric, larger is better.

    Outputs hold `pred`, class probabilities, and `label`, one-hot. Of several processes each validates on all.

    Args:
        weight: of the classes `[C]`, as in training; None: all alike.
    """

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight = weight
        self.losses: list[float] = []
        super().__init__(output_transform=from_engine(["pred", "label"]))

    def reset(self) -> None:
        self.losses = []

    def iteration_completed(self, engine: Engine) -> None:
        self.update(self._output_transform(engine.state.output))  # whole batches, which ignite would take apart

    def update(self, output: Any) -> None:
        probabilities, labels = (torch.stack(list(part)).float().cpu() for part in output)
        weights = labels if self.weight is None else labels * self.weight.to(labels)
        cross_entropy = -(weights * probabilities.clamp(min=1e-12).log()).sum()
        self.losses.append(float(cross_entropy / weights.sum().clamp(min=1e-12)))

    def compute(self) -> float:
        return -float(torch.tensor(self.losses).median()) if self.losses else float("nan")
