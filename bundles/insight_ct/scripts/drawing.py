"""A second stage that draws: the encoder learns, too, and the heat has half of the image's resolution.

The heatmap of a frozen encoder has cells of some millimeters and knows what ImageNet's first layers see. Here the whole
encoder learns from the pseudo-masks that the first stage and the image suggest, `common.data.pseudo_masks`; labels stay
the only supervision. One finding against none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler

from common.data import SliceDataset, stratified_weights
from common.encoders import EfficientNetLite
from common.encoders.maps import Laterals
from common.engines import weighted_sampler


class DrawnInsight(nn.Module):
    """EfficientNet-Lite whose features of all resolutions draw the heat, by 1×1 convolutions and their sum at stride 2.

    Args:
        in_channels: image channels, without the organ channel; one is repeated for the encoder.
        width: channels of the sum.
        variant, weights: of `common.encoders.EfficientNetLite`; weights None when a checkpoint follows.
        input_scale: brings the image to the encoder's range.
        evidence_pixels: a slice's probability is the mean of so many of its highest pixels; 51 of 1.4 mm are a square
            centimeter.
    """

    num_classes = 2

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 32,
        variant: str = "lite0",
        weights: str | None = None,
        input_scale: float = 0.2,
        evidence_pixels: int = 51,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.seen = 3 if in_channels == 1 else in_channels
        self.input_scale = input_scale
        self.evidence_pixels = evidence_pixels
        self.encoder = EfficientNetLite(weights, variant=variant, in_channels=self.seen)
        self.laterals = Laterals(self.encoder.channels, width)
        self.head = nn.Conv2d(width, 1, kernel_size=1)
        nn.init.constant_(self.head.bias, -2.0)  # most of an organ is healthy

    __jit_unused_properties__ = ("explained_layer",)

    @property
    def explained_layer(self) -> str:
        """For Grad-CAM beside the own map: the deepest features."""
        return "encoder._blocks.4"

    def draw(self, image: Tensor) -> Tensor:
        """Logits of the heat, `[B, 1, H, W]`, of images `[B, in_channels, H, W]`."""
        levels = self.encoder((image * self.input_scale).expand(-1, self.seen, -1, -1))
        drawn = self.head(F.relu(self.laterals(levels)))
        return F.interpolate(drawn, size=image.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        """Heat `[B, 1, H, W]` in [0, 1] of images `[B, in_channels, H, W]`."""
        return self.draw(image).sigmoid()

    @torch.jit.export
    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, 2, H, W]` of none (0) and the finding (its heat), and logits `[B, 2]` of slices.

        Args:
            image: `[B, in_channels + 1, H, W]`, the last channel the organ; outside there is no heat.
        """
        heat = self(image[:, :-1]).masked_fill(image[:, -1:] <= 0.5, 0.0)
        pixels = heat.flatten(1)
        highest = pixels.topk(min(self.evidence_pixels, pixels.shape[1]), dim=1).values
        probability = highest.mean(dim=1).clamp(1e-6, 1 - 1e-6)
        return torch.cat([torch.zeros_like(heat), heat], dim=1), torch.stack([1 - probability, probability], 1).log()


class Drawing(nn.Module):
    """For training: logits of the heat `[B, 1, H, W]` of `[B, in_channels + 1, H, W]`."""

    def __init__(self, module: DrawnInsight) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        return self.module.draw(image[:, :-1])


class Evidence(nn.Module):
    """For validation: logits `[B, 2]` of slices `[B, in_channels + 1, H, W]`."""

    def __init__(self, module: DrawnInsight) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        return self.module.explain(image)[1]


def balanced_slices(dataset: SliceDataset, *, num_samples: int, stratify_by: Sequence[str] = ()) -> Sampler:
    """Draw slices by `common.data.stratified_weights`: positives and negatives 1:1, patients in equal shares.

    Args:
        dataset: the slices.
        num_samples: draws an epoch.
        stratify_by: of `common.data.stratified_weights`.
    """
    cases = [dataset.data[number] for number, _ in dataset.where]
    weights = stratified_weights(cases, [label > 0 for label in dataset.classes], stratify_by=stratify_by)
    return weighted_sampler(dataset, weights.tolist(), num_samples)
