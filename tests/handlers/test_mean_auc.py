from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from monai.metrics import compute_roc_auc

from common.handlers import BagAUC, MeanAUC
from common.handlers.mean_auc import mean_auc
from tests.running import REPOSITORY

TRAININGS = sorted((REPOSITORY / "bundles").glob("*/configs/train.json"))


def auc(metric, scores, labels) -> float:
    """Of `[N, C]`, fed at once as an evaluator's output; each on its own."""
    items = [{"pred": score, "label": label} for score, label in zip(scores, labels, strict=True)]
    metric.reset()
    state = SimpleNamespace(batch=[{"bag": -1}] * len(items), output=items)
    metric.iteration_completed(SimpleNamespace(state=state))
    return float(metric.compute())


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.rand(30, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.eye(3)[torch.arange(30) % 3]


def test_with_all_labels_it_is_the_plain_mean(scores, labels):
    plain = compute_roc_auc(scores, labels)
    assert auc(MeanAUC(), scores, labels) == pytest.approx(plain, abs=1e-12)
    assert auc(BagAUC(), scores, labels) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("metric", [MeanAUC, BagAUC])
@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_a_label_that_no_case_lacks_or_none_has_does_not_count(scores, labels, metric, everywhere):
    labels = labels.clone()
    labels[:, 2] = everywhere
    of_others = compute_roc_auc(scores[:, :2], labels[:, :2])
    assert auc(metric(), scores, labels) == pytest.approx(of_others, abs=1e-12)


def test_without_any_it_is_undefined(scores, labels):
    assert math.isnan(auc(MeanAUC(), scores, labels * 0))
    assert math.isnan(mean_auc(scores[:0], labels[:0]))


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.parts[-3])
def test_no_bundle_keeps_its_best_epoch_by_a_mean_that_one_lacking_class_undoes(path):
    assert '"ROCAUC"' not in path.read_text()
    assert '"common.handlers.MeanAUC"' in path.read_text() or '"common.handlers.BagAUC"' in path.read_text()
    assert json.loads(path.read_text())
