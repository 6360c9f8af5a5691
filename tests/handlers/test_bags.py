from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.handlers import ROCAUC, from_engine

from common.handlers import BagAUC


def auc(metric, probabilities, labels, bags, batch=2) -> float:
    """Of positives' probabilities, fed in batches as an evaluator's decollated output."""
    metric.reset()
    items = [
        ({"bag": bag}, {"pred": torch.tensor([1 - p, p]), "label": torch.eye(2)[label]})
        for p, label, bag in zip(probabilities, labels, bags, strict=True)
    ]
    for start in range(0, len(items), batch):
        seen, output = (list(part) for part in zip(*items[start : start + batch], strict=True))
        metric.iteration_completed(SimpleNamespace(state=SimpleNamespace(batch=seen, output=output)))
    return float(metric.compute())


def test_a_volume_counts_once_by_its_most_suspicious_slice():
    # Negative volumes reach .6 and .3, positive ones .5 and .9: three of four pairs are in order.
    probabilities, labels = [0.1, 0.6, 0.5, 0.2, 0.3, 0.1, 0.0, 0.9], [0, 0, 1, 1, 0, 0, 1, 1]
    bags = [0, 0, 1, 1, 2, 2, 3, 3]
    assert auc(BagAUC(), probabilities, labels, bags) == pytest.approx(3 / 4)
    assert auc(BagAUC(), probabilities, labels, bags, batch=3) == pytest.approx(3 / 4)


def test_single_slices_have_the_plain_auc():
    torch.manual_seed(0)
    probabilities, labels = torch.rand(40).tolist(), torch.randint(2, (40,)).tolist()
    plain = ROCAUC(output_transform=from_engine(["pred", "label"]))
    assert auc(BagAUC(), probabilities, labels, [-1] * 40) == auc(plain, probabilities, labels, [-1] * 40)


def test_a_second_epoch_starts_anew():
    metric = BagAUC()
    assert auc(metric, [0.1, 0.9], [1, 0], [-1, -1]) == 0
    assert auc(metric, [0.1, 0.9], [0, 1], [-1, -1]) == 1
