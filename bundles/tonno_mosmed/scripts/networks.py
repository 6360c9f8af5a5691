"""Maps that the network of planes draws itself, which a second training on planes of pseudo-masks teaches it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.encoders import Classifier


class DrawnMap:
    """The map that a network draws, in the place of a class activation map from `common.cam`.

    Args:
        network: with a map head (`map_width`).
    """

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.layers = [(network.stages[0], network.get_submodule(network.stages[0]))]
        self.logits: Tensor

    def __call__(self, images: Tensor, *, target: int = 1) -> list[Tensor]:
        """Probabilities `[N, h, w]` of planes; `logits` are kept."""
        with torch.no_grad():
            maps, self.logits = self.network.with_map(images)
        return [maps[:, 0].float().sigmoid()]


class PlanesWithMaps(nn.Module):
    """For training: maps on the pixels of planes, and logits.

    Args:
        module: whose map head learns.
    """

    def __init__(self, module: Classifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[N, 1, h, w]` and logits `[N, 1]` of planes `[N, C, h, w]`."""
        maps, logits = self.module.with_map(image)
        return F.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False), logits


def highest_cm2(heat: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean of the highest square centimeter in each slice `[W]` of a heatmap `[D, H, W]`.

    As much of a pseudo-mask makes a plane positive in training.

    Args:
        heat: probabilities.
        spacing: mm of the three axes.
    """
    pixels = heat.flatten(0, 1)
    count = round(100 / (float(spacing[0]) * float(spacing[1])))
    return pixels.topk(min(max(count, 1), len(pixels)), dim=0).values.mean(0)
