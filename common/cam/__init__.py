"""Class activation maps of any torch classifier, 2D or 3D: where the evidence for a class lies.

`with LayerCAM(network, "layer1") as cam: maps = cam(images, target=1)`"""

from .base import BaseCAM, GradientCAM, normalize_maps, upsample_maps
from .methods import CAM, GradCAM, GradCAMpp, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMpp, XGradCAM
from .slices import SliceLogit, grad_cam, guided_backpropagation, occlusion_map

__all__ = [
    "CAM",
    "BaseCAM",
    "GradCAM",
    "GradCAMpp",
    "GradientCAM",
    "HiResCAM",
    "LayerCAM",
    "ScoreCAM",
    "SliceLogit",
    "SmoothGradCAMpp",
    "XGradCAM",
    "grad_cam",
    "guided_backpropagation",
    "normalize_maps",
    "occlusion_map",
    "upsample_maps",
]
