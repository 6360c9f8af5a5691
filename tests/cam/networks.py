"""Small networks and images for the tests of class activation maps."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from common.cam import GradCAM, GradCAMpp, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMpp, XGradCAM

GRADIENT_METHODS = [GradCAM, GradCAMpp, HiResCAM, LayerCAM, XGradCAM]
METHODS = [*GRADIENT_METHODS, SmoothGradCAMpp, ScoreCAM]
SHAPES = {2: (10, 8), 3: (6, 5, 4)}


def small_network(dims=2, classes=3, activation=nn.ReLU, seed=0, head=True):
    """Two convolutions, average, a linear head; `late` sees a non-linear rest only where `early` is explained."""
    torch.manual_seed(seed)
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    pool = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    layers = OrderedDict(
        early=conv(2, 4, 3, padding=1),
        first=activation(),
        middle=conv(4, 6, 3, padding=1, stride=2),
        norm=norm(6),
        late=activation(),
        pool=pool,
        flat=nn.Flatten(),
        head=nn.Linear(6, classes) if head else nn.Identity(),
    )
    network = nn.Sequential(layers)
    network.norm.running_mean.normal_(std=0.2)
    network.norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(network.norm.weight, 0.5, 2.0)
    return network.eval()


def random_images(dims=2, batch=3, seed=1):
    return torch.randn((batch, 2, *SHAPES[dims]), generator=torch.Generator().manual_seed(seed))


def balanced_network(classes=3, batch=3):
    """A network and images that it puts into several classes."""
    network, images = small_network(classes=classes), random_images(batch=batch)
    with torch.no_grad():
        network.head.bias -= network(images).mean(0)
    return network, images


class Wrapped(nn.Module):
    """A network whose forward is a function of `early`, `other` and `head`."""

    def __init__(self, function):
        super().__init__()
        self.early, self.other, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.relu, self.function = nn.ReLU(), function

    def forward(self, x):
        return self.function(self, x)


def pooled(features):
    return features.mean((2, 3))
