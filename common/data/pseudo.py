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

from ..files import PathLike
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
            evaluation mode. Where its maps are of one class for each slice, and not of all, `teacher.explaining(k)`
            gives the network whose maps are of class k.
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
    teacher.eval()

    def maps(network: torch.nn.Module) -> np.ndarray:
        pred = inferer(image[None].to(device), network)[0].cpu()
        return (pred if combine is None else combine({"image": image, "pred": pred})["pred"]).numpy()

    volume = image.numpy()
    organ = volume[-1] > 0.5
    named = np.broadcast_to(case_label(case, organ.shape[-1]), organ.shape[-1:])
    named = np.where(named > 0, named, max(named.max(), 1))  # of slices labeled 0 any class will do: none counts
    heat, probability = _heat(maps, teacher, named)
    positive, negative = _labels(case, torch.as_tensor(probability), sure)
    level: float | np.ndarray = threshold
    if binarize == "quantile":
        inside = np.where(organ, heat, np.nan)
        level = np.nanquantile(inside, mask_quantile, axis=(0, 1)) if organ.any() else np.inf
    seed = (heat > level) & (heat > NO_EVIDENCE) & organ & positive.numpy()
    if hottest:
        seed = np.stack([hottest_component(s, h) for s, h in zip(seed.T, heat.T, strict=True)]).T
    refined = refine_by_intensity(seed, volume[0], organ, spacing=spacing_of(image), **(refine or {}))
    return _targets(torch.as_tensor(refined), negative)


def _heat(
    maps: Callable[[torch.nn.Module], np.ndarray], teacher: torch.nn.Module, named: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The evidence `[H, W, Z]` for the class that the label of each slice names, and the probability `[Z]` of any.

    Args:
        maps: class maps and probabilities `[2 C, H, W, Z]` of a network.
        teacher: see `pseudo_masks`.
        named: class of each slice, `[Z]`, from 1.
    """
    explaining = getattr(teacher, "explaining", lambda _: teacher)
    networks = {k: explaining(k) for k in np.unique(named).tolist()}
    found = {network: maps(network) for network in dict.fromkeys(networks.values())}
    shown = [found[network][k] - found[network][0] for k, network in networks.items()]
    first = next(iter(found.values()))
    return np.select([named == k for k in networks], shown), 1 - first[len(first) // 2, 0, 0]


def mask_of(label: PathLike, image: MetaTensor) -> Tensor:
    """A mask from its file, bool `[H, W, Z]` on the grid that an image was preprocessed to."""
    # The image has been read: where its series has no positions, somebody has said that it is axial.
    mask = meta_tensor(read_mask(label, file_of(image), dicom_geometry="assume_axial"))
    return ResampleToMatch(mode="nearest")(mask, image)[0].as_tensor() > 0


def true_masks(case: dict, image: MetaTensor) -> dict[str, Tensor]:
    """`pseudo` and `counts`, as of `pseudo_masks`, from the case's mask, resampled; nothing in slices labeled 0."""
    mask = mask_of(case["label"], image)
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
