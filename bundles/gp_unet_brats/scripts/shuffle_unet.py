"""GP-ShuffleUNet: space and channels trade places by pixel shuffling, and four "waves" a level skip to the decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import double_conv, initialize
from .networks import GPNet, check_input


class Waves(nn.Module):
    """Four 3×3 convolutions side by side, each with its ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.waves = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.relu(wave(x)) for wave in self.waves]


class Unshuffle(nn.Module):
    """Halve the spatial size: `[B, C, H, W]` → `[B, C, H / 2, W / 2]`, through `[B, 4C, H / 2, W / 2]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.after = nn.Sequential(
            nn.Conv2d(4 * channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.pixel_unshuffle(self.before(x), 2))


class Shuffle(nn.Module):
    """Double the spatial size: `[B, 2C, H, W]` → `[B, C, 2H, 2W]`, through `[B, 4C, H, W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 4 * channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Down(nn.Module):
    """One level down; gives the waves for the decoder and the next level's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.waves = Waves(channels)
        self.unshuffle = Unshuffle(channels)
        self.conv = double_conv(channels, 2 * channels)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        waves = self.waves(x)
        return waves, self.conv(self.unshuffle(waves[3]))  # the last wave goes on


class Up(nn.Module):
    """One level up: the decoder's waves are added to the encoder's, then joined with the encoder's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shuffle = Shuffle(channels)
        self.waves = Waves(channels)
        self.conv = double_conv(5 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor, skipped_waves: list[Tensor]) -> Tensor:
        joined = [skip]
        for i, wave in enumerate(self.waves(self.shuffle(x))):
            joined.append(wave + skipped_waves[i])
        return self.conv(torch.cat(joined, dim=1))


class GPShuffleUNet(GPNet):
    """GP-ShuffleUNet: three levels of 64 to 512 channels, pixel (un)shuffling in place of pooling and interpolation.

    26,371,587 parameters at 4 channels, 3 classes and the default width, as in the authors' code.

    Args:
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        width: channels of the first level; the next ones have two, four and eight times as many.
        dropout: probability of dropping a channel at the bottleneck.
        input_mean: subtracted from the image; 1 for images in multiples of their median.
        kwargs: see `GPNet`.

    Raises:
        ValueError: H or W of the input is not a multiple of 8.
    """

    def __init__(
        self,
        in_channels: int = 4,
        num_classes: int = 3,
        *,
        width: int = 64,
        dropout: float = 0.5,
        input_mean: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(num_features=width, num_classes=num_classes, **kwargs)
        self.in_channels = in_channels
        self.input_mean = input_mean
        self.first = double_conv(in_channels, width)
        self.down1, self.down2, self.down3 = Down(width), Down(2 * width), Down(4 * width)
        self.dropout = nn.Dropout2d(dropout)
        self.up3, self.up2, self.up1 = Up(4 * width), Up(2 * width), Up(width)
        initialize(self)
        nn.init.normal_(self.head.weight, std=0.05)

    def features(self, image: Tensor) -> Tensor:
        check_input(image, self.in_channels, 8, "GPShuffleUNet")
        level1 = self.first(image - self.input_mean)
        waves1, level2 = self.down1(level1)
        waves2, level3 = self.down2(level2)
        waves3, deep = self.down3(level3)
        level3 = self.up3(self.dropout(deep), level3, waves3)
        level2 = self.up2(level3, level2, waves2)
        return self.up1(level2, level1, waves1)
