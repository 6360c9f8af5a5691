"""Second stage: a network learns from the masks that the first stage's maps and the image suggest.

Where these come from: `common.data.pseudo_masks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common import training
from common.losses import BagLoss, soft_bce_dice

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


class PseudoMaskLoss(torch.nn.Module):
    """Segmentation loss of the maps on the pseudo-masks plus cross-entropy of the logits.

    Inside a pseudo-mask the map of the slice's own class is to be above class 0's, outside no class's map is.

    Args:
        segmentation, classification: weights of the two terms.
        pool, pool_options: of the logits of volumes with one label, see `common.losses.BagLoss`.
    """

    def __init__(
        self,
        *,
        segmentation: float = 1.0,
        classification: float = 1.0,
        pool: str = "smooth_max",
        pool_options: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.classification = classification
        self.label_loss = BagLoss(torch.nn.CrossEntropyLoss(), pool=pool, pool_options=pool_options)

    def forward(self, output: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            output: maps `[B, C, H, W]` and logits `[B, C]`.
            target: `cls` and `bag` `[B]`, `pseudo` and `organ` `[B, 1, H, W]`, `counts` `[B]`.
        """
        maps, logits = output
        margins = maps[:, 1:] - maps[:, :1]
        named = (target["cls"].clamp(min=1) - 1)[:, None, None, None].expand(-1, 1, *maps.shape[2:])
        margin = torch.where(target["pseudo"] > 0.5, margins.gather(1, named), margins.amax(dim=1, keepdim=True))
        valid = target["organ"] * target["counts"][:, None, None, None]
        segmentation = soft_bce_dice(margin, target["pseudo"] * target["organ"], valid=valid)
        return self.segmentation * segmentation + self.classification * self.label_loss(logits, target)


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, targets of PseudoMaskLoss)` of a batch; the organ mask is the image's last channel."""
    image, target = stacks.prepare_bags(batch, device, non_blocking)
    masks = training.mask_targets(batch, image)
    if image.dim() == 5:
        masks |= {"counts": masks["counts"].flatten()} | {key: as_slices(masks[key]) for key in ("pseudo", "organ")}
    return image, target | masks
