"""Scores of masks, heatmaps and probabilities, and their bootstrap intervals."""

from .bootstrap import bootstrap_by_patient, bootstrap_interval, summarize
from .classes import class_scores, patient_accuracy
from .explanations import area_under, perturbation_curve, points_at, rank_correlation, top_region
from .functional import (
    balanced_accuracy,
    classification_scores,
    component_scores,
    dice,
    dice_from_counts,
    healthy_false_positive_rate,
    heat_outside,
    iou,
    iou_from_counts,
    max_iou,
    miou_from_counts,
    paper_dsc,
    pooled_miou,
    roc_auc,
    slice_dice,
    voxel_counts,
)

__all__ = [
    "area_under",
    "balanced_accuracy",
    "bootstrap_by_patient",
    "bootstrap_interval",
    "class_scores",
    "classification_scores",
    "component_scores",
    "dice",
    "dice_from_counts",
    "healthy_false_positive_rate",
    "heat_outside",
    "iou",
    "iou_from_counts",
    "max_iou",
    "miou_from_counts",
    "paper_dsc",
    "patient_accuracy",
    "perturbation_curve",
    "points_at",
    "pooled_miou",
    "rank_correlation",
    "roc_auc",
    "slice_dice",
    "summarize",
    "top_region",
    "voxel_counts",
]
