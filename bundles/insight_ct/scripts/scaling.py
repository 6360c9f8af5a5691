"""Channels of features brought to one scale: by the training's own cells, kept with the head's weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn


class FeatureScale(nn.Module):
    """Brings every channel of the features to mean 0 and spread 1 over the cells that `fit` was shown; before, nothing.

    An encoder's channels differ in both by factors of ten, and then the few that are large decide what is learned.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.spread

    @torch.no_grad()
    def fit(self, cells: Tensor) -> None:
        """Take mean and spread of cells `[M, channels]`; the spread of a constant channel is taken for 1."""
        spread, mean = torch.std_mean(cells.double(), dim=0, correction=0)
        self.mean.copy_(mean[:, None, None])
        self.spread.copy_(torch.where(spread > 1e-6, spread, 1.0)[:, None, None])


class FitScale:
    """Handler: before the first epoch, a head's `FeatureScale` is fitted to cells of the training's bags.

    A training that is resumed fits it again, to the same numbers.

    Args:
        head: whose `scale` is fitted; one without is left alone.
        dataset: the bags, a `scripts.bags.BagDataset`.
        tiles: so many of each bag, evenly drawn, are looked at.
    """

    def __init__(self, head: nn.Module, dataset: Any, *, tiles: int = 4) -> None:
        self.head = head
        self.dataset = dataset
        self.tiles = tiles

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._fit)

    def _fit(self, engine: Engine) -> None:
        if isinstance(self.head.scale, FeatureScale):
            self.head.scale.fit(torch.cat([cells for bag in range(len(self.dataset)) for cells in self._cells(bag)]))

    def _cells(self, bag: int) -> Iterator[Tensor]:
        """`[m, C]` of the cells inside of some tiles of a bag."""
        entry, (start, stop) = self.dataset.entries[bag], self.dataset.window(bag)
        inside = entry.inside
        for tile in torch.linspace(start, stop - 1, min(self.tiles, stop - start)).long().tolist():
            cells = entry[tile].flatten(1).T
            yield cells if inside is None else cells[inside[tile].flatten() > 0.5]
