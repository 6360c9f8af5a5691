"""Second stage: a network learns from the masks that the first stage's maps and the image suggest.

Where these come from: `common.data.pseudo_masks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common import training
from common.losses import MaskLoss

from . import stacks
from .networks import GPNet, as_slices


class Explained(torch.nn.Module):
    """For training: a network with its class maps and logits, of slices, as output, so that it learns from both.

    Of several processes `DistributedDataParallel` averages the gradients of what `forward` gives, not of `explain`.
    """

    def __init__(self, module: GPNet) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, C, H, W]` and logits `[B, C]` of slices, or of the slices of stacks, see `as_slices`."""
        maps, logits = self.module.explain(image)
        return (maps, logits) if image.dim() == 4 else (as_slices(maps), as_slices(logits))


class TaughtElsewhere(torch.nn.Module):
    """A teacher that shares its evidence for one class with a network of another collection.

    For a class of a collection without slices that are free of a finding: nothing there says where it lies.

    Args:
        network: of all classes; its logits stay.
        other: of none (0) and that class (1).
        of_class: number of the class in `network`.
        share: of `network`'s own evidence that is added to the other's.

    Raises:
        ValueError: `of_class` is no positive class of `network`, or `other` has more than two classes.
    """

    def __init__(self, network: GPNet, other: GPNet, *, of_class: int, share: float = 0.0) -> None:
        super().__init__()
        if not 0 < of_class < network.num_classes or other.num_classes != 2:
            raise ValueError(
                f"class {of_class} of {network.num_classes} cannot be taught by a network of {other.num_classes}: a "
                "positive class is needed, and a network of none and that class"
            )
        self.network, self.other = network, other
        self.of_class, self.share = of_class, share
        self.num_classes = network.num_classes

    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, C, H, W]` and logits `[B, C]`, as of `GPNet`."""
        maps, logits = self.network.explain(image)
        others = self.other.explain(image)[0]
        own = maps[:, self.of_class] - maps[:, 0]
        combined = maps.clone()
        combined[:, self.of_class] = maps[:, 0] + others[:, 1] - others[:, 0] + self.share * own
        return combined, logits


class PseudoMaskLoss(MaskLoss):
    """Segmentation loss of the maps on the pseudo-masks plus cross-entropy of the logits.

    Inside a pseudo-mask the map of the slice's own class is to be above class 0's, outside no class's map is.

    Args:
        options: of `common.losses.MaskLoss`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(torch.nn.CrossEntropyLoss(), **options)

    def margins(self, maps: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Of maps `[B, C, H, W]`: `[B, 1, H, W]`."""
        margins = maps[:, 1:] - maps[:, :1]
        named = (target["cls"].clamp(min=1) - 1)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
        return torch.where(target["pseudo"] > 0.5, margins.gather(1, named), margins.amax(dim=1, keepdim=True))


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, targets of PseudoMaskLoss)` of a batch; the organ mask is the image's last channel."""
    image, target = stacks.prepare_bags(batch, device, non_blocking)
    masks = training.mask_targets(batch, image)
    if image.dim() == 5:
        masks |= {"counts": masks["counts"].flatten()} | {key: as_slices(masks[key]) for key in ("pseudo", "organ")}
    return image, target | masks
