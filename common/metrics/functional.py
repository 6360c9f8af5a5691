"""Scores of masks, heatmaps and probabilities, and their bootstrap intervals, as pure functions on NumPy arrays.

In masks, non-zero is foreground. NaN means "undefined here" and is never counted as 0. Scores are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data.box_utils import box_iou
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, recall_score


def _masks(pred: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as bool arrays of one shape."""
    pred, truth = np.asarray(pred).astype(bool), np.asarray(truth).astype(bool)
    if pred.shape != truth.shape:
        raise ValueError(f"pred and truth must have one shape; got {list(pred.shape)} and {list(truth.shape)}")
    return pred, truth


def _ratio(part: ArrayLike, whole: ArrayLike, empty: float = np.nan) -> Any:
    """`part / whole` element by element, `empty` where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), empty)


def dice_from_counts(overlap: ArrayLike, pred: ArrayLike, truth: ArrayLike, *, empty: float = 1.0) -> np.ndarray:
    """Dice `2 |P ∩ T| / (|P| + |T|)` from voxel counts, element by element; `empty` where both counts are 0."""
    return _ratio(2.0 * np.asarray(overlap), np.asarray(pred) + np.asarray(truth), empty)


def iou_from_counts(overlap: ArrayLike, pred: ArrayLike, truth: ArrayLike, *, empty: float = 1.0) -> np.ndarray:
    """IoU `|P ∩ T| / |P ∪ T|` from voxel counts, element by element; `empty` where both counts are 0."""
    return _ratio(overlap, np.asarray(pred) + np.asarray(truth) - np.asarray(overlap), empty)


def dice(pred: ArrayLike, truth: ArrayLike, *, empty: float = 1.0) -> float:
    """Dice `2 |P ∩ T| / (|P| + |T|)`; `empty` if both masks are empty, 0 if just one is.

    Raises:
        ValueError: if the shapes differ (as in all functions of two masks here).
    """
    pred, truth = _masks(pred, truth)
    return float(dice_from_counts((pred & truth).sum(), pred.sum(), truth.sum(), empty=empty))


def iou(pred: ArrayLike, truth: ArrayLike, *, empty: float = 1.0) -> float:
    """Intersection over union `|P ∩ T| / |P ∪ T|` (Jaccard); `empty` if both masks are empty, 0 if just one is."""
    pred, truth = _masks(pred, truth)
    return float(iou_from_counts((pred & truth).sum(), pred.sum(), truth.sum(), empty=empty))


def _per_slice(mask: np.ndarray, axis: int) -> np.ndarray:
    """Foreground voxels of every slice along an axis."""
    return np.moveaxis(mask, axis, 0).sum(axis=tuple(range(1, mask.ndim)))


def slice_dice(pred: ArrayLike, truth: ArrayLike, *, axis: int = -1) -> np.ndarray:
    """Dice of every slice along `axis` whose truth is not empty, in order; empty array without such slices.

    Weakly supervised papers (GP-UNet) report the median of these; it says nothing about false positives on the others:
    see `healthy_false_positive_rate`.
    """
    pred, truth = _masks(pred, truth)
    positive = _per_slice(truth, axis)
    scores = dice_from_counts(_per_slice(pred & truth, axis), _per_slice(pred, axis), positive)
    return scores[positive > 0]


def healthy_false_positive_rate(pred: ArrayLike, truth: ArrayLike, *, axis: int = -1) -> float:
    """Share of the slices with empty truth in which anything is predicted; NaN without such slices."""
    pred, truth = _masks(pred, truth)
    healthy = _per_slice(truth, axis) == 0
    return float(_ratio((_per_slice(pred, axis)[healthy] > 0).sum(), healthy.sum()))


def component_scores(pred: ArrayLike, truth: ArrayLike, *, iou_threshold: float = 0.0) -> dict[str, float]:
    """Precision, recall and F1 of connected components (ToNNO, section 4.4).

    Components are connected through faces, edges and corners. A predicted and a true component match if their IoU
    exceeds the threshold; at 0, if they touch the same voxel. `tp` and `fn` count true components with and without
    a match, `fp` predicted ones without: three fragments on one lesion are one `tp`.

    Args:
        pred: predicted mask, any rank.
        truth: true mask, same shape.
        iou_threshold: in [0, 1).

    Returns:
        `precision = tp / (tp + fp)`, NaN if both are 0; `recall = tp / (tp + fn)`, NaN without true components;
        `f1 = 2 tp / (2 tp + fp + fn)`, NaN if both masks are empty; `tp`, `fp`, `fn`.
    """
    pred, truth = _masks(pred, truth)
    structure = np.ones((3,) * pred.ndim, dtype=bool)
    pred_labels, n_pred = ndimage.label(pred, structure)
    true_labels, n_true = ndimage.label(truth, structure)
    both = pred & truth
    # One integer per pair of labels: sorting those is far quicker than sorting rows.
    pairs, overlap = np.unique(
        pred_labels[both].astype(np.int64) * (n_true + 1) + true_labels[both], return_counts=True
    )
    in_pred, in_true = np.divmod(pairs, n_true + 1)
    pred_sizes, true_sizes = np.bincount(pred_labels.ravel()), np.bincount(true_labels.ravel())
    match = overlap / (pred_sizes[in_pred] + true_sizes[in_true] - overlap) > iou_threshold
    tp = len(np.unique(in_true[match]))
    fp, fn = n_pred - len(np.unique(in_pred[match])), n_true - tp
    ratios = {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
    return {**{name: float(_ratio(*r)) for name, r in ratios.items()}, "tp": tp, "fp": fp, "fn": fn}


def max_iou(pred: ArrayLike, box: ArrayLike) -> float:
    """MaxIoU (ToNNO, section 4.4): IoU of the true box with the predicted one that matches it best.

    Predicted boxes are the tightest ones around the connected components of the binarized map; components are connected
    through faces, edges and corners, as in `component_scores`. The threshold is not part of the score: it is
    the one that made the mask. Where only the main lesion has a box, this replaces Dice.

    Args:
        pred: predicted mask, any rank d.
        box: true box `[2d]` in voxels of the mask's grid: the corner of smallest indices, then that of the largest,
            which is exclusive, e.g. `[x0, y0, z0, x1, y1, z1]` (MONAI's standard mode).

    Returns:
        IoU in [0, 1]; 0 if nothing is predicted.

    Raises:
        ValueError: if the box is not `[2d]`, is empty, or reaches beyond the mask.
    """
    mask, corners = np.asarray(pred).astype(bool), np.asarray(box, dtype=np.float64)
    if corners.shape != (2 * mask.ndim,):
        raise ValueError(f"box must hold {2 * mask.ndim} numbers for a mask {list(mask.shape)}; got {corners.tolist()}")
    start, stop = corners[: mask.ndim], corners[mask.ndim :]
    if (start < 0).any() or (stop <= start).any() or (stop > mask.shape).any():
        raise ValueError(f"box {corners.tolist()} is empty or reaches beyond a mask {list(mask.shape)}")
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))
    if not count:
        return 0.0
    slices = ndimage.find_objects(labels)
    boxes = np.array([[*(s.start for s in part), *(s.stop for s in part)] for part in slices], dtype=np.float64)
    return float(np.max(box_iou(boxes, corners[None])))


def heat_outside(heatmap: ArrayLike, organ: ArrayLike) -> float:
    """Share of the positive heat outside the organ, `Σ_outside ReLU(H) / Σ ReLU(H)`; NaN without positive heat."""
    heat, inside = np.maximum(np.asarray(heatmap), 0), np.asarray(organ).astype(bool)
    if heat.shape != inside.shape:
        raise ValueError(f"heatmap and organ must have one shape; got {list(heat.shape)} and {list(inside.shape)}")
    return float(_ratio(heat[~inside].sum(dtype=np.float64), heat.sum(dtype=np.float64)))


def pooled_miou(pred: ArrayLike | Sequence[ArrayLike], truth: ArrayLike | Sequence[ArrayLike]) -> float:
    """Mean of background and foreground IoU over the pixels of all arrays together (ensemble of Grad-CAMs).

    A flattering score: the background dominates. On data with 4.6 % foreground the empty mask has a mIoU of 0.477 and a
    `paper_dsc` of 0.646, with a true Dice of 0. Report `dice` per case beside it.

    Args:
        pred: one array, or a sequence of arrays of any shapes.
        truth: the same, shape by shape.

    Returns:
        mIoU; a class that neither side holds counts as IoU 1.

    Raises:
        ValueError: if the numbers of arrays or any two shapes differ.
    """
    # Not np.asarray: the arrays of a sequence may differ in shape. An array is walked along its first axis.
    preds, truths = list(pred), list(truth)  # type: ignore[arg-type]
    if len(preds) != len(truths):
        raise ValueError(f"pred and truth must hold equally many arrays; got {len(preds)} and {len(truths)}")
    counts = [voxel_counts(p, t) for p, t in zip(preds, truths, strict=True)]
    return miou_from_counts(*np.sum(counts, axis=0)) if counts else 1.0


def voxel_counts(pred: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Numbers `[4]` of voxels in both masks, in the prediction, in the truth, and of all."""
    pred, truth = _masks(pred, truth)
    return np.array([(pred & truth).sum(), pred.sum(), truth.sum(), pred.size], dtype=np.int64)


def miou_from_counts(overlap: ArrayLike, pred: ArrayLike, truth: ArrayLike, size: ArrayLike) -> Any:
    """Mean of background and foreground IoU from voxel counts, see `voxel_counts`; arrays broadcast."""
    overlap, pred, truth, size = (np.asarray(x) for x in (overlap, pred, truth, size))
    background = iou_from_counts(size - pred - truth + overlap, size - pred, size - truth)
    return (iou_from_counts(overlap, pred, truth) + background) / 2


def paper_dsc(miou: float) -> float:
    """ "DSC" of the ensemble of Grad-CAMs' tables: `2 m / (1 + m)` of the pooled mIoU `m`, not a mean Dice."""
    return 2.0 * miou / (1.0 + miou)


def roc_auc(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of a binary label; NaN, without a warning, if only one class is present."""
    scores, positive = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(bool)
    if np.isnan(scores).any():
        raise ValueError("probabilities must not be NaN")
    above, below = scores[positive], np.sort(scores[~positive])
    if not above.size or not below.size:
        return np.nan
    # The share of pairs that are in order, ties by half; bootstraps call it thousands of times.
    pairs = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
    return float(pairs.mean() / (2 * below.size))


def balanced_accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean recall of the classes that `truth` holds; NaN, without a warning, if that is a single one.

    By volume, as ToNNO reports it: `truth` is the volume's label, `predicted` whether anything is left of its mask.

    Args:
        truth: integer or bool classes `[N]`.
        predicted: the same.

    Raises:
        ValueError: if the shapes are not `[N]`, N > 0, for both.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not truth.size:
        raise ValueError(
            f"truth and predicted must be [N] with N > 0; got {list(truth.shape)} and {list(predicted.shape)}"
        )
    classes = np.unique(truth)
    if len(classes) < 2:
        return np.nan
    return float(recall_score(truth, predicted, labels=classes, average="macro", zero_division=0))


def _nanmean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN, without a warning, if nothing is."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if kept.size else np.nan


def classification_scores(probabilities: ArrayLike, labels: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Scores of image-level predictions.

    `[N]`: probability of class 1; `p >= threshold` predicts 1. `f1` is that of class 1.
    `[N, C]`: the largest probability predicts (`threshold` is not used); `auc`, `average_precision`, `f1`,
    `sensitivity` and `specificity` are macro means of one class against the rest, over the classes where they are
    defined.

    Args:
        probabilities: `[N]` or `[N, C]`, C ≥ 2.
        labels: integer classes `[N]`, 0/1 or 0 .. C − 1.
        threshold: cut-off for `[N]`.

    Returns:
        `auc`, `average_precision`, `f1`, `weighted_f1` (by class size), `balanced_accuracy` (mean recall),
        `accuracy`, `sensitivity` (recall), `specificity`. NaN where undefined: `auc`, `average_precision` and
        `balanced_accuracy` if a single class is present, `sensitivity` without positives, `specificity` without
        negatives, `f1` with neither positives nor positive predictions.

    Raises:
        ValueError: if the shapes do not go together, a probability is NaN, or a label is not a class.
    """
    scores, truth, classes = _predictions(probabilities, labels)
    if scores.ndim == 1:  # one class against the rest: class 1, of which alone a probability is known
        predicted, against_rest = (scores >= threshold).astype(np.int64), {1: scores}
    else:
        predicted, against_rest = scores.argmax(axis=1), dict(enumerate(scores.T))
    scored = [*against_rest]

    table = confusion_matrix(truth, predicted, labels=classes)
    hits, total = np.diag(table), table.sum()
    of_truth, of_pred = table.sum(axis=1), table.sum(axis=0)
    specificity = _ratio(total - of_truth - of_pred + hits, total - of_truth)
    f1_options: dict[str, Any] = {"labels": classes, "zero_division": np.nan}
    return {
        "auc": _nanmean([roc_auc(p, truth == c) for c, p in against_rest.items()]),
        "average_precision": _nanmean([_average_precision(p, truth == c) for c, p in against_rest.items()]),
        "f1": _nanmean(f1_score(truth, predicted, average=None, **f1_options)[scored]),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", **f1_options)),
        "balanced_accuracy": balanced_accuracy(truth, predicted),
        "accuracy": float(hits.sum() / total),
        "sensitivity": _nanmean(_ratio(hits, of_truth)[scored]),
        "specificity": _nanmean(specificity[scored]),
    }


def _predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities `[N]` or `[N, C]`, labels `[N]` as integers, and the classes, which go together."""
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    of_classes = scores.ndim == 2 and scores.shape[1] > 1
    if not (scores.ndim == 1 or of_classes) or truth.shape != scores.shape[:1] or not truth.size:
        raise ValueError(
            "probabilities must be [N] or [N, C] with C > 1 and labels [N] with N > 0; "
            f"got {list(scores.shape)} and {list(truth.shape)}"
        )
    undefined = np.isnan(scores.reshape(len(truth), -1)).any(axis=1)
    if undefined.any():
        raise ValueError(f"probabilities must not be NaN; they are for the cases {np.flatnonzero(undefined).tolist()}")
    classes = np.arange(scores.shape[1] if of_classes else 2)
    if not np.isin(truth, classes).all():
        raise ValueError(f"labels must be classes 0 .. {classes[-1]}; got {np.setdiff1d(truth, classes).tolist()}")
    return scores, truth.astype(np.int64), classes


def _average_precision(probabilities: np.ndarray, positive: np.ndarray) -> float:
    """NaN, without a warning, if only one class is present."""
    return average_precision_score(positive, probabilities) if 0 < positive.sum() < positive.size else np.nan
