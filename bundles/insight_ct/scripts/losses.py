"""The loss of bags: cross-entropy of the pooled probability, and the penalty that the head names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.losses import label_smoothing


def cross_entropy(probability: Tensor, target: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Binary cross-entropy of each element; a probability p enters as `ε + (1 − 2ε) p`.

    The authors of INSIGHT clamp p to [0, 0.999] instead; a clamped value has no gradient, so what is surely wrong would
    never be corrected. This map keeps the gradient finite and alive.
    """
    p = eps + (1.0 - 2.0 * eps) * probability
    # Written out: torch refuses its binary_cross_entropy under autocast, where logits are expected.
    return -(target * p.log() + (1.0 - target) * (1.0 - p).log())


def bag_cross_entropy(
    probability: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Binary cross-entropy of probabilities with smoothed labels (INSIGHT, Eq. 6), mean over bags and labels.

    Args:
        probability: `[B, K]` in [0, 1].
        labels: `[B, K]` multi-hot, or `[B]` for one label.
        smoothing: ε of Eq. 6, see `common.losses.label_smoothing`.
        class_weights: weights of absent and present, `[2]` for all labels or `[K, 2]`; each bag is weighed by its
            true label, so that weights and smoothing do not shift each other's optimum.
        eps: see `cross_entropy`.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: the shapes do not go together.
    """
    if labels.ndim == 1 and probability.ndim == 2 and probability.shape[1] == 1:
        labels = labels[:, None]
    if probability.ndim != 2 or labels.shape != probability.shape:
        raise ValueError(
            f"probability and labels must both be [B, K], got {list(probability.shape)} and {list(labels.shape)}"
        )
    if probability.dtype != torch.float64:
        probability = probability.float()
    labels = labels.to(probability.dtype)
    target = label_smoothing(labels, epsilon=smoothing)
    loss = cross_entropy(probability, target, eps=eps)
    if class_weights is not None:
        weights = class_weights.to(loss)
        if weights.shape not in ((2,), (labels.shape[1], 2)):
            raise ValueError(
                f"class_weights must be (absent, present), or one such pair for each of the {labels.shape[1]} labels; "
                f"got shape {list(weights.shape)}"
            )
        loss = loss * (weights[..., 0] + (weights[..., 1] - weights[..., 0]) * labels)
    return loss.mean()


class InsightLoss(nn.Module):
    """Cross-entropy of the bags plus `λ/2` times the mean of their penalties (INSIGHT, Eq. 8).

    For `InsightHead` the penalty is the mean squared detection logit and λ the weight of spectral decoupling. For
    CLAM it is the instance loss, which its authors weigh 0.3 to 0.7 of the bag loss: λ = 6/7 gives that ratio.

    Args:
        smoothing: ε of Eq. 6 in [0, 1].
        decoupling: λ; 0 switches the penalty off.
        class_weights: (absent, present), or one such pair a label, e.g. from `common.losses.class_weights`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        smoothing: float = 0.0,
        decoupling: float = 0.01,
        class_weights: Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if decoupling < 0:
            raise ValueError(f"decoupling must not be negative, got {decoupling}")
        if not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"smoothing must be in [0, 1], got {smoothing}")
        self.smoothing = smoothing
        self.decoupling = decoupling
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)

    def forward(self, pred: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Loss of probability `[B, K]` and penalty `[B]`, given as a pair, for labels `[B, K]` (`[B]` for one)."""
        probability, penalty = pred
        loss = bag_cross_entropy(probability, labels, smoothing=self.smoothing, class_weights=self.class_weights)
        if self.decoupling == 0:
            return loss  # not 0 × penalty, which is NaN when the penalty has overflowed
        return loss + 0.5 * self.decoupling * penalty.mean()
