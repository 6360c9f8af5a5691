"""INSIGHT: an aggregator of frozen features whose heatmap is a part of it, not an explanation afterwards.

Source: Zhang et al., "INSIGHT: Explainable weakly-supervised medical image analysis", arXiv:2412.02012, and its code.

A bag is one case: N slices of a volume or N tiles of a slide. Every head, here and in `heads`, has `in_channels`,
`num_labels` and

- `head(features [N, C, h, w], inside [N, 1, h, w] or None, labels [K] or None)` -> heatmap `[N, K, h, w]` and
  probability `[K]`, both in [0, 1], and a penalty, a scalar for the loss. Labels serve the penalty of some heads.
- `head.heatmap(features, inside)` -> `[N, K, h, w]`, the same for a tile whatever other tiles are in the call.
- `head.stream()` -> an object whose `update(features, inside)` gives the heatmap of one chunk of the bag, and whose
  `compute()` gives the probability of all chunks so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.pooling import GlobalPool, RunningPool

from .scaling import FeatureScale
from .streams import HeatmapStream, above_otsu, as_one_bag

FINGERPRINT_BYTES = 8


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of `[B, C, H, W]` over the channels of each position, so that any grid will do."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def _norm(channels: int, norm: str, grid: Sequence[int] | None) -> nn.Module:
    if norm == "channel":
        return ChannelNorm(channels)
    return nn.LayerNorm([channels, *grid]) if grid else nn.Identity()


def _branch(width: int, num_labels: int, kernel: int, norm: str, grid: Sequence[int] | None) -> nn.Sequential:
    """Three convolutions, each with GELU and norm, and a label layer: `width`, `width`, `width / 2`, `width / 2`."""
    widths = (width, width, width // 2, width // 2)
    options: dict[str, Any] = {"kernel_size": kernel, "padding": kernel // 2}
    if kernel > 1:
        options["padding_mode"] = "replicate"
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, **options), nn.GELU(), _norm(after, norm, grid)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], num_labels, **options))


class InsightHead(nn.Module):
    """Detection gated by context, pooled over the bag.

    A 1×1 convolution adapts the features. The detection branch sees single cells, the context branch 9 × 9 of them
    (3×3 convolutions, edges replicated), each one slice or tile at a time. Their logits z and c make the heatmap:

    - `gate` (the authors' code): `σ(z) · (1 − σ(c))`; context can take a cell to 0.
    - `eq4` (the paper, Eq. 4): `σ((1 − σ(c)) · z)`; a cell that context suppresses fully is 0.5, not 0, and so is the
      least probability of a bag without evidence against the label: choose thresholds accordingly.
    - without context: `σ(z)`.

    The probability is the pool of the heatmap over all cells inside, at least in float32. The penalty is the squared
    norm of `z` over the cells inside (spectral decoupling, Eq. 7).

    669,954 parameters with 1024 channels, one label and spatial norms on 14 × 14, 419,074 without norms, as in the
    authors' code.

    Args:
        in_channels: channels of the features.
        num_labels: K.
        width: channels after adaptation.
        fusion: `gate` (the code) or `eq4` (the paper).
        norm: layer norms over the `channel`s of each cell (any grid), `spatial` over channels and grid (the authors'),
            or `none`.
        grid: `(h, w)`, for spatial norms only.
        pooling: `smooth_max`, `max` or `avg`, see `common.pooling`.
        alpha: sharpness of `smooth_max`.
        context: whether to gate at all; False is an ablation.
        squared_norm: of Eq. 7: `mean` of the squares (the code), or their `sum` (the paper), which grows with the bag.
        otsu: cells of a label up to Otsu's threshold of the bag count as 0 in the pool, in training and inference (the
            code; Eq. 9). A bag of equal cells is pooled as it is. `heatmap` stays whole.
        checkpoint_chunk: train with the activations of that many tiles of a bag in memory, recomputing them in the
            backward pass; those of a bag that has no more tiles are kept, as None keeps all.
        standardize: bring the features' channels to one scale, see `FeatureScale`, which the training fits.

    Raises:
        ValueError: an unknown option, or spatial norms without a grid.
    """

    def __init__(
        self,
        in_channels: int = 1024,
        num_labels: int = 1,
        *,
        width: int = 128,
        fusion: Literal["gate", "eq4"] = "gate",
        norm: Literal["channel", "spatial", "none"] = "channel",
        grid: Sequence[int] | None = None,
        pooling: Literal["smooth_max", "max", "avg"] = "smooth_max",
        alpha: float = 8.0,
        context: bool = True,
        squared_norm: Literal["mean", "sum"] = "mean",
        otsu: bool = False,
        checkpoint_chunk: int | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if squared_norm not in ("mean", "sum"):
            raise ValueError(f"squared_norm must be 'mean' or 'sum', got {squared_norm!r}")
        if fusion not in ("gate", "eq4"):
            raise ValueError(f"fusion must be 'gate' or 'eq4', got {fusion!r}")
        if norm not in ("channel", "spatial", "none"):
            raise ValueError(f"norm must be 'channel', 'spatial' or 'none', got {norm!r}")
        if (norm == "spatial") != (grid is not None):
            raise ValueError(f"grid=(h, w) goes with norm='spatial' and only with it, got norm={norm!r}, grid={grid}")
        if checkpoint_chunk is not None and checkpoint_chunk < 1:
            raise ValueError(f"checkpoint_chunk must be at least 1 or None, got {checkpoint_chunk}")
        RunningPool(pooling, alpha=alpha)  # every choice must be one that can stream
        self.in_channels = in_channels
        self.num_labels = num_labels
        self.fusion: str = fusion
        self.pooling: str = pooling
        self.alpha = alpha
        self.squared_norm: str = squared_norm
        self.otsu = otsu
        self.checkpoint_chunk = checkpoint_chunk
        self.pool = GlobalPool(pooling, **({"alpha": alpha} if pooling == "smooth_max" else {}))
        self.scale = FeatureScale(in_channels) if standardize else nn.Identity()
        self.adapt = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.GELU(), _norm(width, norm, grid))
        self.detection = _branch(width, num_labels, 1, norm, grid)
        self.context = _branch(width, num_labels, 3, norm, grid) if context else None

    def _logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Detection and context logits, each `[N, K, h, w]` in at least float32; those of no context are -inf."""
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(f"features must be [N, {self.in_channels}, h, w], got shape {list(features.shape)}")
        adapted = self.adapt(self.scale(features.to(self.adapt[0].weight.dtype)))
        detection = self.detection(adapted)
        context = torch.full_like(detection, -float("inf"))
        if self.context is not None:
            context = self.context(adapted)
        if detection.dtype != torch.float64:
            detection, context = detection.float(), context.float()
        return detection, context

    @torch.jit.unused
    def _checkpointed_logits(self, features: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        if len(features) <= chunk:
            return self._logits(features)
        parts = [
            checkpoint(self._logits, part, use_reentrant=False, preserve_rng_state=False)
            for part in features.split(chunk)
        ]
        detection, context = zip(*parts, strict=True)
        return torch.cat(detection), torch.cat(context)

    def _fuse(self, detection: Tensor, context: Tensor, inside: Tensor | None) -> Tensor:
        if self.fusion == "gate":
            heatmap = detection.sigmoid() * (-context).sigmoid()  # 1 − σ(c) = σ(−c), without cancellation
        else:
            heatmap = ((-context).sigmoid() * detection).sigmoid()
        return heatmap if inside is None else heatmap.masked_fill(inside <= 0.5, 0.0)

    @torch.jit.export
    def heatmap(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        """Heatmap `[N, K, h, w]` of features `[N, in_channels, h, w]`; 0 outside. Tiles do not see each other."""
        detection, context = self._logits(features)
        return self._fuse(detection, context, inside)

    def forward(
        self, features: Tensor, inside: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heatmap `[N, K, h, w]`, probability `[K]` and penalty (scalar) of one bag.

        Args:
            features: `[N, in_channels, h, w]`.
            inside: `[N, 1, h, w]`, cells above 0.5 belong to the organ or tissue; None for all. A bag without any has
                probability 0 and penalty 0.
            labels: unused.

        Raises:
            ValueError: the shapes do not go together, or the bag has no tile.
        """
        chunk = self.checkpoint_chunk
        if chunk is not None and self.training and not torch.jit.is_scripting():
            detection, context = self._checkpointed_logits(features, chunk)
        else:
            detection, context = self._logits(features)
        heatmap = self._fuse(detection, context, inside)
        mask: Tensor | None = None
        cells = torch.tensor(detection.numel())
        penalty = detection.square().sum()
        if inside is not None:
            mask = as_one_bag(inside)
            outside = inside <= 0.5
            cells = (~outside).sum() * self.num_labels
            penalty = detection.masked_fill(outside, 0.0).square().sum()
        if self.squared_norm == "mean":
            penalty = penalty / cells.clamp(min=1)
        pooled = heatmap
        if self.otsu and not torch.jit.is_scripting():
            pooled = above_otsu(heatmap, inside)
        return heatmap, self.pool(as_one_bag(pooled), mask)[0], penalty

    def stream(self) -> HeatmapStream:
        """A bag that comes in chunks, see `HeatmapStream`."""
        return HeatmapStream(self)


class Insight(nn.Module):
    """From slices to heatmaps: a frozen encoder and a head.

    The encoder stays in evaluation mode, and the state dict holds the head only, with a fingerprint of the encoder:
    weights that were trained on the features of another encoder are refused. TorchScript compiles it with an
    `InsightHead` when it compiles the encoder (EfficientNet-Lite, but no encoder of transformers or timm); the
    compiled module holds the encoder's weights too.

    Args:
        encoder: with `channels`, `fingerprint` (hexadecimal) and `forward(image)` -> features, see `common.encoders`.
        head: `InsightHead` or one of `heads`.

    Raises:
        ValueError: the head expects another number of channels than the encoder gives.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        if encoder.channels != head.in_channels:
            raise ValueError(
                f"the encoder gives {encoder.channels} channels and the head expects {head.in_channels}: "
                f"set the head's in_channels to {encoder.channels}"
            )
        self.num_labels = head.num_labels
        self.encoder = encoder.requires_grad_(False)
        self.head = head
        mark = list(bytes.fromhex(str(encoder.fingerprint))[:FINGERPRINT_BYTES])
        self.register_buffer("encoder_fingerprint", torch.tensor(mark, dtype=torch.uint8))
        self.train(self.training)

    __jit_unused_properties__ = ("explained_layer",)

    @property
    def explained_layer(self) -> str:
        """For Grad-CAM beside the own map: the deepest stage that gives features, or what makes one image of them."""
        kept = getattr(self.encoder.body, "kept", None)
        if kept is not None and self.encoder.modalities == 1:  # EfficientNet-Lite, whose stages 3 and 4 are one level
            deepest = max(level for level, is_kept in enumerate(kept) if is_kept)
            return f"encoder.body.encoder._blocks.{(0, 1, 2, 4)[deepest]}"
        return "head.adapt" if hasattr(self.head, "adapt") else "encoder.body"

    def forward(self, image: Tensor) -> Tensor:
        """Heatmaps `[N, K, h, w]` of slices or tiles `[N, C_in, H, W]` in [0, 1], on the encoder's grid."""
        return self.head.heatmap(self.encoder(image))

    def train(self, mode: bool = True) -> Insight:
        super().train(mode)
        self.encoder.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights without the encoder's."""
        state = super().state_dict(*args, **kwargs)
        frozen = kwargs.get("prefix", "") + "encoder."
        for key in [key for key in state if key.startswith(frozen)]:
            del state[key]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(prefix + "encoder_fingerprint")
        own = self.encoder_fingerprint
        if found is not None and not torch.equal(found.to(own.device), own):
            raise ValueError(
                f"these weights were trained on features of another encoder (fingerprint {_hex(found)}…, this one is "
                f"{_hex(own)}…): build the network with the encoder, input size and options of the training"
            )
        # The encoder's own tensors stand in for the missing ones, so that strict loading finds every key.
        for key, value in self.encoder.state_dict().items():
            state_dict[f"{prefix}encoder.{key}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _hex(fingerprint: Tensor) -> str:
    return bytes(fingerprint.tolist()).hex()
