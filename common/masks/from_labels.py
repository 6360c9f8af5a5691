"""Gate and thresholds from yes/no labels alone: nothing here sees an outline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from sklearn.metrics import roc_curve

from ..metrics import roc_auc

_SURE = 1e-6  # probabilities of 0 and 1 have no logit
# What the rule is for lungs: dark where they are healthy, so that a map need not reach far, and with many lesions.
OF_LUNGS: dict[str, Any] = {
    "quantile": 0.99,
    "gate_smooth_mm": 6.0,
    "refine": {"dilate_mm": 3.0, "opening_mm": 0.0, "smooth_mm": 1.5, "largest": False},
}


def choose_gate(probabilities: ArrayLike, labels: ArrayLike, *, sensitivity: float | None = None) -> float:
    """A gate for the probabilities of slices or volumes: those above it are looked into.

    Args:
        probabilities: `[N]`, of holding a finding.
        labels: `[N]`, 0 or 1.
        sensitivity: share of positives that shall pass; the highest gate that lets them. By default the gate with the
            largest sensitivity + specificity − 1 (Youden's J), the smallest among ties.

    Returns:
        Half way, in logits, between the two probabilities that it separates; in (0, 1).

    Raises:
        ValueError: only one kind of label, or probabilities that do not rise with the label: the network has not
            learned.
    """
    scores, truth = np.asarray(probabilities, dtype=float), np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        raise ValueError(
            f"a gate needs positive and negative labels; all {len(truth)} are {'yes' if truth.any() else 'no'}"
        )
    if roc_auc(scores, truth) <= 0.5:
        raise ValueError(
            "probabilities are no higher in positives than in negatives: the network has not learned to tell them "
            "apart, and masks would mean nothing. Train longer, or look at labels and images"
        )
    false, true, cuts = roc_curve(truth, scores, drop_intermediate=False)
    if sensitivity is None:
        best = np.flatnonzero(np.isclose(true - false, (true - false).max()))[-1]
    else:
        best = int(np.flatnonzero(true >= sensitivity - 1e-9)[0])
    passing = cuts[best]
    below = scores[scores < passing].max(initial=0.0)
    gate = float(expit(np.mean(logit(np.clip([passing, below], _SURE, 1 - _SURE)))))
    return gate if below <= gate < passing else float(below)  # both nearer to 0 or 1 than is told apart


def volume_gate(scores: ArrayLike, labels: ArrayLike, *, sensitivity: float = 0.95) -> float:
    """A gate for slices where volumes have one label: below what nearly all positive volumes reach somewhere.

    Volumes are few, and their most suspicious slice says little about the fainter ones of the same lesion. So the gate
    is as low as it may be and still shuts what it shuts.

    Args:
        scores: `[N]`, the probability of the most suspicious slice of each volume.
        labels: `[N]`, 0 or 1.
        sensitivity: share of positive volumes that pass.

    Returns:
        The highest score below the one that this share reaches; 0 if there is none.

    Raises:
        ValueError: as `choose_gate`.
    """
    choose_gate(scores, labels)
    scores, truth = np.asarray(scores, dtype=float), np.asarray(labels).astype(bool)
    least = np.quantile(scores[truth], 1 - sensitivity, method="lower")
    return float(scores[scores < least].max(initial=0.0))


def heat_threshold(heats: Sequence[np.ndarray], quantile: float) -> float:
    """The quantile of the heat where nothing is: so much of it stays below the threshold.

    Args:
        heats: values inside the organ of each negative slice or volume, any shapes.
        quantile: in (0, 1), e.g. .999.

    Raises:
        ValueError: there is no negative.
    """
    heats = [np.ravel(heat) for heat in heats if np.size(heat)]
    if not heats:
        raise ValueError("no slice or volume is labeled negative: what heat means nothing cannot be learned from these")
    return float(np.quantile(np.concatenate(heats).astype(np.float32), quantile))


def in_multiples(normalize: str) -> bool:
    """Whether a mode of `common.preprocessing.NormalizeByOrgand` gives multiples of the organ's own intensity.

    Constants of the refinement are such multiples: of a volume in other units they leave nothing, or all.
    """
    return normalize.startswith("organ_")


def healthy_intensity(images: Sequence[np.ndarray], quantile: float = 0.9) -> float:
    """The quantile of brightness where nothing is: what is brighter may be a lesion.

    Args:
        images: of each patient, the values inside the organ where the label says no, any shape; each patient counts
            alike, however much of him there is.
        quantile: in (0, 1).

    Raises:
        ValueError: there is no negative.
    """
    levels = np.linspace(0, 1, 1001)
    shares = [np.quantile(values, levels) for values in images if np.size(values)]
    if not shares:
        raise ValueError("no slice or volume is labeled negative: how bright nothing is cannot be learned from these")
    return float(np.quantile(np.concatenate(shares), quantile))


def reached_level(peaks: ArrayLike, share: float = 0.75) -> float:
    """The level that about this share of positive slices or volumes reaches somewhere (interpolated).

    Above it, more than the rest of them would have no mask.

    Args:
        peaks: `[N]`, the highest heat inside the organ of each slice or volume labeled positive; N > 0.
        share: in (0, 1).
    """
    return float(np.quantile(np.asarray(peaks, dtype=float), 1 - share))


def smallest_volume(volumes: ArrayLike, labels: ArrayLike) -> float:
    """The volume below which a mask is taken for a false one, from what masks of negatives and positives have.

    Args:
        volumes: `[N]` of the masks.
        labels: `[N]`, 0 or 1, of the images.

    Returns:
        The largest mask of a negative, but at most half of what 95 % of the positives reach; 0 where negatives have no
        mask, or a kind is absent. Same units.
    """
    sizes, truth = np.asarray(volumes, dtype=float), np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        return 0.0
    return float(min(sizes[~truth].max(), np.quantile(sizes[truth], 0.05) / 2))


def pseudo_refine(
    usual: Mapping[str, Any], chosen: Mapping[str, Any] | None, *, organ: str, normalize: str, **changes: Any
) -> dict[str, Any]:
    """Options of `refine_by_intensity` for the masks that a second training learns from.

    A component of configs, so that the command line reaches into it: `--refine#intensity 1.3`.

    Args:
        usual: those of the bundle, in multiples of the organ's intensity.
        chosen: what labels chose for the teacher. It counts in lungs, and where images are in other units: what is
            brighter than healthy organs, and no further than the map.
        organ, normalize: of the preprocessing.
        changes: by option.

    Raises:
        ValueError: nothing was chosen where it counts.
    """
    if organ != "lung" and in_multiples(normalize):
        return {**usual, **changes}
    if chosen is None:
        raise ValueError("no refinement was chosen for the teacher: run calibrate_labels.json on its weights")
    return {**chosen, "dilate_mm": 0.0, **changes}
