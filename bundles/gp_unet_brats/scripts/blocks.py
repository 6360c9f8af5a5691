"""Parts of the paper's networks, of slices (`spatial_dims` 2) and of volumes (3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn


def sinc_upsample(x: Tensor) -> Tensor:
    """Double the spatial size by band-limited (sinc) interpolation, i.e. zero-padding of the spectrum.

    Input samples reappear at the even positions of the output; the Nyquist term of an axis is split between both
    signs so that a real signal stays real.

    Args:
        x: `[B, C, *spatial]`, of even sizes.

    Returns:
        `[B, C, *spatial]`, twice as long along each spatial axis.
    """
    doubled = x.float()
    for axis in range(2, x.dim()):
        length = x.shape[axis]
        spectrum = torch.fft.rfft(doubled, dim=axis)
        spectrum.narrow(axis, length // 2, 1).mul_(0.5)
        doubled = 2.0 * torch.fft.irfft(spectrum, n=2 * length, dim=axis)
    return doubled.to(x.dtype)


class Interpolate(nn.Module):
    """Double the spatial size, `sinc` or `bilinear` (trilinear of volumes)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "sinc":
            return sinc_upsample(x)
        mode = "trilinear" if x.dim() == 5 else "bilinear"
        return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False)


class Upsample(nn.Module):
    """Double the spatial size and map `in_channels` to `out_channels`.

    Args:
        mode: `sinc` (the paper's default) and `bilinear` interpolate, then mix channels by a 1×1 convolution;
            `transposed` is a stride-2 transposed convolution.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mode: Literal["sinc", "transposed", "bilinear"],
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if mode not in ("sinc", "transposed", "bilinear"):
            raise ValueError(f"upsample must be 'sinc', 'transposed' or 'bilinear', got {mode!r}")
        self.interpolate = nn.Identity() if mode == "transposed" else Interpolate(mode)
        self.conv: nn.Module = (
            Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=2, stride=2)
            if mode == "transposed"
            else Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Both interpolations act on each channel alone, so mixing channels first gives the same result at a quarter
        # of the cost.
        return self.interpolate(self.conv(x))


def double_conv(in_channels: int, out_channels: int, spatial_dims: int = 2) -> nn.Sequential:
    """Two convolutions of 3 pixels along each axis, each with its ReLU."""
    conv = Conv[Conv.CONV, spatial_dims]
    return nn.Sequential(
        conv(in_channels, out_channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        conv(out_channels, out_channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


def initialize(module: nn.Module) -> None:
    """He initialization: without normalization layers PyTorch's default lets activations fade with depth."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
