from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from common.losses import BagLoss, FocalLoss, class_loss, class_weights, drawn_loss, label_smoothing, soft_bce_dice


def random_batch(shape=(3, 1, 5, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    margin = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    target = (torch.rand(shape, generator=generator) > 0.7).double()
    return margin, target


def closed_form(margin, target, dice_weight=1.0):
    """The formula of the docstring in NumPy, on flat arrays of the voxels that count."""
    margin, target = margin.detach().numpy().ravel(), target.numpy().ravel()
    p = 1.0 / (1.0 + np.exp(-margin))
    bce = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
    return bce + dice_weight * (1 - 2 * (p * target).sum() / (p.sum() + target.sum()))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_class_weights_are_sklearns_balanced(num_classes):
    labels = np.random.default_rng(0).choice(
        num_classes, size=101, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1))
    )
    expected = compute_class_weight("balanced", classes=np.arange(num_classes), y=labels)
    for form in (labels, torch.as_tensor(labels), labels.tolist()):
        np.testing.assert_allclose(class_weights(form, num_classes=num_classes).numpy(), expected, rtol=1e-6)


def test_class_weights_balance_the_loss_of_the_classes():
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = class_weights(labels, num_classes=2)
    assert weights[labels][labels == 0].sum() == pytest.approx(weights[labels][labels == 1].sum())
    assert weights[labels].mean() == pytest.approx(1.0)


def test_absent_class_weighs_nothing():
    weights = class_weights([0, 0, 0, 2], num_classes=3)
    assert weights.tolist() == pytest.approx([4 / 9, 0.0, 4 / 3])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0, 0], 2, r"without positives \(class 1\) cannot train a classifier; all 3 cases are of class 0"),
        ([1, 1], 2, r"without negatives \(class 0\) cannot train"),
        ([1, 1], 3, r"without cases of the classes \[0, 2\] cannot train"),
        ([0, 1, 2], 2, "label 2 is not a class"),
        ([0, -1], 2, "label -1 is not a class"),
        ([0, 0.5], 2, "label 0.5 is not a class"),
        ([], 2, r"got shape \[0\]"),
        ([[0, 1]], 2, r"got shape \[1, 2\]"),
    ],
)
def test_unusable_labels_are_named(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        class_weights(labels, num_classes=classes)


def test_label_smoothing_closed_form():
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.5]])
    torch.testing.assert_close(label_smoothing(labels, epsilon=0.1), torch.tensor([[0.05, 0.95], [0.95, 0.5]]))
    assert torch.equal(label_smoothing(labels, epsilon=0.0), labels)
    assert label_smoothing(torch.tensor([0, 1]), epsilon=0.2).tolist() == pytest.approx([0.1, 0.9])
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\]; got 1.5"):
        label_smoothing(labels, epsilon=1.5)


@pytest.mark.parametrize("dice_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(3, 1, 5, 6), (2, 1, 3, 4, 5)])
def test_loss_equals_its_formula(shape, dice_weight):
    margin, target = random_batch(shape)
    loss = soft_bce_dice(margin, target, dice_weight=dice_weight)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(closed_form(margin, target, dice_weight), rel=1e-5)


def test_known_values():
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert soft_bce_dice(torch.zeros_like(target), target).item() == pytest.approx(math.log(2) + 0.5, rel=1e-5)
    assert soft_bce_dice((2 * target - 1) * 50, target).item() == pytest.approx(0.0, abs=1e-5)


def test_ignored_samples_and_voxels_change_nothing():
    margin, target = random_batch()
    keep = torch.tensor([True, False, True]).reshape(3, 1, 1, 1)
    loss = soft_bce_dice(margin, target, valid=keep)
    assert loss.item() == pytest.approx(closed_form(margin[[0, 2]], target[[0, 2]]), rel=1e-5)
    voxels = torch.rand(margin.shape) > 0.5
    loss = soft_bce_dice(margin, target, valid=voxels.float())
    assert loss.item() == pytest.approx(closed_form(margin[voxels], target[voxels]), rel=1e-5)


def test_ignored_nan_reaches_neither_loss_nor_gradient():
    margin, target = random_batch()
    keep = torch.tensor([1, 0, 1]).reshape(3, 1, 1, 1)
    poisoned = margin.detach().clone()
    poisoned[1] = float("nan")
    poisoned.requires_grad_()
    loss = soft_bce_dice(poisoned, target, valid=keep)
    loss.backward()
    torch.testing.assert_close(loss, soft_bce_dice(margin, target, valid=keep))
    assert poisoned.grad is not None
    assert torch.isfinite(poisoned.grad).all()
    assert (poisoned.grad[1] == 0).all()


def test_all_ignored_is_exactly_zero_with_zero_gradient():
    margin, target = random_batch()
    loss = soft_bce_dice(margin, target, valid=torch.zeros(3, 1, 1, 1))
    loss.backward()
    assert loss.item() == 0.0
    assert margin.grad is not None
    assert (margin.grad == 0).all()


def test_gradient_is_the_numerical_one():
    margin, target = random_batch((2, 1, 2, 2))
    valid = torch.tensor([True, True, True, False]).reshape(1, 1, 2, 2)
    assert torch.autograd.gradcheck(lambda m: soft_bce_dice(m, target, valid=valid), (margin,))


def test_half_precision_gives_float32():
    margin, target = random_batch()
    loss = soft_bce_dice(margin.half(), target.half())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(closed_form(margin, target), rel=1e-3)


def test_shape_errors_quote_the_shapes():
    margin, target = random_batch()
    with pytest.raises(ValueError, match=r"\[3, 1, 5, 6\] and \[3, 5, 6\]"):
        soft_bce_dice(margin, target[:, 0])
    with pytest.raises(ValueError, match=r"\[3, 1, 5, 6\].*got \[3\]"):
        soft_bce_dice(margin, target, valid=torch.ones(3))


def test_what_is_drawn_counts_inside_the_organ_of_slices_that_count_and_is_summed_over_maps():
    generator = torch.Generator().manual_seed(0)
    drawn, organ = torch.randn(3, 1, 8, 8, generator=generator), torch.zeros(3, 1, 8, 8)
    organ[..., :4] = 1
    pseudo = (torch.rand(3, 1, 8, 8, generator=generator) > 0.5).float()
    target = {"pseudo": pseudo, "organ": organ, "counts": torch.tensor([1.0, 0.0, 1.0])}
    loss = drawn_loss(drawn, target)
    kept = [0, 2]
    torch.testing.assert_close(loss, soft_bce_dice(drawn[kept][..., :4], pseudo[kept][..., :4]))
    torch.testing.assert_close(drawn_loss(torch.cat([drawn, drawn], dim=1), target), 2 * loss)


class TestBagLoss:
    logits = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 3.0], [1.0, 1.5]], requires_grad=True)

    def target(self, cls: list[int], bag: list[int]) -> dict[str, torch.Tensor]:
        return {"cls": torch.tensor(cls), "bag": torch.tensor(bag)}

    def test_slices_on_their_own_have_the_plain_loss_to_the_bit(self):
        plain = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.3, 0.7]))
        target = self.target([0, 1, 1, 0], [-1, -1, -1, -1])
        losses = [plain(self.logits, target["cls"]), BagLoss(plain)(self.logits, target)]
        assert torch.equal(*losses)
        assert torch.equal(*(torch.autograd.grad(loss, self.logits)[0] for loss in losses))

    def test_a_bag_is_as_suspicious_as_its_pool(self):
        loss = BagLoss(torch.nn.CrossEntropyLoss(), pool="max")(self.logits, self.target([1, 0, 1, 0], [5, 2, 5, 2]))
        # Margins are 0.5, -3, 3 and 0.5: the largest of the positive bag is 3, of the negative one 0.5.
        assert float(loss) == pytest.approx((np.log1p(np.exp(-3.0)) + np.log1p(np.exp(0.5))) / 2, rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, self.logits)
        assert (gradient.abs().sum(1) > 0).tolist() == [False, False, True, True]

    def test_bags_and_single_slices_of_a_batch_weigh_the_same(self):
        target = self.target([1, 0, 1, 0], [5, -1, 5, -1])
        loss = BagLoss(torch.nn.CrossEntropyLoss(reduction="none"), pool="max")(self.logits, target)
        single = torch.nn.functional.cross_entropy(self.logits[[2, 1, 3]], torch.tensor([1, 0, 0]), reduction="none")
        torch.testing.assert_close(loss, single)

    def test_each_class_and_member_is_pooled_on_its_own(self):
        logits = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))  # 6 slices, 2 networks, 3 classes

        def loss(pooled: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
            assert cls.tolist() == [2, 0]
            return pooled

        pooled = BagLoss(loss, pool="avg")(logits, self.target([2, 2, 2, 0, 0, 0], [0, 0, 0, 1, 1, 1]))
        margins = (logits - logits[..., :1]).view(2, 3, 2, 3)
        torch.testing.assert_close(pooled, margins.mean(dim=1))


class TestUnequalClasses:
    """Three slices of class 0 for one of class 1."""

    classes = (0, 0, 0, 1)
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.3, 0.0]])

    def test_focal_loss_is_its_formula(self):
        p = torch.softmax(self.logits, dim=1)[torch.arange(4), torch.tensor(self.classes)]
        for gamma in (0.0, 2.0):
            expected = (-((1 - p) ** gamma) * p.log()).mean()
            torch.testing.assert_close(FocalLoss(gamma)(self.logits, torch.tensor(self.classes)), expected)

    def test_weighted_counts_both_classes_alike(self):
        loss = class_loss("weighted", self.classes, num_classes=2)
        each = torch.nn.functional.cross_entropy(self.logits, torch.tensor(self.classes), reduction="none")
        torch.testing.assert_close(loss(self.logits, torch.tensor(self.classes)), (each[:3].mean() + each[3]) / 2)

    @pytest.mark.parametrize("name", ["matched", "balanced", "none"])
    def test_the_others_leave_the_loss_alone(self, name):
        assert class_loss(name, self.classes, num_classes=2).weight is None

    def test_other_names_are_refused(self):
        with pytest.raises(ValueError, match="one of matched, balanced, weighted, focal, none"):
            class_loss("oversample", self.classes, num_classes=2)
