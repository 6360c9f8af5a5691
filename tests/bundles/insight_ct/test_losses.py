from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from common.losses import class_weights
from tests.bundles.conftest import load_script

losses = load_script("insight_ct", "losses")
EPS = 1e-4


def log_loss(probability, target):
    p = EPS + (1 - 2 * EPS) * probability
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_loss_is_the_cross_entropy_of_the_pooled_probability():
    probability = torch.tensor([[0.9, 0.2], [0.3, 0.6]])
    labels = torch.tensor([[1, 0], [1, 1]])
    expected = F.binary_cross_entropy(probability, labels.float())
    torch.testing.assert_close(losses.bag_cross_entropy(probability, labels, eps=0.0), expected)
    torch.testing.assert_close(losses.bag_cross_entropy(probability, labels), expected, atol=2 * EPS, rtol=0)


def test_smoothing_moves_the_labels_half_of_epsilon_from_the_ends():
    got = losses.bag_cross_entropy(torch.tensor([[0.9], [0.2]]), torch.tensor([[1.0], [0.0]]), smoothing=0.1)
    assert got.item() == pytest.approx((log_loss(0.9, 0.95) + log_loss(0.2, 0.05)) / 2, rel=1e-5)


def test_half_of_lambda_times_the_mean_penalty_is_added_once():
    probability, penalty = torch.tensor([[0.9, 0.5], [0.2, 0.5]]), torch.tensor([4.0, 10.0])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = losses.InsightLoss(smoothing=0.2, decoupling=0.02)((probability, penalty), labels)
    cross_entropy = losses.bag_cross_entropy(probability, labels, smoothing=0.2)
    assert loss.item() == pytest.approx(cross_entropy.item() + 0.01 * 7.0, rel=1e-5)


def test_without_decoupling_not_even_an_overflow_of_the_penalty_counts():
    loss = losses.InsightLoss(decoupling=0.0)((torch.tensor([[0.5]]), torch.tensor([math.inf])), torch.ones(1, 1))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


def test_class_weights_weigh_bags_by_their_true_label():
    probability, labels = torch.tensor([[0.9], [0.2], [0.4]]), torch.tensor([[1], [0], [0]])
    loss = losses.InsightLoss(smoothing=0.1, class_weights=(0.5, 3.0))((probability, torch.zeros(3)), labels)
    expected = (3 * log_loss(0.9, 0.95) + 0.5 * log_loss(0.2, 0.05) + 0.5 * log_loss(0.4, 0.05)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_each_label_may_have_weights_of_its_own():
    probability, labels = torch.tensor([[0.9, 0.9], [0.2, 0.2]]), torch.tensor([[1, 1], [0, 0]])
    loss = losses.bag_cross_entropy(probability, labels, class_weights=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert loss.item() == pytest.approx((6 * log_loss(0.9, 1) + 4 * log_loss(0.2, 0)) / 4, rel=1e-5)


def test_balanced_weights_of_common_fit():
    weights = class_weights([0, 0, 0, 1], num_classes=2)
    probability, labels = torch.full((4, 1), 0.5), torch.tensor([0, 0, 0, 1])
    loss = losses.InsightLoss(class_weights=weights)((probability, torch.zeros(4)), labels)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)  # weights average to 1 over the cases


def test_bags_that_are_surely_wrong_keep_a_finite_gradient_that_corrects_them():
    probability = torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = losses.bag_cross_entropy(probability, torch.tensor([[1.0], [0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(EPS), rel=1e-3)
    assert probability.grad[0] < -1000
    assert probability.grad[1] > 1000
    assert torch.isfinite(probability.grad).all()


def test_one_label_may_come_as_a_list_of_integers():
    probability, labels = torch.tensor([[0.9], [0.2]]), torch.tensor([1, 0])
    torch.testing.assert_close(
        losses.bag_cross_entropy(probability, labels), losses.bag_cross_entropy(probability, labels[:, None])
    )


def test_autocast_computes_in_float32():
    loss, labels = losses.InsightLoss(smoothing=0.1), torch.tensor([[1.0], [0.0]])
    probability, penalty = torch.tensor([[0.9], [0.2]]), torch.tensor([4.0, 10.0])
    expected = loss((probability, penalty), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss((probability, penalty), labels), expected)
    half = losses.bag_cross_entropy(probability.bfloat16(), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, losses.bag_cross_entropy(probability, labels), atol=0.01, rtol=0)


def test_errors_say_what_does_not_fit():
    with pytest.raises(ValueError, match=r"both be \[B, K\], got \[2, 1\] and \[2, 2\]"):
        losses.bag_cross_entropy(torch.rand(2, 1), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"both be \[B, K\], got \[2, 2\] and \[2\]"):
        losses.bag_cross_entropy(torch.rand(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"such pair for each of the 1 labels; got shape \[3\]"):
        losses.bag_cross_entropy(torch.rand(2, 1), torch.ones(2, 1), class_weights=torch.ones(3))
    with pytest.raises(ValueError, match="decoupling must not be negative, got -1"):
        losses.InsightLoss(decoupling=-1)
    with pytest.raises(ValueError, match="smoothing must be in"):
        losses.InsightLoss(smoothing=1.5)
