"""Global-pooling (GP) networks: classifiers whose class maps are the evidence for their decision.

Source: Chatterjee et al., "Weakly-supervised segmentation using inherently-explainable classification models and
their application to brain tumour classification", arXiv:2206.05148.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Pool
from torch import Tensor, nn

from common.encoders import EfficientNetLite
from common.encoders.maps import Laterals
from common.masks import NO_EVIDENCE
from common.pooling import GlobalPool

from .blocks import Upsample, double_conv, initialize
from .evidence import bright_regions


def check_input(image: Tensor, channels: int, divisor: int, network: str, spatial_dims: int = 2) -> None:
    """Refuse images `[B, C, *spatial]` that a network cannot take.

    Raises:
        ValueError: another number of channels or axes, or sizes that do not divide by `divisor`.
    """
    shape = list(image.shape)
    axes = "H, W and D" if spatial_dims == 3 else "H and W"
    if len(shape) != 2 + spatial_dims:
        raise ValueError(f"{network} of spatial_dims {spatial_dims} takes batch, channels, {axes}, got {shape}")
    if shape[1] != channels:
        raise ValueError(f"{network} expects {channels} image channel(s), got an input of shape {shape}")
    fitting = [(size + divisor - 1) // divisor * divisor for size in shape[2:]]
    if fitting != shape[2:]:
        keys = f'--slice_size "{fitting[:2]}"'
        if spatial_dims == 3:
            keys += f" --stack {fitting[2]}"
        raise ValueError(f"{network} needs {axes} that divide by {divisor}, got {shape}: {keys}, or pad the slices")


def as_slices(stacks: Tensor) -> Tensor:
    """Slices `[B · D, …]` of stacks `[B, …, D]`, each stack's one after the other."""
    return stacks.movedim(-1, 1).flatten(0, 1)


class GPNet(nn.Module):
    """A fully convolutional network, a global pool and one 1×1 convolution shared by logits and class maps.

    Subclasses implement `features`. With `pool_at="features"` (the paper) the pool comes before the head, so a
    logit is the head of the pooled features and in general not the maximum of its class map. With `pool_at="map"`
    the head comes first and the logit is the pooled class map: what is seen is what decided.

    Args:
        num_features: channels of the feature map.
        num_classes: classes, 0 = healthy.
        pool: name of a pool in `common.pooling`.
        pool_at: `features` or `map`.
        pool_options: keyword arguments of the pool, e.g. `{"alpha": 8}` for `smooth_max`.
        organ_channel: the last input channel is an organ mask (> 0.5 inside). It is not seen by the convolutions;
            it restricts the pool to the organ, so no evidence can come from outside.
        evidence_above: by class, how bright the first channel must be for evidence of that class, `-inf` (or None for
            all) for anywhere: lesions that take up contrast are brighter than the organ. See `evidence.bright_regions`.
        spatial_dims: 3: images are stacks of slices `[B, C, H, W, D]`, and each slice has its logits: the pool of its
            part of the map. With the pool `max` at the `map`, that of the whole stack is the highest of them.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_classes: int,
        pool: str = "max",
        pool_at: Literal["features", "map"] = "features",
        pool_options: dict | None = None,
        organ_channel: bool = False,
        evidence_above: Sequence[float | None] | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 (slices) or 3 (stacks of slices), got {spatial_dims}")
        if evidence_above is not None and (len(evidence_above) != num_classes or pool_at != "map"):
            raise ValueError(f"evidence_above: one number a class ({num_classes}) and pool_at 'map' are needed")
        if pool_at not in ("features", "map"):
            raise ValueError(f"pool_at must be 'features' or 'map', got {pool_at!r}")
        self.num_classes = num_classes
        self.pool_at: str = pool_at
        self.organ_channel = organ_channel
        self.pool = GlobalPool(pool, **(pool_options or {}))
        levels = [-math.inf if level is None else float(level) for level in evidence_above or ()]
        self.register_buffer("evidence_above", torch.tensor(levels), persistent=False)
        self.no_evidence = NO_EVIDENCE
        self.spatial_dims = spatial_dims
        self.head = Conv[Conv.CONV, spatial_dims](num_features, num_classes, kernel_size=1)

    __jit_unused_properties__ = ("explained_layer",)

    @property
    def explained_layer(self) -> str:
        """For Grad-CAM beside the own map: where the way down ends, of whichever network of the family."""
        for name in ("encoder._blocks.4", "bottleneck", "down3.conv"):
            if name in dict(self.named_modules()):
                return name
        return f"layers.{len(self.layers) - 3}"  # GP-ReconResNet's, before its two steps up

    def features(self, image: Tensor) -> Tensor:
        """Feature map `[B, num_features, H / s, W / s]` of `[B, in_channels, H, W]`, s the network's stride.

        Of stacks it has their size: `[B, num_features, H, W, D]`.
        """
        raise NotImplementedError

    @torch.jit.export
    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps and the logits they lead to, in one pass.

        Args:
            image: `[B, in_channels (+1 with organ_channel), H, W]`; of a stack `[…, H, W, D]`.

        Returns:
            Class maps `[B, num_classes, H, W]` (raw, one logit per pixel) and logits `[B, num_classes]`; of stacks
            `[B, num_classes, H, W, D]` and `[B, num_classes, D]`.
        """
        mask: Tensor | None = None
        if self.organ_channel:
            mask = image[:, -1:] > 0.5
            image = image[:, :-1]
        features = self.features(image)
        maps = self.head(features)
        if self.spatial_dims == 2:
            return self._decide(maps, features, image, mask)
        slices = None if mask is None else as_slices(mask)
        maps, logits = self._decide(as_slices(maps), as_slices(features), as_slices(image), slices)
        shape = [image.shape[0], image.shape[-1]]
        return maps.unflatten(0, shape).movedim(1, -1), logits.unflatten(0, shape).movedim(1, -1)

    def _decide(self, maps: Tensor, features: Tensor, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps of the size of the slices `image`, and the logits of slices."""
        if maps.shape[-2:] != image.shape[-2:]:
            maps = F.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)
        if self.pool_at == "map":
            # Evidence relative to class 0; the shift cancels in the softmax, and class 0's logit is 0.
            maps = maps - maps[:, :1]
            if self.evidence_above.numel() > 0:
                return self._where_bright(maps, image, mask)
            return maps, self.pool(maps, mask)
        if mask is not None and features.shape[-2:] != image.shape[-2:]:
            mask = F.interpolate(mask.float(), size=features.shape[-2:]) > 0.5
        pooled = self.pool(features, mask)
        return maps, F.linear(pooled, self.head.weight.flatten(1), self.head.bias)

    def _where_bright(self, maps: Tensor, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps and logits with each class's evidence from its own regions; elsewhere `no_evidence`."""
        allowed = bright_regions(image[:, :1], self.evidence_above)
        inside = allowed if mask is None else allowed & mask
        one_by_one = self.pool(maps.flatten(0, 1)[:, None], inside.flatten(0, 1)[:, None])
        logits = one_by_one.view(maps.shape[0], maps.shape[1])
        nowhere = ~inside.flatten(2).any(dim=2)
        return maps.masked_fill(~allowed, self.no_evidence), logits.masked_fill(nowhere, self.no_evidence)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of `[B, in_channels (+1 with organ_channel), H, W]`; of stacks, of each slice."""
        return self.explain(image)[1]


class GPUNet(GPNet):
    """GP-UNet: a three-level U-Net without normalization whose decoder map is pooled globally.

    1,740,675 parameters with sinc upsampling and 1,863,555 with transposed convolution at 4 channels, 3 classes and
    the default widths, as in the authors' code; of the volumetric form 5,136,771 and 5,423,491.

    Args:
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        features: widths of the three levels.
        upsample: `sinc` (paper), `transposed` or `bilinear`.
        dropout: probability of dropping a channel at the bottleneck.
        input_mean: subtracted from the image; 1 for images in multiples of their median.
        spatial_dims, kwargs: see `GPNet`. Volumetric, everything has one axis more.

    Raises:
        ValueError: H, W or D of the input is not a multiple of 4.
    """

    def __init__(
        self,
        in_channels: int = 4,
        num_classes: int = 3,
        *,
        features: Sequence[int] = (64, 128, 256),
        upsample: Literal["sinc", "transposed", "bilinear"] = "sinc",
        dropout: float = 0.5,
        input_mean: float = 0.0,
        spatial_dims: int = 2,
        **kwargs,
    ) -> None:
        low, mid, high = features
        super().__init__(num_features=low, num_classes=num_classes, spatial_dims=spatial_dims, **kwargs)
        self.in_channels = in_channels
        self.input_mean = input_mean
        self.encoder1 = double_conv(in_channels, low, spatial_dims)
        self.encoder2 = double_conv(low, mid, spatial_dims)
        self.bottleneck = double_conv(mid, high, spatial_dims)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.halve = Pool[Pool.AVG, spatial_dims](2)
        self.up2 = Upsample(high, mid, upsample, spatial_dims)
        self.decoder2 = double_conv(2 * mid, mid, spatial_dims)
        self.up1 = Upsample(mid, low, upsample, spatial_dims)
        self.decoder1 = double_conv(2 * low, low, spatial_dims)
        initialize(self)
        nn.init.normal_(self.head.weight, std=0.05)

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 4, "GPUNet", self.spatial_dims)
        level1 = self.encoder1(image - self.input_mean)
        level2 = self.encoder2(self.halve(level1))
        deep = self.dropout(self.bottleneck(self.halve(level2)))
        level2 = self.decoder2(torch.cat([level2, self.up2(deep)], dim=1))
        return self.decoder1(torch.cat([level1, self.up1(level2)], dim=1))


class GPEfficientNet(GPNet):
    """A GP network on ImageNet features, which generalize from few patients: EfficientNet-Lite0 and a 1×1 decoder.

    The encoder's features at strides 2, 4, 8 and 16 are projected to one width and added up at stride 4; the class
    map is interpolated to the image's size. So few layers lie between the pool and the pretrained features that a
    single pooled position teaches them within a few epochs.

    Args:
        in_channels: image channels, without the organ channel; one is repeated for the encoder, and its first filters
            are adapted to other numbers than three.
        num_classes: classes, 0 = healthy.
        width: channels of the sum.
        weights: of the encoder, see `common.encoders.EfficientNetLite`; None when a checkpoint follows.
        dropout: probability of dropping a channel of the sum.
        input_scale: brings the image to the encoder's range; 0.4 puts an organ median of 1 near its middle.
        kwargs: see `GPNet`.

    Raises:
        ValueError: H or W of the input is not a multiple of 16.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        *,
        width: int = 32,
        weights: str | None = None,
        dropout: float = 0.0,
        input_scale: float = 0.4,
        **kwargs,
    ) -> None:
        super().__init__(num_features=width, num_classes=num_classes, **kwargs)
        self.in_channels = in_channels
        self.input_scale = input_scale
        self.seen = 3 if in_channels == 1 else in_channels
        self.encoder = EfficientNetLite(weights, in_channels=self.seen)
        self.laterals = Laterals(self.encoder.channels, width)
        self.dropout = nn.Dropout2d(dropout)

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 16, "GPEfficientNet")
        levels = self.encoder((image * self.input_scale).expand(-1, self.seen, -1, -1))
        return self.dropout(F.relu(self.laterals(levels, at=1)))
