"""Class activation maps of any torch classifier, 2D or 3D: where the evidence for a class lies.

`with LayerCAM(network, "layer1") as cam: maps = cam(images, target=1)`"""

from .base import (
    BaseCAM,
    GradientCAM,
    Target,
    as_float,
    find_layer,
    normalize_maps,
    resolve_target,
    select_logit,
    upsample_maps,
)
from .methods import CAM, GradCAM, GradCAMpp, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMpp, XGradCAM

__all__ = [
    "CAM",
    "BaseCAM",
    "GradCAM",
    "GradCAMpp",
    "GradientCAM",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "SmoothGradCAMpp",
    "Target",
    "XGradCAM",
    "as_float",
    "find_layer",
    "normalize_maps",
    "resolve_target",
    "select_logit",
    "upsample_maps",
]
