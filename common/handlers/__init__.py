"""Handlers of a run: what it writes, scores and shows."""

from .bags import BagAUC
from .base import CaseHandler, iterate_cases
from .calibration import Calibration
from .case_scores import CaseScores, position_prior
from .class_scores import ClassScores
from .explanations import Explanations
from .label_calibration import LabelCalibration
from .label_scores import LabelScores
from .mean_auc import MeanAUC
from .median_loss import MedianLoss
from .montage import MASK_COLOR, TRUTH_COLOR, draw_montage, with_colorbar
from .panel import Panel
from .tracker import Tracker
from .validation_montages import ValidationMontages
from .volume_scores import VolumeScores
from .writers import CaseWriter, PredictionWriter

__all__ = [
    "MASK_COLOR",
    "TRUTH_COLOR",
    "BagAUC",
    "Calibration",
    "CaseHandler",
    "CaseScores",
    "CaseWriter",
    "ClassScores",
    "Explanations",
    "LabelCalibration",
    "LabelScores",
    "MeanAUC",
    "MedianLoss",
    "Panel",
    "PredictionWriter",
    "Tracker",
    "ValidationMontages",
    "VolumeScores",
    "draw_montage",
    "iterate_cases",
    "position_prior",
    "with_colorbar",
]
