"""Frozen encoders by name: a slice or tile goes in, a grid of feature vectors comes out.

EfficientNet-Lite0 with packaged ImageNet weights (works offline), DINOv2 through transformers, any model of timm
(UNI among them), and every `nn.Module` that gives a grid, by way of `Encoder` itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import load_body
from .base import Embedding, Encoder, Precision
from .efficientnet import EfficientNetLite

# By name: transformers' type of model, its usual weights, and width, depth and heads for random weights.
DINOV2 = {
    f"dinov2_{size}{suffix}": (kind, f"facebook/{kind.replace('_', '-')}-{word}", *shape)
    for size, word, shape in (
        ("vits14", "small", (384, 12, 6)),
        ("vitb14", "base", (768, 12, 12)),
        ("vitl14", "large", (1024, 24, 16)),
    )
    for suffix, kind in (("", "dinov2"), ("_reg", "dinov2_with_registers"))
}
NAMES = ("efficientnet_lite0", *DINOV2)
COLOR_MEAN, COLOR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained


def encoder(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = "pretrained",
    stride: int = 8,
    levels: Sequence[int] = (4, 8, 16),
    model: Mapping[str, Any] | None = None,
    size: int | None = None,
    zoom: float = 1.0,
    input_scale: float = 1.0,
    embedding: Embedding = "tensor",
    precision: Precision = "float32",
    modalities: int = 1,
) -> Encoder:
    """A frozen encoder by its name.

    Args:
        name: `efficientnet_lite0`; `dinov2_vits14`, `dinov2_vitb14`, `dinov2_vitl14`, with registers `..._reg`; or
            `timm/NAME`, e.g. `timm/hf-hub:MahmoodLab/uni`.
        weights: `pretrained` for the usual ones (EfficientNet: the package's; DINOv2 and timm: from the hub or its
            cache), None for random ones, else a file with the same key names (EfficientNet, timm), or a local folder
            or hub name (DINOv2).
        stride: of EfficientNet's grid: 4, 8 or 16 pixels. Others have the stride of their patches.
        levels: strides (2, 4, 8, 16) of EfficientNet's maps that are concatenated; finer ones than the grid are
            averaged over the cell, coarser ones enlarged bilinearly. The default gives 24 + 40 + 112 channels.
        model: further arguments of `timm.create_model`; UNI takes `{"init_values": 1e-5, "dynamic_img_size": true}`.
        size, zoom, input_scale, embedding, precision, modalities: see `Encoder`. DINOv2's grid is 16 × 16 for 224,
            37 × 37 for 518.

    Raises:
        ValueError: an unknown name or option, or weights that do not fit.
        FileNotFoundError: there are no such weights.
        ImportError: a package is missing; the message names the extra.
    """
    options: dict[str, Any] = {"size": size, "zoom": zoom, "input_scale": input_scale}
    options |= {"embedding": embedding, "precision": precision, "modalities": modalities}
    if name == "efficientnet_lite0":
        body = LiteGrid("imagenet" if weights == "pretrained" else weights, stride=stride, levels=levels)
        full_name = f"{name} levels {'+'.join(map(str, sorted(levels)))}"
        # EfficientNetLite normalizes the image itself.
        return Encoder(body, name=full_name, channels=body.channels, stride=stride, divisor=16, **options)
    if name in DINOV2:
        return _dinov2(name, weights, options)
    if name.startswith("timm/"):
        return _timm(name, weights, dict(model or {}), options)
    raise ValueError(f"unknown encoder {name!r}: use one of {[*NAMES]} or 'timm/NAME'")


class LiteGrid(nn.Module):
    """EfficientNet-Lite0's maps of several strides, concatenated on one grid; see `encoder`."""

    def __init__(self, weights: str | os.PathLike[str] | None, *, stride: int, levels: Sequence[int]) -> None:
        super().__init__()
        if stride not in (4, 8, 16):
            raise ValueError(f"stride must be 4, 8 or 16, got {stride}")
        if not levels or set(levels) - {2, 4, 8, 16}:
            raise ValueError(f"levels must be some of 2, 4, 8, 16, got {list(levels)}")
        self.stride = stride
        self.kept = [level in levels for level in (2, 4, 8, 16)]
        self.encoder = EfficientNetLite(weights)
        self.channels: int = sum(c for c, kept in zip(self.encoder.channels, self.kept, strict=True) if kept)

    def forward(self, image: Tensor) -> Tensor:
        grid = [image.shape[2] // self.stride, image.shape[3] // self.stride]
        parts: list[Tensor] = []
        for kept, level in zip(self.kept, self.encoder(image)):  # noqa: B905 (TorchScript knows no strict)
            if kept and level.shape[2] > grid[0]:
                parts.append(F.avg_pool2d(level, level.shape[2] // grid[0]))
            elif kept:
                parts.append(F.interpolate(level, size=grid, mode="bilinear", align_corners=False))
        return torch.cat(parts, dim=1)


class TokenGrid(nn.Module):
    """The patch tokens of a vision transformer as a grid.

    Args:
        model: has `forward_features` (timm), or gives a `last_hidden_state` (transformers).
        patch: pixels of a patch.
        skip: class and register tokens that come before the patches.
    """

    def __init__(self, model: nn.Module, *, patch: int, skip: int) -> None:
        super().__init__()
        self.model = model
        self.patch = patch
        self.skip = skip

    def forward(self, image: Tensor) -> Tensor:
        if hasattr(self.model, "forward_features"):
            tokens = self.model.forward_features(image)  # type: ignore[operator]
        else:
            tokens = self.model(image).last_hidden_state
        if tokens.dim() == 4:  # a convolutional network: it is a grid already
            return tokens
        rows, columns = image.shape[2] // self.patch, image.shape[3] // self.patch
        return tokens[:, self.skip :].transpose(1, 2).unflatten(2, (rows, columns))


def _dinov2(name: str, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> Encoder:
    try:
        from transformers import AutoConfig, AutoModel
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"the encoder {name!r} needs transformers: pip install 'weakseg-bundles[dinov2]'") from error
    kind, hub_name, width, depth, heads = DINOV2[name]
    if weights is None:
        config = AutoConfig.for_model(
            kind, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14
        )
        model = AutoModel.from_config(config)
    else:
        source = hub_name if weights == "pretrained" else os.fspath(weights)
        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != kind:
                raise TypeError(f"{source} holds a model of type {config.model_type!r}, but {name} is {kind!r}")
            model = AutoModel.from_pretrained(source, config=config)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no weights of {name} at {source!r}: give a local folder with config.json and model.safetensors "
                f"(downloaded from huggingface.co/{hub_name}), or connect to the internet once ({error})"
            ) from error
        except TypeError as error:
            raise ValueError(f"{error}: choose the encoder that goes with the weights") from error
    body = TokenGrid(model.float(), patch=config.patch_size, skip=1 + getattr(config, "num_register_tokens", 0))
    fixed: dict[str, Any] = {"mean": COLOR_MEAN, "std": COLOR_STD, "stride": config.patch_size}
    return Encoder(body, name=name, channels=config.hidden_size, **fixed, **options)


def _timm(
    name: str, weights: str | os.PathLike[str] | None, model_options: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises RuntimeError on import
        raise ImportError(
            f"the encoder {name!r} needs timm, which does not import: {error}; pip install 'weakseg-bundles[timm]'"
        ) from error
    pretrained = weights == "pretrained"
    model = timm.create_model(name.removeprefix("timm/"), pretrained=pretrained, num_classes=0, **model_options)
    if weights is not None and not pretrained:
        load_body(model, weights)
    stride = int(model.feature_info[-1]["reduction"])
    body = TokenGrid(model, patch=stride, skip=getattr(model, "num_prefix_tokens", 0))
    full_name = f"{name} {json.dumps(model_options, sort_keys=True)}" if model_options else name
    normalization = {key: model.pretrained_cfg[key] for key in ("mean", "std")}
    return Encoder(body, name=full_name, channels=model.num_features, stride=stride, **normalization, **options)
