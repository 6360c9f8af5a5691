from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance
from sklearn import metrics as sklearn_metrics

from common.metrics import (
    balanced_accuracy,
    classification_scores,
    component_scores,
    dice,
    healthy_false_positive_rate,
    heat_outside,
    iou,
    max_iou,
    paper_dsc,
    pooled_miou,
    roc_auc,
    slice_dice,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_masks(shape=(8, 9, 10), seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape) > 0.6, rng.random(shape) > 0.7


def random_binary(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) > 0.7).astype(int)
    return np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1).round(2), labels  # rounded: with ties


def random_multi(n=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    scores = rng.random((n, classes)) + 0.6 * np.eye(classes)[labels]
    return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("seed", range(3))
def test_overlap_agrees_with_scipy(seed):
    pred, truth = random_masks(seed=seed)
    assert dice(pred, truth) == pytest.approx(1 - distance.dice(pred.ravel(), truth.ravel()))
    assert iou(pred, truth) == pytest.approx(1 - distance.jaccard(pred.ravel(), truth.ravel()))
    assert dice(pred * 4, truth * 0.5) == dice(pred, truth)  # non-zero is foreground


def test_overlap_of_empty_masks():
    none, some = np.zeros((3, 3)), np.eye(3)
    for score in (dice, iou):
        assert score(none, none) == 1.0
        assert np.isnan(score(none, none, empty=np.nan))
        assert score(none, some) == score(some, none) == 0.0
        assert score(some, some) == 1.0
        with pytest.raises(ValueError, match=r"\[3, 3\] and \[3\]"):
            score(none, none[0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_slice_scores_equal_the_loop_over_slices(axis):
    pred, truth = random_masks()
    index = [slice(None)] * 3
    index[axis] = [1, 3, 4]
    truth[tuple(index)] = False
    index[axis] = [0, 3]
    pred[tuple(index)] = False
    pairs = list(zip(np.moveaxis(pred, axis, 0), np.moveaxis(truth, axis, 0), strict=True))
    np.testing.assert_allclose(slice_dice(pred, truth, axis=axis), [dice(p, t) for p, t in pairs if t.any()])
    expected = np.mean([p.any() for p, t in pairs if not t.any()])
    assert healthy_false_positive_rate(pred, truth, axis=axis) == pytest.approx(expected) == pytest.approx(2 / 3)


def test_slice_scores_without_slices_of_the_kind():
    none, some = np.zeros((2, 2, 3)), np.ones((2, 2, 3))
    assert slice_dice(some, none).shape == (0,)
    assert np.isnan(healthy_false_positive_rate(none, some))


def test_components_counted_by_hand():
    truth, pred = np.zeros((12, 12)), np.zeros((12, 12))
    truth[0:4, 0:4] = truth[8:10, 8:10] = truth[11, 0] = 1  # hit in two fragments; half hit; missed
    pred[0, 0:4] = pred[3, 0:2] = 1
    pred[8, 8:10] = 1
    pred[5, 11] = pred[6, 10] = 1  # one diagonal false positive
    scores = component_scores(pred, truth)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (2, 1, 1)
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    # IoU: 4/16 and 2/16 for the fragments, 2/4 for the half
    scores = component_scores(pred, truth, iou_threshold=0.3)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 3, 2)
    assert component_scores(pred, truth, iou_threshold=0.5)["tp"] == 0


def test_components_of_a_mask_with_itself_all_match():
    mask = np.random.default_rng(0).random((10, 10, 10)) > 0.93
    scores = component_scores(mask, mask, iou_threshold=0.99)
    assert scores["tp"] > 5
    assert scores["precision"] == scores["recall"] == scores["f1"] == 1.0


def test_components_of_empty_masks():
    none, some = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    some[1, 1, 1] = 1
    nothing, missed, false = component_scores(none, none), component_scores(none, some), component_scores(some, none)
    assert np.isnan(
        [nothing["precision"], nothing["recall"], nothing["f1"], missed["precision"], false["recall"]]
    ).all()
    assert missed["recall"] == missed["f1"] == false["precision"] == false["f1"] == 0.0
    assert (missed["fn"], false["fp"]) == (1, 1)


def box_mask(box, shape):
    """A mask of `shape` that is filled inside `box`: corners, the end exclusive."""
    mask = np.zeros(shape, dtype=bool)
    rank = len(shape)
    mask[tuple(slice(a, b) for a, b in zip(box[:rank], box[rank:], strict=True))] = True
    return mask


def test_max_iou_is_that_of_the_best_matching_component():
    truth = [2, 2, 2, 6, 6, 6]
    near, far = box_mask([3, 2, 2, 7, 6, 6], (12, 12, 12)), box_mask([9, 9, 9, 12, 12, 12], (12, 12, 12))
    assert max_iou(near, truth) == max_iou(near | far, truth) == pytest.approx(48 / 80)  # 4·4·4 each, 3·4·4 in common
    assert max_iou(far, truth) == 0.0
    # One box around both would match far worse.
    assert iou(box_mask([3, 2, 2, 12, 12, 12], (12, 12, 12)), box_mask(truth, (12, 12, 12))) < 0.1


def test_max_iou_takes_the_tightest_box_not_the_voxels():
    corners = np.zeros((8, 8))
    for step in range(5):
        corners[1 + step, 2 + step] = 1  # a diagonal: connected through corners
    assert max_iou(corners, [1, 2, 6, 7]) == 1.0
    corners[3, 4] = 0  # two components of 2 × 2
    assert max_iou(corners, [1, 2, 6, 7]) == pytest.approx(4 / 25)


@pytest.mark.parametrize("seed", range(4))
def test_max_iou_of_one_box_is_the_iou_of_masks(seed):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 6, size=(2, 3))
    boxes = np.concatenate([start, start + rng.integers(1, 8, size=(2, 3))], axis=1).tolist()
    masks = [box_mask(box, (14, 14, 14)) for box in boxes]
    assert max_iou(masks[0], boxes[1]) == pytest.approx(iou(*masks))


def test_max_iou_of_nothing_and_of_unusable_boxes():
    assert max_iou(np.zeros((4, 4, 4)), [0, 0, 0, 1, 1, 1]) == 0.0
    for box, message in (
        ([0, 0, 1, 1], r"6 numbers for a mask \[4, 4, 4\]; got"),
        ([0, 0, 0, 1, 1, 5], "reaches beyond a mask"),
        ([-1, 0, 0, 1, 1, 1], "reaches beyond a mask"),
        ([2, 0, 0, 2, 1, 1], "is empty or"),
    ):
        with pytest.raises(ValueError, match=message):
            max_iou(np.ones((4, 4, 4)), box)


@pytest.mark.parametrize("classes", [2, 4])
def test_balanced_accuracy_agrees_with_sklearn(classes):
    rng = np.random.default_rng(classes)
    truth, predicted = rng.integers(classes, size=(2, 60))
    expected = sklearn_metrics.balanced_accuracy_score(truth, predicted)
    assert balanced_accuracy(truth, predicted) == pytest.approx(expected)


def test_balanced_accuracy_by_hand_and_with_one_class():
    # 3 of 4 positive volumes found, 1 of 2 negative ones left alone.
    assert balanced_accuracy([1, 1, 1, 1, 0, 0], [True, True, True, False, True, False]) == pytest.approx(0.625)
    assert balanced_accuracy([0, 1], [2, 1]) == 0.5  # a class that the truth lacks is just wrong
    assert np.isnan(balanced_accuracy([1, 1], [1, 0]))
    for truth, predicted in (([], []), ([1, 0], [1]), ([[1, 0]], [[1, 0]])):
        with pytest.raises(ValueError, match=r"must be \[N\] with N > 0"):
            balanced_accuracy(truth, predicted)


def test_heat_outside_counts_positive_heat_only():
    heat, organ = np.array([[3.0, 1.0], [-9.0, 0.0]]), np.array([[1, 0], [0, 0]])
    assert heat_outside(heat, organ) == 0.25
    assert np.isnan(heat_outside(-np.abs(heat), organ))
    with pytest.raises(ValueError, match=r"\[2, 2\] and \[2\]"):
        heat_outside(heat, organ[0])


def test_pooled_miou_is_sklearns_macro_jaccard_of_all_pixels():
    a, b = random_masks(seed=1), random_masks((4, 5), seed=2)
    flat = [np.concatenate([x.ravel(), y.ravel()]) for x, y in zip(a, b, strict=True)]
    expected = sklearn_metrics.jaccard_score(flat[1], flat[0], average="macro")
    assert pooled_miou([a[0], b[0]], [a[1], b[1]]) == pytest.approx(expected)
    assert pooled_miou(*a) == pytest.approx(sklearn_metrics.jaccard_score(a[1].ravel(), a[0].ravel(), average="macro"))


def test_papers_dsc_of_the_empty_mask_is_flattering():
    truth = np.zeros((10, 100))
    truth.flat[:46] = 1  # 4.6 % foreground, as BraTS: the paper's row "Empty", 64.6 / 47.7
    miou = pooled_miou(np.zeros_like(truth), truth)
    assert miou == pytest.approx(0.477)
    assert paper_dsc(miou) == pytest.approx(0.646, abs=5e-4)
    assert pooled_miou(np.zeros((2, 2)), np.zeros((2, 2))) == 1.0
    with pytest.raises(ValueError, match="equally many arrays; got 1 and 2"):
        pooled_miou([truth], [truth, truth])


def test_auc_is_mann_whitney_u():
    scores, labels = random_binary()
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    expected = u / (labels.sum() * (1 - labels).sum())
    assert roc_auc(scores, labels) == pytest.approx(expected)
    assert roc_auc([0.5, 0.5, 0.1], [1, 0, 0]) == 0.75  # a tie is half in order
    assert np.isnan(roc_auc([0.5, 0.1], [1, 1]))
    with pytest.raises(ValueError, match="must not be NaN"):
        roc_auc([0.5, np.nan], [1, 0])
    assert classification_scores(scores, labels)["auc"] == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_binary_scores_agree_with_sklearn(threshold):
    probabilities, labels = random_binary()
    predicted = probabilities >= threshold
    expected = {
        "auc": sklearn_metrics.roc_auc_score(labels, probabilities),
        "average_precision": sklearn_metrics.average_precision_score(labels, probabilities),
        "f1": sklearn_metrics.f1_score(labels, predicted),
        "weighted_f1": sklearn_metrics.f1_score(labels, predicted, average="weighted"),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "accuracy": (predicted == labels).mean(),
        "sensitivity": predicted[labels == 1].mean(),
        "specificity": 1 - predicted[labels == 0].mean(),
    }
    assert classification_scores(probabilities, labels, threshold=threshold) == pytest.approx(expected)


def test_multi_class_scores_agree_with_sklearn():
    probabilities, labels = random_multi()
    predicted, onehot = probabilities.argmax(axis=1), np.eye(3)[labels]
    others = [predicted[labels != c] != c for c in range(3)]
    expected = {
        "auc": sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "average_precision": sklearn_metrics.average_precision_score(onehot, probabilities, average="macro"),
        "f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "weighted_f1": sklearn_metrics.f1_score(labels, predicted, average="weighted"),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "accuracy": (predicted == labels).mean(),
        "sensitivity": sklearn_metrics.recall_score(labels, predicted, average="macro"),
        "specificity": np.mean([o.mean() for o in others]),
    }
    assert classification_scores(probabilities, labels) == pytest.approx(expected)


def test_two_columns_agree_with_one_where_they_mean_the_same():
    p, labels = random_binary()
    p = p + 0.001  # no tie at 0.5
    one, two = classification_scores(p, labels), classification_scores(np.stack([1 - p, p], axis=1), labels)
    for name in ("auc", "weighted_f1", "balanced_accuracy", "accuracy"):
        assert two[name] == pytest.approx(one[name])


def test_single_class_gives_nan_without_warnings():
    scores = classification_scores([0.1, 0.2, 0.9], [0, 0, 0])
    undefined = {"auc", "average_precision", "balanced_accuracy", "sensitivity"}
    assert {name for name, value in scores.items() if np.isnan(value)} == undefined
    assert scores["specificity"] == pytest.approx(2 / 3)
    assert np.isnan(classification_scores([0.1, 0.2], [0, 0])["f1"])
    assert np.isnan(classification_scores([0.1, 0.8], [1, 1])["specificity"])
    multi = classification_scores(np.eye(3), [1, 1, 1])
    assert np.isnan([multi["auc"], multi["average_precision"], multi["balanced_accuracy"]]).all()


def test_absent_class_is_left_out_of_the_macro_mean():
    probabilities, labels = random_multi()
    kept = labels < 2
    aucs = [roc_auc(probabilities[kept, c], labels[kept] == c) for c in (0, 1)]
    assert classification_scores(probabilities[kept], labels[kept])["auc"] == pytest.approx(np.mean(aucs))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.1, 0.2], [0, 1, 1], r"got \[2\] and \[3\]"),
        ([[0.1], [0.2]], [0, 1], r"got \[2, 1\] and \[2\]"),
        ([], [], r"got \[0\] and \[0\]"),
        ([0.1, np.nan], [0, 1], r"NaN.* cases \[1\]"),
        ([0.1, 0.2], [0, 2], r"classes 0 \.\. 1; got \[2\]"),
    ],
)
def test_unusable_predictions_are_named(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_scores(probabilities, labels)


def test_a_prediction_over_two_lesions_is_a_false_one_of_neither():
    truth, pred = np.zeros((2, 9), bool), np.zeros((2, 9), bool)
    truth[0, [1, 3]] = True
    pred[0, 1:4] = pred[0, 7] = True  # over both, and where nothing is
    found = component_scores(pred, truth)
    assert (found["tp"], found["fp"], found["fn"]) == (2, 1, 0)


def test_a_box_may_reach_to_the_masks_end():
    assert max_iou(np.ones((4, 5), bool), [0, 0, 4, 5]) == 1.0
