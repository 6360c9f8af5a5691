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
from torch import Tensor, nn

from common.encoders import EfficientNetLite
from common.masks import NO_EVIDENCE
from common.pooling import GlobalPool

from .evidence import bright_regions


def sinc_upsample(x: Tensor) -> Tensor:
    """Double the spatial size by band-limited (sinc) interpolation, i.e. zero-padding of the spectrum.

    Input samples reappear at the even positions of the output; the Nyquist term of an even-sized axis is split
    between both signs so that a real signal stays real.

    Args:
        x: `[B, C, H, W]`, H and W even.

    Returns:
        `[B, C, 2H, 2W]`.
    """
    height, width = x.shape[-2:]
    spectrum = torch.fft.rfft2(x.float())
    half_h, half_w = height // 2, width // 2
    nyquist_w = torch.cat([torch.ones(half_w), torch.full((1,), 0.5)]).to(x.device)
    spectrum = spectrum * nyquist_w
    nyquist_row = spectrum[..., half_h : half_h + 1, :] * 0.5
    gap = torch.zeros(x.shape[0], x.shape[1], height - 1, half_w + 1, dtype=spectrum.dtype, device=x.device)
    spectrum = torch.cat(
        [spectrum[..., :half_h, :], nyquist_row, gap, nyquist_row, spectrum[..., half_h + 1 :, :]], dim=-2
    )
    spectrum = F.pad(spectrum, [0, width - half_w])
    return (4.0 * torch.fft.irfft2(spectrum, s=[2 * height, 2 * width])).to(x.dtype)


class Interpolate(nn.Module):
    """Double the spatial size, `sinc` or `bilinear`."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "sinc":
            return sinc_upsample(x)
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Upsample(nn.Module):
    """Double the spatial size and map `in_channels` to `out_channels`.

    Args:
        mode: `sinc` (the paper's default) and `bilinear` interpolate, then mix channels by a 1×1 convolution;
            `transposed` is a stride-2 transposed convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, mode: Literal["sinc", "transposed", "bilinear"]) -> None:
        super().__init__()
        if mode not in ("sinc", "transposed", "bilinear"):
            raise ValueError(f"upsample must be 'sinc', 'transposed' or 'bilinear', got {mode!r}")
        self.interpolate = nn.Identity() if mode == "transposed" else Interpolate(mode)
        self.conv: nn.Module = (
            nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
            if mode == "transposed"
            else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Both interpolations act on each channel alone, so mixing channels first gives the same result at a quarter
        # of the cost.
        return self.interpolate(self.conv(x))


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with its ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


def check_input(image: Tensor, channels: int, divisor: int, network: str) -> None:
    """Refuse images `[B, C, H, W]` that a network cannot take.

    Raises:
        ValueError: another number of channels, or H or W that do not divide by `divisor`.
    """
    if image.shape[1] != channels:
        raise ValueError(f"{network} expects {channels} image channel(s), got an input of shape {list(image.shape)}")
    if image.shape[2] % divisor != 0 or image.shape[3] % divisor != 0:
        raise ValueError(f"{network} needs H and W that divide by {divisor}, got {list(image.shape)}: pad the slices")


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
    ) -> None:
        super().__init__()
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
        self.head = nn.Conv2d(num_features, num_classes, kernel_size=1)

    def features(self, image: Tensor) -> Tensor:
        """Feature map `[B, num_features, H / s, W / s]` of `[B, in_channels, H, W]`, s the network's stride."""
        raise NotImplementedError

    @torch.jit.export
    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps and the logits they lead to, in one pass.

        Args:
            image: `[B, in_channels (+1 with organ_channel), H, W]`.

        Returns:
            Class maps `[B, num_classes, H, W]` (raw, one logit per pixel) and logits `[B, num_classes]`.
        """
        mask: Tensor | None = None
        if self.organ_channel:
            mask = image[:, -1:] > 0.5
            image = image[:, :-1]
        features = self.features(image)
        maps = self.head(features)
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
        """Logits `[B, num_classes]` of `[B, in_channels (+1 with organ_channel), H, W]`."""
        return self.explain(image)[1]


class GPUNet(GPNet):
    """GP-UNet: a three-level U-Net without normalization whose decoder map is pooled globally.

    1,740,675 parameters with sinc upsampling and 1,863,555 with transposed convolution at 4 channels, 3 classes and
    the default widths, as in the authors' code.

    Args:
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        features: widths of the three levels.
        upsample: `sinc` (paper), `transposed` or `bilinear`.
        dropout: probability of dropping a channel at the bottleneck.
        input_mean: subtracted from the image; 1 for images in multiples of their median.
        kwargs: see `GPNet`.

    Raises:
        ValueError: H or W of the input is not a multiple of 4.
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
        **kwargs,
    ) -> None:
        low, mid, high = features
        super().__init__(num_features=low, num_classes=num_classes, **kwargs)
        self.in_channels = in_channels
        self.input_mean = input_mean
        self.encoder1 = double_conv(in_channels, low)
        self.encoder2 = double_conv(low, mid)
        self.bottleneck = double_conv(mid, high)
        self.dropout = nn.Dropout2d(dropout)
        self.up2 = Upsample(high, mid, upsample)
        self.decoder2 = double_conv(2 * mid, mid)
        self.up1 = Upsample(mid, low, upsample)
        self.decoder1 = double_conv(2 * low, low)
        initialize(self)
        nn.init.normal_(self.head.weight, std=0.05)

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 4, "GPUNet")
        level1 = self.encoder1(image - self.input_mean)
        level2 = self.encoder2(F.avg_pool2d(level1, 2))
        deep = self.dropout(self.bottleneck(F.avg_pool2d(level2, 2)))
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
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1) for c in self.encoder.channels)
        self.dropout = nn.Dropout2d(dropout)

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 16, "GPEfficientNet")
        levels = self.encoder((image * self.input_scale).expand(-1, self.seen, -1, -1))
        size = levels[1].shape[-2:]
        total = torch.zeros_like(levels[1][:, :1])
        for i, lateral in enumerate(self.laterals):
            total = total + F.interpolate(lateral(levels[i]), size=size, mode="bilinear", align_corners=False)
        return self.dropout(F.relu(total))


def initialize(module: nn.Module) -> None:
    """He initialization: without normalization layers PyTorch's default lets activations fade with depth."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
