"""Class activation maps of any torch classifier, 2D or 3D: where the evidence for a class lies.

`with LayerCAM(network, "layer1") as cam: maps = cam(images, target=1)`"""

from .base import BaseCAM, GradientCAM, normalize_maps, upsample_maps
from .methods import CAM, GradCAM, GradCAMpp, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMpp, XGradCAM
from .slices import SliceLogit, default_layer, grad_cam, guided_backpropagation, occlusion_map
from .views import PaddedSlices, View, whole_slices

__all__ = [
    "CAM",
    "BaseCAM",
    "GradCAM",
    "GradCAMpp",
    "GradientCAM",
    "HiResCAM",
    "LayerCAM",
    "PaddedSlices",
    "ScoreCAM",
    "SliceLogit",
    "SmoothGradCAMpp",
    "View",
    "XGradCAM",
    "default_layer",
    "grad_cam",
    "guided_backpropagation",
    "normalize_maps",
    "occlusion_map",
    "upsample_maps",
    "whole_slices",
]
