"""A map drawn from a classifier's features of all resolutions, beside its class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Laterals(nn.ModuleList):
    """Features of several resolutions, each through a 1×1 convolution to one width, added up at one size.

    Args:
        channels: of the features, fine to coarse.
        width: channels of the sum.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(nn.Conv2d(count, width, kernel_size=1) for count in channels)

    def forward(self, levels: list[Tensor], at: int = 0) -> Tensor:
        """`[B, width, h, w]` of features `[B, C, h, w]`, with the size of level number `at`."""
        total = torch.zeros_like(levels[at][:, :1])
        for i, lateral in enumerate(self):
            resized = F.interpolate(
                lateral(levels[i]), size=levels[at].shape[-2:], mode="bilinear", align_corners=False
            )
            total = total + resized
        return total


class MapHead(nn.Module):
    """One map from a classifier's features of all resolutions: 1×1 convolutions, added up at the finest, and one more.

    Args:
        member: whose stages it reads, see `common.encoders.Classifier`; it is no part of the head.
        width: channels of the sum.
    """

    def __init__(self, member: Any, width: int) -> None:
        super().__init__()
        with torch.no_grad():
            _, stages = stage_features(copy.deepcopy(member).eval(), torch.zeros(1, member.in_channels, 64, 64))
        self.laterals = Laterals([stage.shape[1] for stage in stages], width)
        self.head = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Logits `[B, 1, h, w]` of features `[B, C, h, w]`, fine to coarse."""
        return self.head(F.relu(self.laterals(stages)))


def stage_features(member: Any, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of a classifier and the outputs of its `stages`, fine to coarse."""
    found: list[Tensor] = []
    hooks = [
        member.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for name in member.stages
    ]
    try:
        return member(image), found
    finally:
        for hook in hooks:
            hook.remove()
