"""How well a validation tells labels apart, where it may lack some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.handlers import ROCAUC, from_engine
from monai.metrics import compute_roc_auc
from torch import Tensor


class MeanAUC(ROCAUC):
    """Area under the ROC curve, mean over the labels of which the validation has cases with and without.

    MONAI's mean over all of them is undefined as soon as one lacks either, and with it which epoch was best and when
    no progress is made. Where each has both, it is the same. Outputs hold `pred`, a number per label, and `label`,
    0 or 1 for each.
    """

    def __init__(self) -> None:
        super().__init__(output_transform=from_engine(["pred", "label"]))

    def compute(self) -> Any:
        # On a GPU the one may lie there and the other not.
        return mean_auc(*(part.cpu() for part in self.metric_fn.get_buffer()))


def mean_auc(scores: Tensor, labels: Tensor) -> float:
    """Mean of the areas under the ROC curve of the labels that have both; NaN where none has.

    Args:
        scores, labels: `[N]` or `[N, C]`; labels are 0 or 1.

    Example:
        With a label that no case has, the mean of the others.
    """
    if not len(labels):
        return float("nan")
    scores, labels = (part.reshape(len(part), -1) for part in (scores, labels))
    both = labels.amin(0) < labels.amax(0)
    areas = [compute_roc_auc(scores[:, i], labels[:, i]) for i in np.flatnonzero(both)]
    return float(np.mean(areas)) if areas else float("nan")
