"""Stacks of consecutive slices, which a volumetric network sees; what it says of them is of their slices again.

So labels of slices and of volumes, losses, gate, threshold and evaluation are those of slices, whatever the network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor

from common import training
from common.data import SliceDataset
from common.engines import SliceMapInferer

from .networks import as_slices


def stacks(count: int, size: int) -> list[list[int]]:
    """Places of the slices of stacks that hold all `count` slices; half of each, or more, is in the next as well.

    Where there are fewer slices than `size`, the last one is repeated.

    Example:
        >>> stacks(7, 4)
        [[0, 1, 2, 3], [1, 2, 3, 4], [3, 4, 5, 6]]
        >>> stacks(2, 4)
        [[0, 1, 1, 1]]
    """
    span = max(count - size, 0)
    steps = -(-span // max(size // 2, 1))
    starts = [span * step // max(steps, 1) for step in range(steps + 1)]
    return [[min(place, count - 1) for place in range(start, start + size)] for start in starts]


class StackDataset(SliceDataset):
    """Slices, or with `spatial_dims` 3 stacks of them: `image` `[C, H, W, D]`, and `slices`, their labels `[D]`.

    A stack has the highest class of its slices, so one without a positive slice is negative. `augment` sees the slices
    of a stack as channels of one: it changes all of them alike.

    Args:
        data, preprocessing, options: see `SliceDataset`.
        spatial_dims: 2 or 3.
        stack: slices of a stack, see `stacks`; they are consecutive but for slices that show nothing.

    Attributes:
        slice_classes: the label of each slice of each item.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        spatial_dims: int = 2,
        stack: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(data, preprocessing, **options)
        self.stacks: list[tuple[list[int], list[int]]] = []  # numbers and labels of the slices of each
        self.slice_classes = self.classes
        if spatial_dims == 3:
            self._stack(stack)

    def _stack(self, size: int) -> None:
        volumes: dict[int, list[int]] = {}
        for index, (number, _) in enumerate(self.where):
            volumes.setdefault(number, []).append(index)
        parts = [
            [indices[place] for place in places]
            for indices in volumes.values()
            for places in stacks(len(indices), size)
        ]
        self.stacks = [([self.where[i][1] for i in part], [self.classes[i] for i in part]) for part in parts]
        self.positions = [sum(self.positions[i] for i in part) / size for part in parts]
        self.where, self.bags = [self.where[part[0]] for part in parts], [self.bags[part[0]] for part in parts]
        self.classes = [max(labels) for _, labels in self.stacks]
        self.slice_classes = [label for _, labels in self.stacks for label in labels]

    def _item(self, index: int) -> dict[str, Any]:
        if not self.stacks:
            return super()._item(index)
        slices = self.stacks[index][0]
        item: Any = {name: held[slices].float() for name, held in self.volumes[self.where[index][0]].items()}
        if self.organ_channel:  # `MaskIntensityd` wants a mask for each channel
            image, organ = item["image"][:, :-1], item["image"][:, -1:]
            item |= {"image": image, "organ": organ.expand_as(image)}
        item = {name: part.movedim(0, 1).flatten(0, 1) if part.dim() == 4 else part for name, part in item.items()}
        return item | {"cls": self.classes[index], "bag": self.bags[index]}

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        if not self.stacks:
            return item
        labels = torch.tensor(self.stacks[index][1])
        for name, part in item.items():
            if isinstance(part, Tensor) and part.dim() == 3:
                item[name] = part.unflatten(0, (-1, len(labels))).movedim(1, -1)
                if name in ("image", "organ"):  # whose organ is there once for each channel
                    channels = self.volumes[self.where[index][0]]["image"].shape[1]
                    item[name] = item[name][: channels if name == "image" else 1]
        return item | {"slices": labels}


class LogitsInferer(Inferer):
    """Logits of slices, or of stacks, from a network of either.

    Args:
        of: `slices`: one stack's after the other's, `[B · D, C]`. `stacks`: the highest evidence of its slices for each
            class, against class 0, is the stack's, `[B, C]`. Of a network of slices both are its logits.
    """

    def __init__(self, of: Literal["slices", "stacks"] = "slices") -> None:
        if of not in ("slices", "stacks"):
            raise ValueError(f"of must be 'slices' or 'stacks', got {of!r}")
        self.of = of

    def __call__(self, inputs: Tensor, network: Callable, *args: Any, **kwargs: Any) -> Tensor:
        logits = network(inputs)
        if logits.dim() == 2:
            return logits
        return as_slices(logits) if self.of == "slices" else (logits - logits[:, :1]).amax(dim=-1)


def prepare_bags(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, {"cls", "bag"})` of a batch, one each for every slice; see `common.training.prepare_bags`."""
    image, target = training.prepare_bags(batch, device, non_blocking)
    if "slices" not in batch:
        return image, target
    labels = batch["slices"].to(device, non_blocking=non_blocking)
    return image, {"cls": labels.flatten(), "bag": target["bag"].repeat_interleave(labels.shape[1])}


class StackMapInferer(SliceMapInferer):
    """`SliceMapInferer` of a network of slices or, with `spatial_dims` 3, of stacks.

    A slice's map and logits are the mean over the stacks that hold it.

    Args:
        spatial_dims: 2 or 3.
        stack: slices of a stack, as in training.
        batch_size: slices per forward; one stack at least.
        options: see `SliceMapInferer`.
    """

    def __init__(self, *, spatial_dims: int = 2, stack: int = 16, batch_size: int = 32, **options: Any) -> None:
        self.stack = stack if spatial_dims == 3 else None
        self.at_once = max(1, batch_size // stack)
        super().__init__(batch_size=sys.maxsize if self.stack else batch_size, **options)

    def _explain(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        if self.stack is None:
            return super()._explain(batch, network)
        sums: list[Tensor] = []
        places = torch.tensor(stacks(len(batch), self.stack), device=batch.device)
        for part in places.split(self.at_once):
            explained = super()._explain(batch[part].movedim(1, -1), network)
            sums = sums or [found.new_zeros(len(batch), *found.shape[1:-1]) for found in explained]
            for total, found in zip(sums, explained, strict=True):
                total.index_add_(0, part.flatten(), as_slices(found))
        counts = torch.bincount(places.flatten()).float()
        maps, logits = sums
        return maps / counts[:, None, None, None], logits / counts[:, None]

    def _forward(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        if self.stack is None:
            return super()._forward(batch, network)
        height, width = batch.shape[2:4]
        batch = F.pad(batch, [0, 0, 0, -width % self.divisor, 0, -height % self.divisor])
        maps, logits = network.explain(batch.contiguous(memory_format=torch.channels_last_3d))
        return maps[:, :, :height, :width].float(), logits.float()
