"""Frozen encoders that turn images into grids of features, and the backbones of classifiers."""

from .backbones import Classifier
from .base import Encoder
from .efficientnet import EfficientNetLite
from .factory import TokenGrid, encoder

__all__ = [
    "Classifier",
    "EfficientNetLite",
    "Encoder",
    "TokenGrid",
    "encoder",
]
