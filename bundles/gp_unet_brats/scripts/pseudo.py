"""Second stage: a network learns from the masks that the first stage's maps and the image suggest.

Where these come from: `common.data.pseudo_masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from monai.inferers import Inferer
from torch import Tensor

from common import training
from common.data import pseudo_masks, true_masks
from common.losses import BagLoss, soft_bce_dice

from . import stacks
from .networks import as_slices


class PseudoMaskDataset(stacks.StackDataset):
    """Slices with their labels and pseudo-masks: items gain `pseudo` and `counts`, see `pseudo_masks`.

    Args:
        data, preprocessing, options: see `StackDataset`.
        teacher, inferer, threshold, binarize, mask_quantile, hottest, refine, sure: see `common.data.pseudo_masks`.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        teacher: torch.nn.Module,
        inferer: Callable,
        threshold: float = 0.0,
        binarize: Literal["fixed", "quantile"] = "fixed",
        mask_quantile: float = 0.95,
        hottest: bool = False,
        refine: Mapping[str, Any] | None = None,
        sure: Sequence[float] = (0.1, 0.5),
        **options: Any,
    ) -> None:
        settings: dict[str, Any] = {"threshold": threshold, "refine": refine, "sure": sure}
        settings |= {"binarize": binarize, "mask_quantile": mask_quantile, "hottest": hottest}
        targets = partial(pseudo_masks, teacher=teacher.eval(), inferer=inferer, **settings)
        super().__init__(data, preprocessing, targets=targets, **options)


class MaskDataset(stacks.StackDataset):
    """The true masks in place of pseudo-masks: the upper bound that weak supervision is measured against.

    Args:
        data: cases, each with a `label`.
        preprocessing, options: see `StackDataset`.
    """

    def __init__(self, data: Sequence[dict], preprocessing: Callable, **options: Any) -> None:
        super().__init__(data, preprocessing, targets=true_masks, **options)


class ExplainInferer(Inferer):
    """`network.explain(image)`: class maps and logits of slices, for training on both."""

    def __call__(self, inputs: Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        explained = network.explain(inputs)  # type: ignore[operator]
        return explained if inputs.dim() == 4 else (as_slices(explained[0]), as_slices(explained[1]))


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
