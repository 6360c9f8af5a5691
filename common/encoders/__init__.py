"""Frozen encoders that turn images into grids of features, and the backbones of classifiers."""

from .backbones import LITES, RESNETS, Classifier, group_norm_from_batch, load_body
from .base import Encoder
from .efficientnet import IMAGENET_MEAN, IMAGENET_STD, EfficientNetLite, freeze_statistics, packaged_weights
from .factory import DINOV2, NAMES, LiteGrid, TokenGrid, encoder

__all__ = [
    "DINOV2",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LITES",
    "NAMES",
    "RESNETS",
    "Classifier",
    "EfficientNetLite",
    "Encoder",
    "LiteGrid",
    "TokenGrid",
    "encoder",
    "freeze_statistics",
    "group_norm_from_batch",
    "load_body",
    "packaged_weights",
]
