"""Losses and class weights that torch and MONAI do not offer as such.

The weighted cross-entropy of GP-UNet is `torch.nn.CrossEntropyLoss(weight=class_weights(...))`; `class_loss` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss
from monai.losses import FocalLoss as MonaiFocalLoss
from torch import nn
from torch.nn import functional as F

from .pooling import GlobalPool


def class_weights(labels: torch.Tensor | np.ndarray | Sequence[int], *, num_classes: int) -> torch.Tensor:
    """Weight classes by inverse frequency, `n / (C * n_c)`, so that every class weighs the same in a loss.

    It is scikit-learn's "balanced" mode, but a class without any case gets weight 0 instead of an error.

    Args:
        labels: one integer class per case, `[n]`, each in 0 .. C − 1.
        num_classes: C.

    Returns:
        float32 `[C]`.

    Raises:
        ValueError: if a label is not a class, or fewer than two classes have cases.
    """
    values = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"labels must be a non-empty list of integers [n]; got shape {list(values.shape)}")
    wrong = values[(values != np.floor(values)) | (values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not a class; labels must be integers in 0 .. {num_classes - 1}")
    counts = np.bincount(values.astype(np.int64), minlength=num_classes)
    if np.count_nonzero(counts) < 2:
        only = int(np.argmax(counts))
        absent = [c for c in range(num_classes) if c != only]
        names = f"cases of the classes {absent}"
        if num_classes == 2:
            names = "negatives (class 0)" if only == 1 else "positives (class 1)"
        raise ValueError(
            f"a datalist without {names} cannot train a classifier; all {values.size} cases are of class {only}: "
            "add cases of another class or check the 'cls' entries"
        )
    weights = np.where(counts > 0, values.size / (num_classes * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


def label_smoothing(labels: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Pull multi-hot labels towards 1/2: `y' = (1 − ε) y + ε / 2` (INSIGHT, Eq. 6).

    For one class index per case, use `torch.nn.CrossEntropyLoss(label_smoothing=...)` instead.

    Args:
        labels: 0, 1 or in between, any shape.
        epsilon: ε in [0, 1]; 0 leaves the labels unchanged, 1 erases them.

    Returns:
        Labels of the same shape, floating point.

    Raises:
        ValueError: if epsilon is out of range.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be in [0, 1]; got {epsilon}")
    return (1.0 - epsilon) * labels + epsilon / 2.0


def soft_bce_dice(
    margin: torch.Tensor, target: torch.Tensor, *, valid: torch.Tensor | None = None, dice_weight: float = 1.0
) -> torch.Tensor:
    """Binary cross-entropy plus soft Dice against a pseudo-mask, over the voxels that count.

    `mean(BCE) + dice_weight * (1 − 2 Σ p t / (Σ p + Σ t))` with `p = sigmoid(margin)`. The sums of the Dice term
    run over the whole batch: per-sample Dice is stuck at 1 for every sample without foreground.

    Args:
        margin: logit of foreground, `[B, 1, *spatial]`.
        target: pseudo-mask in [0, 1], same shape.
        valid: true where a voxel counts; any shape that broadcasts to the margin's, e.g. `[B, 1, 1, 1]` to leave
            out whole samples, such as positive slices without a pseudo-mask. Default: all count.
        dice_weight: weight of the Dice term.

    Returns:
        A scalar in at least float32. Exactly 0, with zero gradient, if no voxel counts.

    Raises:
        ValueError: if the shapes do not go together.
    """
    if margin.ndim < 3 or margin.shape[1] != 1 or target.shape != margin.shape:
        raise ValueError(
            f"margin and target must both be [B, 1, *spatial]; got shapes {list(margin.shape)} and {list(target.shape)}"
        )
    if margin.dtype != torch.float64:
        margin = margin.float()
    counts = torch.ones_like(margin, dtype=torch.bool)
    if valid is not None:
        sizes = zip(valid.shape, margin.shape, strict=False)
        if valid.ndim != margin.ndim or any(got not in (1, size) for got, size in sizes):
            raise ValueError(
                f"valid must broadcast to the margin's shape {list(margin.shape)} axis by axis, e.g. "
                f"{[margin.shape[0]] + [1] * (margin.ndim - 1)}; got {list(valid.shape)}"
            )
        counts = (valid > 0.5).expand_as(margin)
    # Masked before the sigmoid, so that not even a NaN among the ignored voxels reaches the gradient.
    margin = margin.masked_fill(~counts, 0.0)
    target = target.to(margin.dtype).masked_fill(~counts, 0.0)
    bce = F.binary_cross_entropy_with_logits(margin, target, weight=counts.to(margin.dtype), reduction="sum")
    # MONAI's MaskedDiceLoss masks the logits, whose sigmoid is then 1/2; hence the masked probabilities.
    dice = DiceLoss(batch=True)(margin.sigmoid().masked_fill(~counts, 0.0), target)
    return bce / counts.sum().clamp(min=1) + dice_weight * dice


def slices_of_bags(bag: Iterable[int]) -> list[list[int]]:
    """Indices of the slices of each bag, in the order in which bags first appear.

    Args:
        bag: number of each slice's bag; -1: the slice is on its own.
    """
    bags: dict[tuple[int, int], list[int]] = {}
    for index, number in enumerate(bag):
        bags.setdefault((number, index if number < 0 else 0), []).append(index)
    return list(bags.values())


def pool_bags(
    logits: torch.Tensor, cls: torch.Tensor, bag: torch.Tensor, pool: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """One prediction and one label for each bag: multiple-instance learning from the label of a whole volume.

    The evidence of a slice for a class is its logit minus that of class 0; a bag's is the pool of its slices'. A
    slice on its own keeps its logits as they are, and its place.

    Args:
        logits: `[B, C]`, or `[B, members, C]` of several networks.
        cls: `[B]`, the same within a bag.
        bag: `[B]`, number of each slice's bag; -1: the slice is on its own.
        pool: `common.pooling.GlobalPool`.

    Returns:
        Logits of the bags, in the order in which they first appear, and their labels.
    """
    bags = slices_of_bags(bag.tolist())
    if len(bags) == len(bag):
        return logits, cls
    evidence = logits - logits[..., :1]
    rows = []
    for slices in bags:
        if len(slices) == 1:
            rows.append(logits[slices[0]])
        else:
            rows.append(pool(evidence[slices].flatten(1).T[None]).view_as(logits[0]))
    return torch.stack(rows), cls[[slices[0] for slices in bags]]


IMBALANCE = ("matched", "balanced", "weighted", "focal", "none")


class FocalLoss(nn.Module):
    """MONAI's focal loss of logits `[B, C]` and classes `[B]`: what is classified well already weighs little.

    Source: Lin et al., arXiv:1708.02002, Eq. 4, with a softmax over the classes; the mean over slices.

    Args:
        gamma: 0 is cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        options = {"to_onehot_y": True, "use_softmax": True, "gamma": gamma, "reduction": "none"}
        self.loss = MonaiFocalLoss(**options)

    def forward(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return self.loss(logits[..., None], classes[:, None, None]).sum(dim=1).mean()


def class_loss(imbalance: str, classes: Sequence[int], *, num_classes: int) -> nn.Module:
    """Loss of logits `[B, C]` and classes `[B]` by the name of a way to meet unequal classes.

    Args:
        imbalance: one of `IMBALANCE`: `weighted` is cross-entropy with `class_weights`, `focal` is `FocalLoss`, the
            others are cross-entropy; `matched` and `balanced` act on the draws, see `common.data.slice_sampler`.
        classes: of the training slices, one each.
        num_classes: C.

    Raises:
        ValueError: another name, or `weighted` with slices of one class alone.
    """
    if imbalance not in IMBALANCE:
        raise ValueError(f"imbalance must be one of {', '.join(IMBALANCE)}; got {imbalance!r}")
    if imbalance == "focal":
        return FocalLoss()
    return nn.CrossEntropyLoss(class_weights(classes, num_classes=num_classes) if imbalance == "weighted" else None)


class BagLoss(nn.Module):
    """A loss of bags of slices, see `pool_bags`; of slices that are on their own, the loss as it is.

    Args:
        loss: of logits `[B, ..., C]` and classes `[B]`.
        pool: name of a pool in `common.pooling`.
        pool_options: keyword arguments of the pool, e.g. `{"alpha": 1}` for `smooth_max`.
    """

    def __init__(
        self, loss: nn.Module, *, pool: str = "smooth_max", pool_options: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.pool = GlobalPool(pool, **(pool_options or {}))

    def forward(self, logits: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scalar from `[B, ..., C]` and the target's `cls` and `bag`, both `[B]`."""
        return self.loss(*pool_bags(logits, target["cls"], target["bag"], self.pool))


def drawn_loss(maps: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of maps and the masks that they should draw: the sum of each map's `soft_bce_dice` inside the organ.

    Args:
        maps: logits of foreground `[B, maps, H, W]`.
        target: `pseudo`, the mask, and `organ` `[B, 1, H, W]`; `counts` `[B]`: 0 leaves a slice's mask out.
    """
    valid = target["organ"] * target["counts"][:, None, None, None]
    mask = target["pseudo"] * target["organ"]
    return torch.stack([soft_bce_dice(drawn, mask, valid=valid) for drawn in maps.split(1, dim=1)]).sum()


class MaskLoss(nn.Module):
    """Of a training on masks: loss of the maps, see `drawn_loss`, and loss of the logits, see `BagLoss`.

    Args:
        loss: of logits and classes.
        segmentation, classification: weights of the two terms.
        options: pool and its options, of the logits of volumes with one label, see `BagLoss`.
    """

    def __init__(
        self, loss: nn.Module, *, segmentation: float = 1.0, classification: float = 1.0, **options: Any
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.classification = classification
        self.labels = BagLoss(loss, **options)

    def margins(self, maps: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of foreground `[B, M, H, W]`, each compared with the mask; by default the maps themselves."""
        return maps

    def forward(self, output: tuple[torch.Tensor, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            output: maps `[B, maps, H, W]` and logits `[B, ..., C]`.
            target: `cls` and `bag` `[B]`; `pseudo`, `organ` and `counts` of `drawn_loss`.
        """
        maps, logits = output
        segmentation = drawn_loss(self.margins(maps, target), target)
        return self.segmentation * segmentation + self.classification * self.labels(logits, target)
