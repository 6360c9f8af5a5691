"""Second stage: an aggregator learns cell by cell from the masks that the first one's heat and the image suggest.

The supervision stays the label of the volume: it says which bags may hold a pseudo-mask at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import ResampleToMatch, apply_transform
from torch import Tensor, nn
from tqdm import tqdm

from common.data import read_unmasked
from common.features import Entry, FeatureStore
from common.images import spacing_of
from common.masks import refine_by_intensity

from . import bags
from .bags import BagDataset
from .inferers import enlarge
from .losses import InsightLoss, cross_entropy

MaskedBag = tuple[Tensor, Tensor, Tensor, Tensor]  # a bag with `inside`, and its masks [n, K, h, w]


def true_masks(bag: Mapping[str, Any], entry: Entry, window: slice, *, preprocessing: Callable) -> np.ndarray:
    """The true masks of a bag.

    Args:
        bag: with a `label`, the mask's file, which has the value k + 1 for label k (any value above 0 where there is
            one label only).
        entry: the features of its volume.
        window: of the entry's slices that are the bag.
        preprocessing: of image and mask.

    Returns:
        `[K, H, W, n]` bool.
    """
    read: Any = apply_transform(preprocessing, bag)
    truth = ResampleToMatch(mode="nearest")(read["label"], read["image"])[0].numpy()[..., entry.indices[window]]
    count = len(bag["labels"])
    return np.stack([truth == k + 1 for k in range(count)]) if count > 1 else truth[None] > 0


@torch.no_grad()
def pseudo_masks(
    bag: Mapping[str, Any],
    entry: Entry,
    window: slice,
    *,
    preprocessing: Callable,
    teacher: Any,
    threshold: float,
    refine: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The teacher's heatmap of a bag, enlarged to the volume's pixels, thresholded, and refined by intensity.

    Args:
        bag, entry, window, preprocessing: see `true_masks`.
        teacher: network of the first stage, `scripts.networks.Insight` with its weights.
        threshold: of the heatmap.
        refine: options of `common.masks.refine_by_intensity`; None leaves the thresholded map.

    Returns:
        `[K, H, W, n]` bool; empty for labels that the bag lacks.
    """
    image = read_unmasked(bag, preprocessing)
    volume = torch.as_tensor(image).as_subclass(Tensor)[..., entry.indices[window]].numpy()
    organ = volume[-1] > 0.5
    heat = teacher.head.heatmap(entry[window], entry.inside[window])
    enlarged = enlarge(heat, teacher.encoder, volume.shape[1:3]).permute(1, 2, 3, 0).numpy()
    masks = (enlarged > threshold) & organ & np.array(bag["labels"], dtype=bool)[:, None, None, None]
    if refine is None:
        return masks
    return np.stack([refine_by_intensity(m, volume[0], organ, spacing=spacing_of(image), **refine) for m in masks])


class MaskDataset(BagDataset):
    """Bags with masks, `[n, K, h, w]`: the share of each cell that a mask covers.

    True masks are the upper bound that weak supervision is measured against.

    Args:
        bags: of volumes, as `scripts.bags.volume_bags` returns them.
        store: that holds their features.
        preprocessing: that these were made with.
        encoder: likewise.
        masks: gives a bag's masks, see `true_masks`.
        progress: show a progress bar.
        options: of `BagDataset`.

    Raises:
        ValueError: the features do not know where the organ is, as those of slides.
    """

    def __init__(
        self,
        bags: Sequence[dict],
        store: FeatureStore,
        *,
        preprocessing: Callable,
        encoder: Any,
        masks: Callable[..., np.ndarray] = true_masks,
        progress: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(bags, store, **options)
        if any(entry.inside is None for entry in self.entries):
            raise ValueError("masks need features that know where the organ is: those of volumes")
        self.masks = []
        for index in tqdm(range(len(self.data)), desc="masks", unit="bag", disable=not progress):
            bag, entry, window = self.data[index], self.entries[index], slice(*self.window(index))
            if any(bag["labels"]):
                volume = torch.as_tensor(masks(bag, entry, window, preprocessing=preprocessing))
                by_label = volume.permute(3, 0, 1, 2).split(1, dim=1)
                self.masks.append(torch.cat([encoder.coverage(mask) for mask in by_label], dim=1).half())
            else:
                empty = (window.stop - window.start, len(bag["labels"]), *entry.shape[2:])
                self.masks.append(torch.zeros(empty, dtype=torch.float16))

    def _parts(self, index: int, window: slice) -> list[Tensor | None]:
        start, _ = self.window(index)
        masks = self.masks[index][window.start - start : window.stop - start]
        return [*super()._parts(index, window), masks.float()]


class PseudoMaskDataset(MaskDataset):
    """Bags with pseudo-masks. A label that a bag lacks has an empty mask. True masks are not even read.

    Args:
        bags, store, options: see `MaskDataset`.
        teacher, threshold, refine: see `pseudo_masks`; the features are those of the teacher's encoder.
    """

    def __init__(
        self,
        bags: Sequence[dict],
        store: FeatureStore,
        *,
        teacher: Any,
        threshold: float,
        refine: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        masks = partial(pseudo_masks, teacher=teacher.eval(), threshold=threshold, refine=refine)
        super().__init__(bags, store, encoder=teacher.encoder, masks=masks, **options)


class MaskInferer(Inferer):
    """`(heatmaps, probability [B, K], penalty [B])` of a list of bags, as `PseudoMaskLoss` takes them."""

    def __call__(self, inputs: list[MaskedBag], network: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        heatmaps, probability, penalty = zip(*(network(*bag[:3]) for bag in inputs), strict=True)
        return heatmaps, torch.stack(probability), torch.stack(penalty)


class PseudoMaskLoss(nn.Module):
    """Cross-entropy of the heatmap's cells with the mask's share of each, beside the loss of the bags.

    Args:
        segmentation, classification: weights of the two terms.
        options: of `scripts.losses.InsightLoss`.
    """

    def __init__(self, *, segmentation: float = 1.0, classification: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.classification = classification
        self.bags = InsightLoss(**options)

    def forward(self, pred: tuple[Sequence[Tensor], Tensor, Tensor], target: Sequence[MaskedBag]) -> Tensor:
        """
        Args:
            pred: heatmaps, each `[n, K, h, w]`, probability `[B, K]` and penalty `[B]`.
            target: the bags; every bag weighs the same, cells outside the organ do not count.
        """
        heatmaps, probability, penalty = pred
        cells = torch.stack([_cell_loss(heat, bag) for heat, bag in zip(heatmaps, target, strict=True)]).mean()
        loss = self.segmentation * cells
        if self.classification:
            labels = torch.stack([bag[2] for bag in target])
            loss = loss + self.classification * self.bags((probability, penalty), labels)
        return loss


def _cell_loss(heatmap: Tensor, bag: MaskedBag) -> Tensor:
    """Mean over the cells inside."""
    _, inside, _, masks = bag
    weight = (inside > 0.5).expand_as(heatmap).float()
    return (weight * cross_entropy(heatmap, masks)).sum() / weight.sum().clamp(min=1)


def prepare_batch(
    batch: list[MaskedBag], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[list[MaskedBag], list[MaskedBag]]:
    """Bags on the device, as the network's input and as the loss's target."""
    moved, _ = bags.prepare_batch(batch, device, non_blocking)  # type: ignore[arg-type]
    return moved, moved  # type: ignore[return-value]
