"""Second stage: a network learns from the masks that the first stage's maps and the image suggest.

The supervision stays the image-level label: it says which slices may hold a pseudo-mask at all. Where one label stands
for a volume, the first stage says which of a positive one do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import ResampleToMatch
from torch import Tensor

from common.data import case_label, slice_classes
from common.images import file_of, meta_tensor, read_mask, spacing_of
from common.losses import pool_bags, soft_bce_dice
from common.masks import NO_EVIDENCE, hottest_component, refine_by_intensity
from common.pooling import GlobalPool

from . import stacks
from .networks import as_slices


@torch.no_grad()
def pseudo_masks(
    case: dict,
    image: MetaTensor,
    *,
    teacher: torch.nn.Module,
    inferer: Callable,
    threshold: float = 0.0,
    binarize: Literal["fixed", "quantile"] = "fixed",
    mask_quantile: float = 0.95,
    hottest: bool = False,
    refine: Mapping[str, Any] | None = None,
    sure: Sequence[float] = (0.1, 0.5),
) -> dict[str, Tensor]:
    """What the slices of a volume learn from: the teacher's map, thresholded and refined by intensity.

    A slice labeled 0 has an empty mask. A positive one in which thresholding and refinement leave nothing counts for
    classification only; so does, in a volume with one label that is positive, a slice that the teacher is not sure of.

    Args:
        case: with the labels of its slices, or one of the volume.
        image: `[C, H, W, Z]`, the last channel the organ.
        teacher: network of the first stage, with its weights, on the device where it shall run.
        inferer: `common.engines.SliceMapInferer`.
        threshold: of the teacher's map of the class that the label names, against class 0's.
        binarize: `quantile`: each slice has that `mask_quantile` of its evidence inside the organ in its place; for
            labels that name no slice without a lesion, from which a threshold could come.
        hottest: only the component with the highest heat of each slice is refined.
        refine: options of `common.masks.refine_by_intensity`.
        sure: in a positive volume with one label, slices that the teacher gives a lower probability of a lesion than
            the first have none, and those with a higher one than the second, and the most probable, have one.

    Returns:
        `pseudo` `[1, H, W, Z]` bool, and `counts` `[Z]`, whether the mask of a slice is to be learned from.
    """
    device = next(teacher.parameters()).device
    output = inferer(image[None].to(device), teacher)[0].cpu().numpy()
    classes = output.shape[0] // 2
    volume = image.numpy()
    organ = volume[-1] > 0.5
    probability = torch.as_tensor(1 - output[classes, 0, 0])
    positive, negative = _labels(case, probability, sure)
    named = np.maximum(case_label(case, len(probability)), 1) - 1
    shown = np.broadcast_to(named, organ.shape)[None]
    heat = np.take_along_axis(output[1:classes] - output[:1], shown, axis=0)[0]
    if binarize == "quantile":
        inside = np.where(organ, heat, np.nan)
        threshold = np.nanquantile(inside, mask_quantile, axis=(0, 1)) if organ.any() else np.inf
    seed = (heat > threshold) & (heat > NO_EVIDENCE) & organ & positive.numpy()
    if hottest:
        seed = np.stack([hottest_component(s, h) for s, h in zip(seed.T, heat.T, strict=True)]).T
    refined = refine_by_intensity(seed, volume[0], organ, spacing=spacing_of(image), **(refine or {}))
    return _targets(torch.as_tensor(refined), negative)


def true_masks(case: dict, image: MetaTensor) -> dict[str, Tensor]:
    """`pseudo` and `counts`, as of `pseudo_masks`, from the file of the true mask, resampled to the image."""
    mask = meta_tensor(read_mask(case["label"], file_of(image)))
    mask = ResampleToMatch(mode="nearest")(mask, image)[0].as_tensor() > 0
    return _targets(mask, torch.tensor(slice_classes(case, mask.shape[-1])) == 0)


def _labels(case: dict, probability: Tensor, sure: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Which slices are positive and which negative, bool `[Z]`; some of a volume with one label may be neither."""
    label = case_label(case, len(probability))
    if isinstance(label, int) and label > 0:
        positive = (probability > sure[1]) | (probability == probability.max())
        return positive, (probability < sure[0]) & ~positive
    labels = torch.tensor(slice_classes(case, len(probability)))
    return labels > 0, labels == 0


def _targets(mask: Tensor, negative: Tensor) -> dict[str, Tensor]:
    return {"pseudo": mask[None], "counts": negative | mask.any(dim=0).any(dim=0)}


class PseudoMaskDataset(stacks.StackDataset):
    """Slices with their labels and pseudo-masks: items gain `pseudo` and `counts`, see `pseudo_masks`.

    Args:
        data, preprocessing, options: see `StackDataset`.
        teacher, inferer, threshold, binarize, mask_quantile, hottest, refine, sure: see `pseudo_masks`.
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
        self.pool = GlobalPool(pool, **(pool_options or {}))

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
        pooled = pool_bags(logits, target["cls"], target["bag"], self.pool)
        classification = torch.nn.functional.cross_entropy(*pooled)
        return self.segmentation * segmentation + self.classification * classification


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image, targets of PseudoMaskLoss)` of a batch; the organ mask is the image's last channel."""
    image, target = stacks.prepare_bags(batch, device, non_blocking)
    pseudo, counts = (torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("pseudo", "counts"))
    masks = {"pseudo": pseudo, "organ": (image[:, -1:] > 0.5).float()}
    if image.dim() == 5:
        masks = {name: as_slices(mask) for name, mask in masks.items()}
    return image, target | masks | {"counts": counts.flatten().float()}
