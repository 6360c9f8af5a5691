"""Masks that slices learn from: those that an earlier network and the image suggest, or the true ones.

The supervision by pseudo-masks stays the image-level label: it says which slices may hold one at all. Where one label
stands for a volume, the earlier network says which of a positive one do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from torch import Tensor

from ..images import file_of, meta_tensor, read_mask, spacing_of
from ..masks import NO_EVIDENCE, hottest_component, refine_by_intensity
from .slices import case_label, slice_classes


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
    combine: Callable | None = None,
) -> dict[str, Tensor]:
    """What the slices of a volume learn from: the teacher's map, thresholded and refined by intensity.

    A slice labeled 0 has an empty mask. A positive one in which thresholding and refinement leave nothing counts for
    classification only; so does, in a volume with one label that is positive, a slice that the teacher is not sure of.
    With its options bound it is the `targets` of a `SliceDataset`.

    Args:
        case: with the labels of its slices, or one of the volume.
        image: `[C, H, W, Z]`, the last channel the organ.
        teacher: network of the first stage, with its weights, on the device where it shall run; it is put into
            evaluation mode.
        inferer: `common.engines.SliceMapInferer`.
        threshold: of the teacher's map of the class that the label names, against class 0's.
        binarize: `quantile`: each slice has that `mask_quantile` of its evidence inside the organ in its place; for
            labels that name no slice without a lesion, from which a threshold could come.
        hottest: only the component with the highest heat of each slice is refined.
        refine: options of `common.masks.refine_by_intensity`.
        sure: in a positive volume with one label, slices that the teacher gives a lower probability of a lesion than
            the first have none, and those with a higher one than the second, and the most probable, have one.
        combine: transform that makes the class maps of `pred` where the teacher has others, as inference does.

    Returns:
        `pseudo` `[1, H, W, Z]` bool, and `counts` `[Z]`, whether the mask of a slice is to be learned from.
    """
    device = next(teacher.parameters()).device
    pred = inferer(image[None].to(device), teacher.eval())[0].cpu()
    output = (pred if combine is None else combine({"image": image, "pred": pred})["pred"]).numpy()
    classes = output.shape[0] // 2
    volume = image.numpy()
    organ = volume[-1] > 0.5
    probability = torch.as_tensor(1 - output[classes, 0, 0])
    positive, negative = _labels(case, probability, sure)
    named = np.maximum(case_label(case, len(probability)), 1) - 1
    shown = np.broadcast_to(named, organ.shape)[None]
    heat = np.take_along_axis(output[1:classes] - output[:1], shown, axis=0)[0]
    level: float | np.ndarray = threshold
    if binarize == "quantile":
        inside = np.where(organ, heat, np.nan)
        level = np.nanquantile(inside, mask_quantile, axis=(0, 1)) if organ.any() else np.inf
    seed = (heat > level) & (heat > NO_EVIDENCE) & organ & positive.numpy()
    if hottest:
        seed = np.stack([hottest_component(s, h) for s, h in zip(seed.T, heat.T, strict=True)]).T
    refined = refine_by_intensity(seed, volume[0], organ, spacing=spacing_of(image), **(refine or {}))
    return _targets(torch.as_tensor(refined), negative)


def true_masks(case: dict, image: MetaTensor) -> dict[str, Tensor]:
    """`pseudo` and `counts`, as of `pseudo_masks`, from the case's mask, resampled; nothing in slices labeled 0."""
    mask = meta_tensor(read_mask(case["label"], file_of(image)))
    mask = ResampleToMatch(mode="nearest")(mask, image)[0].as_tensor() > 0
    negative = torch.tensor(slice_classes(case, mask.shape[-1])) == 0
    return _targets(mask & ~negative, negative)


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
