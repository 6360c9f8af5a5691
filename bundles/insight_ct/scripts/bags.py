"""Bags of features with one label vector each: what the aggregators train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from common.data import label_of, multi_hot, runs, slice_classes, stratified_weights
from common.encoders import Encoder
from common.engines import weighted_sampler
from common.features import FeatureStore, extract

Bag = tuple[Tensor, Tensor | None, Tensor]  # features [n, C, h, w], inside [n, 1, h, w], labels [K]


def volume_bags(
    cases: Sequence[dict],
    preprocessing: Callable,
    encoder: Encoder,
    store: FeatureStore,
    *,
    classes: Sequence[str],
    min_slices: int = 1,
    max_slices: int | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Put the features of volumes into a store; what is there already is not computed again.

    A case with one label per slice is cut into bags of equal label.

    Args:
        cases: with `case`, `image`, `cls`, and `organ` where the organ's mask is a file.
        preprocessing: gives `image` `[C + 1, H, W, D]`, the last channel the organ.
        encoder: of one slice.
        store: where the features go.
        classes: names, the negative one first.
        min_slices, max_slices: of the bags that a case is cut into, see `common.data.runs`.
        device: where to compute.
        batch_size: slices per forward.

    Returns:
        One dictionary a bag: the case, `key` (of the entry in the store), `labels` (`[K]` list of 0 and 1), and
        `slices`, first and last + 1 of the entry's slices, where it is not all of them.

    Raises:
        ValueError: a case without `cls`, or with another number of labels than slices.
        RuntimeError: (after all cases) some failed; the message lists them with the reasons.
    """
    labels = [label_of(case) for case in cases]
    work: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress}
    keys = extract(cases, preprocessing, encoder, store, **work)["keys"]
    bags = []
    for case, cls in zip(cases, labels, strict=True):
        bag = {**case, "key": keys[case["case"]]}
        if isinstance(cls, list) and cls and isinstance(cls[0], int):
            entry = store.open(bag["key"])
            by_slice = slice_classes(case, entry.about["volume"][2])
            kept = [by_slice[z] for z in entry.indices]  # slices without organ are not in the entry
            parts = runs(kept, min_slices=min_slices, max_slices=max_slices)
            bags += [{**bag, "labels": multi_hot(label, classes), "slices": (a, b)} for a, b, label in parts]
        else:
            bags.append({**bag, "labels": multi_hot(cls, classes)})
    return bags


class BagDataset(Dataset):
    """Bags from a feature store, read when they are drawn.

    An item is `(features [n, C, h, w] float32, inside [n, 1, h, w] or None, labels [K] float32)`.

    Args:
        bags: as `volume_bags` or `scripts.slides.bags.slide_bags` return them.
        store: that holds their features.
        stack: so many consecutive slices of a bag, at a random place, make an item; None: the whole bag. Only for
            bags whose every slice bears the label, as `python -m common prepare half_lungs` cuts them: a part of
            any other positive volume may be healthy.
        flip: mirror each axis of the grid at random.
        fixed: whole bags, unmirrored: for validation.
        in_memory: keep the features (float16) in memory instead of reading them for each draw.

    Raises:
        RuntimeError: there is no bag.
    """

    def __init__(
        self,
        bags: Sequence[dict],
        store: FeatureStore,
        *,
        stack: int | None = None,
        flip: bool = True,
        fixed: bool = False,
        in_memory: bool = False,
    ) -> None:
        if not bags:
            raise RuntimeError("there is no bag to learn from: is the datalist's section empty?")
        self.data = list(bags)
        self.entries = [store.open(bag["key"]) for bag in bags]
        self.stack = None if fixed else stack
        self.flip = flip and not fixed
        self.held = {bag["key"]: store.open(bag["key"])[:].half() for bag in bags} if in_memory else {}

    @property
    def labels(self) -> Tensor:
        """`[B, K]` of all bags."""
        return torch.tensor([bag["labels"] for bag in self.data], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        start, stop = self.window(index)
        length = min(self.stack or stop - start, stop - start)
        first = start + int(torch.randint(stop - start - length + 1, (1,)))
        parts = self._parts(index, slice(first, first + length))
        for axis in (2, 3):
            if self.flip and bool(torch.rand(1) < 0.5):
                parts = [None if part is None else part.flip(axis) for part in parts]
        features, inside, *others = parts
        return features, inside, torch.tensor(self.data[index]["labels"], dtype=torch.float32), *others

    def window(self, index: int) -> tuple[int, int]:
        """First and last + 1 of the slices of its entry that are the bag."""
        return self.data[index].get("slices", (0, len(self.entries[index])))

    def _parts(self, index: int, window: slice) -> list[Tensor | None]:
        """What of a bag is cut and mirrored alike: features, inside."""
        entry, held = self.entries[index], self.held.get(self.data[index]["key"])
        features = entry[window] if held is None else held[window].float()
        return [features, None if entry.inside is None else entry.inside[window]]


def as_list(bags: list[Bag]) -> list[Bag]:
    """Collate: bags differ in length and grid, so a batch is a list."""
    return bags


def balanced_sampler(
    dataset: BagDataset, *, num_samples: int | None = None, stratify_by: Sequence[str] = (), bins: int = 4
) -> Sampler:
    """Draw bags by `common.data.stratified_weights`.

    Args:
        dataset: the bags; positive is a bag with any label.
        num_samples: draws per epoch, over all processes of a distributed run; by default twice as many as there are
            bags of the rarer class.
        stratify_by, bins: of `common.data.stratified_weights`.
    """
    positive = [any(bag["labels"]) for bag in dataset.data]
    weights = stratified_weights(dataset.data, positive, stratify_by=stratify_by, bins=bins)
    draws = num_samples or 2 * min(sum(positive), len(positive) - sum(positive))
    return weighted_sampler(dataset, weights.tolist(), draws)


def prepare_batch(
    batch: list[Bag], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[list[Bag], Tensor]:
    """Bags on the device, and their labels `[B, K]`."""
    moved = [
        tuple(None if part is None else part.to(device, non_blocking=non_blocking) for part in bag) for bag in batch
    ]
    return moved, torch.stack([bag[2] for bag in moved])  # type: ignore[return-value]


class BagInferer(Inferer):
    """`(probability [B, K], penalty [B])` of a list of bags, as `scripts.losses.InsightLoss` takes them.

    Args:
        probability_only: leave the penalty out, for metrics.
    """

    def __init__(self, *, probability_only: bool = False) -> None:
        self.probability_only = probability_only

    def __call__(self, inputs: list[Bag], network: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        parts = [network(*bag)[1:] for bag in inputs]
        probability = torch.stack([part[0] for part in parts])
        return probability if self.probability_only else (probability, torch.stack([part[1] for part in parts]))
