"""GP-ReconResNet: residual blocks at a quarter of the resolution between two strided convolutions and their inverse."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .blocks import Interpolate
from .networks import GPNet, check_input


def _normalized(*layers: nn.Module, channels: int) -> nn.Sequential:
    """Layers, instance normalization without parameters, PReLU."""
    return nn.Sequential(*layers, nn.InstanceNorm2d(channels), nn.PReLU())


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity, padded by reflection."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, kernel_size=3),
            nn.InstanceNorm2d(channels),
            nn.PReLU(),
            nn.Dropout2d(dropout),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, kernel_size=3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _up(in_channels: int, out_channels: int, mode: str) -> nn.Sequential:
    if mode == "transposed":
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, output_padding=1)
        ]
    else:
        layers = [Interpolate(mode), nn.ReflectionPad2d(1), nn.Conv2d(in_channels, out_channels, kernel_size=3)]
    return _normalized(*layers, channels=out_channels)


class GPReconResNet(GPNet):
    """GP-ReconResNet: 7×7 convolution, two strided ones, 14 residual blocks, and two steps up.

    17,272,918 parameters at 4 channels, 3 classes and the default width, as in the authors' code, whichever way it
    goes up.

    Args:
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        width: channels after the first convolution; the blocks have four times as many.
        blocks: number of residual blocks.
        upsample: `transposed` (the authors' default), `sinc` or `bilinear`.
        dropout: probability of dropping a channel inside a block: 0.2, on BraTS 0.5.
        input_mean: subtracted from the image; 1 for images in multiples of their median.
        kwargs: see `GPNet`.

    Raises:
        ValueError: H or W of the input is not a multiple of 4, or below 8.
    """

    def __init__(
        self,
        in_channels: int = 4,
        num_classes: int = 3,
        *,
        width: int = 64,
        blocks: int = 14,
        upsample: Literal["transposed", "sinc", "bilinear"] = "transposed",
        dropout: float = 0.2,
        input_mean: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(num_features=width, num_classes=num_classes, **kwargs)
        if upsample not in ("sinc", "transposed", "bilinear"):
            raise ValueError(f"upsample must be 'sinc', 'transposed' or 'bilinear', got {upsample!r}")
        self.in_channels = in_channels
        self.input_mean = input_mean
        self.layers = nn.Sequential(
            _normalized(nn.ReflectionPad2d(3), nn.Conv2d(in_channels, width, kernel_size=7), channels=width),
            *(
                _normalized(nn.Conv2d(n, 2 * n, kernel_size=3, stride=2, padding=1), channels=2 * n)
                for n in (width, 2 * width)
            ),
            *(ResidualBlock(4 * width, dropout) for _ in range(blocks)),
            *(_up(2 * n, n, upsample) for n in (2 * width, width)),
        )

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 4, "GPReconResNet")
        return self.layers(image - self.input_mean)
