"""How well bags of slices are told apart in training."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from ..losses import slices_of_bags
from .mean_auc import MeanAUC, mean_auc


class BagAUC(MeanAUC):
    """Area under the ROC curve of bags: a volume with one label counts once, by its most suspicious slice.

    Of slices that are on their own it is `MeanAUC`. Batches hold `bag`, the number of each item's bag or -1;
    outputs hold `pred`, class probabilities, and `label`, one-hot.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bags: list[int] = []

    def reset(self) -> None:
        super().reset()
        self.bags = []

    def iteration_completed(self, engine: Engine) -> None:
        super().iteration_completed(engine)
        batch: Any = engine.state.batch
        self.bags += [int(item["bag"]) for item in batch]

    def compute(self) -> Any:
        # On a GPU the one may lie there and the other not.
        probabilities, labels = (part.cpu() for part in self.metric_fn.get_buffer())
        bags = self.bags * (len(labels) // len(self.bags))  # of several processes each validates on all
        return mean_auc(*most_suspicious(probabilities, labels, bags))


def most_suspicious(probabilities: Tensor, labels: Tensor, bags: list[int]) -> tuple[Tensor, Tensor]:
    """The rows of the slice of each bag that is least likely of class 0, in the order of the bags.

    Args:
        probabilities, labels: `[slices, C]`.
        bags: number of each slice's bag; -1: the slice is on its own.
    """
    healthy = probabilities[:, 0].tolist()
    rows = torch.tensor([min(slices, key=healthy.__getitem__) for slices in slices_of_bags(bags)])
    return probabilities[rows], labels[rows]
