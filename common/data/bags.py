"""How slices are drawn for training: one by one where each has its label, several of a volume where that has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ignite.distributed import get_world_size
from torch.utils.data import RandomSampler, Sampler

from ..engines import weighted_sampler
from .slices import SliceDataset
from .splits import matched_weights


def matched_sampler(
    dataset: SliceDataset,
    *,
    num_samples: int | None = None,
    at_least: int = 0,
    bins: int = 10,
    bag_size: int = 8,
    batch_size: int | None = None,
) -> Sampler[int]:
    """Draw positives and negatives 1:1, so that position is no shortcut.

    Slices with labels of their own: negatives from where positives lie, see `matched_weights`. Volumes with one label:
    see `BagSampler`.

    Args:
        dataset: the slices.
        num_samples: draws per epoch, over all processes of a distributed run; by default twice the number of slices
            that are positive, or in positive volumes, but not fewer than `at_least`.
        at_least: draws per epoch of a small data set: with as many epochs as a large one it would be left untrained.
        bins: of slice position.
        bag_size: slices of a volume that are drawn together.
        batch_size: of the loader, a multiple of `bag_size`, so that no volume's slices are torn apart.

    Raises:
        ValueError: no positives or no negatives, or a batch that bags do not fill.
    """
    if dataset.pooled:
        bags: dict[str, Any] = {"bins": bins, "bag_size": bag_size, "batch_size": batch_size}
        return BagSampler(dataset, num_samples=num_samples, at_least=at_least, **bags)
    weights = matched_weights(dataset.classes, dataset.positions, bins=bins)
    draws = num_samples or max(at_least, 2 * sum(label > 0 for label in dataset.classes))
    return weighted_sampler(dataset, weights.tolist(), draws)


def slice_sampler(
    imbalance: str, dataset: SliceDataset, *, at_least: int = 0, bag_size: int = 8, batch_size: int | None = None
) -> Sampler:
    """Draw slices by the name of a way to meet unequal classes; `common.losses.class_loss` has the same names.

    Args:
        imbalance: `matched` draws positives and negatives 1:1 from the same positions (`matched_sampler`, which also
            serves volumes with one label), `balanced` each class as often, wherever it lies; the others (`weighted`,
            `focal`, `none`) every slice once an epoch, or as often as it takes. Where any volume has one label,
            draws are `matched`, and the name is the loss's alone.
        dataset, at_least, bag_size, batch_size: see `matched_sampler`.

    Raises:
        ValueError: `balanced` with slices of one class alone, or as of `matched_sampler`.
    """
    if imbalance == "matched" or dataset.pooled:
        return matched_sampler(dataset, at_least=at_least, bag_size=bag_size, batch_size=batch_size)
    if imbalance != "balanced":
        return RandomSampler(dataset, num_samples=max(at_least, len(dataset)))
    classes = np.asarray(dataset.classes)
    counts = np.bincount(classes)
    if np.count_nonzero(counts) < 2:
        raise ValueError(f"balanced draws need slices of two classes; all {len(classes)} are of class {classes[0]}")
    return weighted_sampler(dataset, (1.0 / counts[classes]).tolist(), max(at_least, len(classes)))


class BagSampler(Sampler[int]):
    """Several slices of a volume at a time, evenly spread over it from a random start: one bag, one label.

    Positive and negative volumes take turns, positive classes in equal shares, and no volume comes again before all
    others of its class have. So positions are the same in positives and negatives. In a mixed datalist, slices with
    labels of their own are drawn as by `matched_sampler`, as many at a time as two bags have.

    Args:
        dataset, num_samples, at_least, bins, bag_size, batch_size: see `matched_sampler`.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        num_samples: int | None = None,
        at_least: int = 0,
        bins: int = 10,
        bag_size: int = 8,
        batch_size: int | None = None,
    ) -> None:
        if bag_size < 1 or (batch_size is not None and batch_size % bag_size):
            raise ValueError(
                f"batch_size must be a multiple of bag_size, the slices of a volume in a batch; got {batch_size} and "
                f"{bag_size}"
            )
        volumes: dict[int, list[int]] = {}
        for index, bag in enumerate(dataset.bags):
            volumes.setdefault(bag, []).append(index)
        self.singles = np.array(volumes.pop(-1, []), dtype=int)
        self.bags = list(volumes.values())
        self.labels = np.array([dataset.classes[slices[0]] for slices in self.bags])
        for found, kind, further in ((self.labels == 0, "negative", "without"), (self.labels > 0, "positive", "with")):
            if not found.any():
                raise ValueError(
                    f"none of the {len(self.bags)} volumes with one label is {kind}: add volumes {further} a finding"
                )
        self.bag_size = bag_size
        own = np.array(dataset.classes)[self.singles]
        self.weights = np.ones(len(own))
        if (own > 0).any() and (own == 0).any():
            self.weights = matched_weights(own, np.array(dataset.positions)[self.singles], bins=bins)
        in_bags = 2 * sum(len(slices) for slices, label in zip(self.bags, self.labels, strict=True) if label > 0)
        alone = 2 * int((own > 0).sum())
        draws = num_samples or max(at_least, in_bags + alone)
        turn = 2 * bag_size * get_world_size()  # slices of a pair of bags, in each process
        self.single_turns = round(draws * alone / (in_bags + alone) / turn)
        self.bag_turns = max(1, round(draws * in_bags / (in_bags + alone) / turn))

    def __len__(self) -> int:
        return 2 * self.bag_size * (self.single_turns + self.bag_turns)

    def __iter__(self) -> Iterator[int]:
        grades = [_endless(np.flatnonzero(self.labels == g)) for g in np.unique(self.labels[self.labels > 0])]
        negatives = _endless(np.flatnonzero(self.labels == 0))
        turns: list[list[int]] = []
        for number in range(self.bag_turns):
            positive = next(grades[number % len(grades)])
            turns.append([i for bag in (positive, next(negatives)) for i in self._spread(self.bags[bag])])
        if self.single_turns:
            weights = torch.as_tensor(self.weights, dtype=torch.double)
            drawn = torch.multinomial(weights, self.single_turns * 2 * self.bag_size, replacement=True).tolist()
            singles = self.singles[drawn].reshape(self.single_turns, -1)
            turns += singles.tolist()
        for turn in torch.randperm(len(turns)).tolist():
            yield from turns[turn]

    def _spread(self, slices: Sequence[int]) -> list[int]:
        """As many as a bag has, at equal distances from a random start; repeated where there are fewer."""
        places = (np.arange(self.bag_size) + float(torch.rand(()))) * len(slices) / self.bag_size
        return [slices[min(int(place), len(slices) - 1)] for place in places]


def _endless(values: np.ndarray) -> Iterator[int]:
    """The values in random order, again and again."""
    while True:
        yield from values[torch.randperm(len(values)).numpy()].tolist()
