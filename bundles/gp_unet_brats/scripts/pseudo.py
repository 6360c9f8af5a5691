"""Second stage: a network learns from the masks that the first stage's maps and the image suggest.

The supervision stays the image-level label: it says which slices may hold a pseudo-mask at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import LoadImage, ResampleToMatch
from torch import Tensor

from common import training
from common.data import SliceDataset, slice_classes
from common.losses import soft_bce_dice
from common.masks import refine_by_intensity


class PseudoMaskDataset(SliceDataset):
    """Slices with their labels and pseudo-masks.

    A slice labeled 0 has an empty mask. In the others the teacher's map, thresholded, is refined by intensity. A
    positive slice in which that leaves nothing counts for classification only. Items gain `pseudo` `[1, H, W]` and
    `counts` (1 where the pseudo-mask is to be learned from, else 0).

    Args:
        teacher: network of the first stage, with its weights, on the device where it shall run.
        inferer: `common.engines.SliceMapInferer`.
        threshold: of the teacher's tumor-minus-healthy map.
        refine: options of `common.masks.refine_by_intensity`.
        args, kwargs: see `SliceDataset`.
    """

    def __init__(
        self,
        *args: Any,
        teacher: torch.nn.Module,
        inferer: Callable,
        threshold: float = 0.0,
        refine: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.teacher = teacher.eval()
        self.inferer = inferer
        self.threshold = threshold
        self.refine = dict(refine or {})
        self.pseudo: list[Tensor] = []
        super().__init__(*args, **kwargs)

    @torch.no_grad()
    def _read(self, case: dict, image: MetaTensor) -> None:
        device = next(self.teacher.parameters()).device
        output = self.inferer(image[None].to(device), self.teacher)[0].cpu().numpy()
        classes = output.shape[0] // 2
        margin = (output[1:classes] - output[:1]).max(axis=0)
        volume = image.numpy()
        organ = volume[-1] > 0.5
        positive = [label > 0 for label in slice_classes(case, volume.shape[-1])]
        seed = (margin > self.threshold) & organ & positive
        spacing = [float(s) for s in image.pixdim]
        self.pseudo.append(torch.as_tensor(refine_by_intensity(seed, volume[0], organ, spacing=spacing, **self.refine)))

    def _item(self, index: int) -> dict[str, Any]:
        item = super()._item(index)
        volume, z = self.where[index]
        pseudo = self.pseudo[volume][None, ..., z]
        return item | {"pseudo": pseudo.float(), "counts": float(item["cls"] == 0 or bool(pseudo.any()))}


class MaskDataset(PseudoMaskDataset):
    """The true masks in place of pseudo-masks: the upper bound that weak supervision is measured against.

    Args:
        args, kwargs: see `SliceDataset`; every case needs a `label`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pseudo = []
        SliceDataset.__init__(self, *args, **kwargs)

    def _read(self, case: dict, image: MetaTensor) -> None:
        mask = LoadImage(ensure_channel_first=True)(case["label"])
        self.pseudo.append(ResampleToMatch(mode="nearest")(mask, image)[0].as_tensor() > 0)


class ExplainInferer(Inferer):
    """`network.explain(image)`: class maps and logits, for training on both."""

    def __call__(self, inputs: Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return network.explain(inputs)  # type: ignore[operator]


class PseudoMaskLoss(torch.nn.Module):
    """Segmentation loss of the tumor-minus-healthy map on the pseudo-masks plus cross-entropy of the logits.

    Args:
        segmentation, classification: weights of the two terms.
    """

    def __init__(self, *, segmentation: float = 1.0, classification: float = 1.0) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.classification = classification

    def forward(self, output: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """
        Args:
            output: maps `[B, C, H, W]` and logits `[B, C]`.
            target: `cls` `[B]`, `pseudo` and `organ` `[B, 1, H, W]`, `counts` `[B]`.
        """
        maps, logits = output
        margin = (maps[:, 1:] - maps[:, :1]).amax(dim=1, keepdim=True)
        valid = target["organ"] * target["counts"][:, None, None, None]
        segmentation = soft_bce_dice(margin, target["pseudo"] * target["organ"], valid=valid)
        classification = torch.nn.functional.cross_entropy(logits, target["cls"])
        return self.segmentation * segmentation + self.classification * classification


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, targets of PseudoMaskLoss)` of a batch; the organ mask is the image's last channel."""
    image, cls = training.prepare_batch(batch, device, non_blocking)
    pseudo, counts = (torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("pseudo", "counts"))
    return image, {"cls": cls, "pseudo": pseudo, "counts": counts.float(), "organ": (image[:, -1:] > 0.5).float()}
