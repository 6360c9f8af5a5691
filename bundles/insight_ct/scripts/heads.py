"""Heads to compare INSIGHT with: attention over tiles, with the interface of `networks.InsightHead`.

An instance is a tile: the mean of its features over the cells inside. With `tokens=True` every cell inside is one.
Tiles without a cell inside are left out.

Attention is normalized over the bag, so what a tile gets depends on the others, and a bag without findings has its
most attended tile too. The heatmap here does not: it is the probability of a bag that holds nothing but this instance,
times, for gated attention, `σ` of the raw attention logit. Within a bag that ranks instances by attention among those
of equal evidence. It carries no gradient. Thresholds belong to the head: choose them on validation patients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.pooling import global_avg_pool

from .networks import InsightHead
from .scaling import FeatureScale


class InstanceHead(nn.Module):
    """What the heads here share: instances, maps, the interface; subclasses score bags of embedded instances.

    Args:
        in_channels: channels of the features.
        num_labels: K, labels that may hold together.
        width: length of the embedded instances.
        tokens: every cell is an instance, not every tile.
        standardize: bring the features' channels to one scale, see `scaling.FeatureScale`.
    """

    def __init__(
        self,
        in_channels: int = 1024,
        num_labels: int = 1,
        *,
        width: int = 512,
        tokens: bool = False,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_labels = num_labels
        self.tokens = tokens
        self.scale = FeatureScale(in_channels) if standardize else nn.Identity()
        self.embed = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU())

    def bag(self, instances: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits `[K]` and penalty (scalar) of a bag of embedded instances `[n, width]`, n > 0."""
        raise NotImplementedError

    def evidence(self, instances: Tensor) -> Tensor:
        """Heat `[n, K]` in [0, 1] of embedded instances `[n, width]`, each by itself."""
        raise NotImplementedError

    def instances(self, features: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedded instances `[N, P, width]`, P of a tile, and which of them count, bool `[N, P]`."""
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(f"features must be [N, {self.in_channels}, h, w], got shape {list(features.shape)}")
        features = self.scale(features.to(self.embed[0].weight.dtype))
        cells = torch.ones_like(features[:, :1]) if inside is None else (inside > 0.5).to(features)
        if self.tokens:
            vectors, counts = features.flatten(2).transpose(1, 2), cells.flatten(1) > 0
        else:
            vectors, counts = global_avg_pool(features, cells)[:, None], cells.flatten(1).amax(1, keepdim=True) > 0
        return self.embed(vectors), counts

    @torch.no_grad()
    def _heatmap(self, embedded: Tensor, grid: torch.Size, inside: Tensor | None) -> Tensor:
        """Heatmap `[N, K, h, w]` of embedded instances `[N, P, width]`."""
        heat = self.evidence(embedded.flatten(0, 1)).float().unflatten(0, embedded.shape[:2]).transpose(1, 2)
        heat = heat.unflatten(2, grid) if self.tokens else heat[..., None].expand(-1, -1, *grid)
        return heat.contiguous() if inside is None else heat.masked_fill(inside <= 0.5, 0.0)

    def heatmap(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        """Heatmap `[N, K, h, w]` of features `[N, in_channels, h, w]`; 0 outside. Tiles do not see each other."""
        return self._heatmap(self.instances(features, inside)[0], features.shape[2:], inside)

    def probability(self, instances: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probability `[K]` and penalty of embedded instances `[n, width]`; both 0 for an empty bag."""
        if len(instances) == 0:
            nothing = 0.0 * instances.sum()  # a part of the graph, so that a batch of one such bag has a backward pass
            return nothing.expand(self.num_labels).float(), nothing.float()
        logits, penalty = self.bag(instances, labels)
        return logits.float().sigmoid(), penalty.float()

    def forward(
        self, features: Tensor, inside: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heatmap `[N, K, h, w]`, probability `[K]` and penalty (scalar) of one bag.

        Args:
            features: `[N, in_channels, h, w]`.
            inside: `[N, 1, h, w]`, cells above 0.5 count; None for all.
            labels: `[K]` multi-hot, for the instance loss of CLAM; without them its penalty is 0.
        """
        embedded, counts = self.instances(features, inside)
        probability, penalty = self.probability(embedded[counts], labels)
        return self._heatmap(embedded, features.shape[2:], inside), probability, penalty

    def stream(self) -> InstanceStream:
        """A bag that comes in chunks, see `InstanceStream`."""
        return InstanceStream(self)


class InstanceStream:
    """As `networks.HeatmapStream`, but the embedded instances are kept until the end: `4 · width` bytes each."""

    def __init__(self, head: InstanceHead) -> None:
        self.head = head
        self._instances: list[Tensor] = []

    @torch.no_grad()
    def update(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        """Heatmap `[n, K, h, w]` of the next n tiles."""
        embedded, counts = self.head.instances(features, inside)
        self._instances.append(embedded[counts])
        return self.head._heatmap(embedded, features.shape[2:], inside)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Probability `[K]`, float32 on the CPU, of all tiles so far."""
        if not self._instances:
            raise RuntimeError("nothing to pool: call update with at least one tile first")
        return self.head.probability(torch.cat(self._instances))[0].cpu()


class ABMIL(InstanceHead):
    """Gated attention (Ilse et al., "Attention-based deep multiple instance learning", arXiv:1802.04712, Eq. 9).

    MONAI's `MILModel` has the ungated form and demands a backbone. The last layer of the attention has no bias: the
    softmax cancels it, but the heatmap would not.

    Args:
        hidden: length of the attention's hidden layer.
        branches: attentions: 1, shared by the labels, or one a label.
        in_channels, num_labels, options: see `InstanceHead`.
    """

    def __init__(
        self, in_channels: int = 1024, num_labels: int = 1, *, hidden: int = 256, branches: int = 1, **options: Any
    ) -> None:
        super().__init__(in_channels, num_labels, **options)
        width = self.embed[0].out_features
        self.attend = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(width, hidden), nn.Sigmoid())
        self.attention = nn.Linear(hidden, branches, bias=False)
        self.classify = nn.Linear(width, num_labels)

    def attention_logits(self, instances: Tensor) -> Tensor:
        """Raw attention `[n, branches]` of embedded instances `[n, width]`."""
        return self.attention(self.attend(instances) * self.gate(instances))

    def bag(self, instances: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        attention = self.attention_logits(instances)
        pooled = attention.float().softmax(dim=0).to(instances).T @ instances  # [branches, width]
        logits = (self.classify.weight * pooled).sum(dim=-1) + self.classify.bias
        return logits, self.penalty(instances, attention, labels)

    def penalty(self, instances: Tensor, attention: Tensor, labels: Tensor | None) -> Tensor:
        """What the head adds to the loss: nothing here."""
        return instances.new_zeros(())

    def evidence(self, instances: Tensor) -> Tensor:
        return self.attention_logits(instances).sigmoid() * self.classify(instances).sigmoid()


class CLAM_SB(ABMIL):
    """ABMIL with instance clustering (Lu et al., "Data-efficient and weakly supervised computational pathology on
    whole-slide images", Nature Biomedical Engineering 5, 2021).

    A classifier a label learns from the k most and the k least attended instances: the most attended are positive
    when the bag is, all others negative. Two things differ from the authors' code: labels are yes or no, so there is
    one classifier a label and none for its absence; and the loss is cross-entropy, not a smooth top-1 SVM.

    Args:
        k: instances taken at each end, at most half of the bag.
        in_channels, num_labels, options: see `ABMIL`.
    """

    def __init__(self, in_channels: int = 1024, num_labels: int = 1, *, k: int = 8, **options: Any) -> None:
        super().__init__(in_channels, num_labels, **options)
        self.k = k
        self.classify_instance = nn.Linear(self.embed[0].out_features, num_labels)

    def penalty(self, instances: Tensor, attention: Tensor, labels: Tensor | None) -> Tensor:
        k = min(self.k, len(instances) // 2)
        if labels is None or k == 0:
            return instances.new_zeros(())
        attention = attention.expand(-1, self.num_labels)
        most, least = attention.topk(k, dim=0).indices, attention.topk(k, dim=0, largest=False).indices
        logits = self.classify_instance(instances).gather(0, torch.cat([most, least])).float()
        targets = torch.cat([labels.to(logits).expand(k, -1), torch.zeros_like(logits[k:])])
        return F.binary_cross_entropy_with_logits(logits, targets)


class CLAM_MB(CLAM_SB):
    """CLAM with one attention a label.

    Args:
        in_channels, num_labels, options: see `CLAM_SB`.
    """

    def __init__(self, in_channels: int = 1024, num_labels: int = 1, **options: Any) -> None:
        super().__init__(in_channels, num_labels, branches=num_labels, **options)


class _Attention(nn.Module):
    """`x + attention(norm(x))`, of all instances or, where no others are needed, of the first `queries`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        normed = self.norm(x)
        return x[:, :queries] + self.attention(normed[:, :queries], normed, normed, need_weights=False)[0]


class TransMIL(InstanceHead):
    """A transformer over the bag (Shao et al., "TransMIL", arXiv:2106.00908).

    Two attention layers around a position encoding by depthwise convolutions (PPEG) of the instances laid out on a
    square. Attention is exact where the authors approximate it (Nyström): better for small bags, quadratic in time
    for large ones. It is not invariant to the order of the tiles.

    Args:
        heads: attention heads.
        in_channels, num_labels, options: see `InstanceHead`.
    """

    def __init__(self, in_channels: int = 1024, num_labels: int = 1, *, heads: int = 8, **options: Any) -> None:
        super().__init__(in_channels, num_labels, **options)
        width = self.embed[0].out_features
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.first, self.second = _Attention(width, heads), _Attention(width, heads)
        self.position = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, num_labels)

    def _logits(self, bags: Tensor) -> Tensor:
        """Logits `[B, K]` of bags of equal size `[B, n, width]`."""
        size = bags.shape[1]
        side = math.isqrt(size - 1) + 1
        bags = torch.cat([bags, bags[:, : side * side - size]], dim=1)  # the square is filled with the first ones
        x = self.first(torch.cat([self.token.expand(len(bags), -1, -1).to(bags), bags], dim=1))
        square = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        square = square + sum(convolution(square) for convolution in self.position)
        x = self.second(torch.cat([x[:, :1], square.flatten(2).transpose(1, 2)], dim=1), queries=1)  # the class token
        return self.classify(self.norm(x[:, 0]))

    def bag(self, instances: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._logits(instances[None])[0], instances.new_zeros(())

    def evidence(self, instances: Tensor) -> Tensor:
        return self._logits(instances[:, None]).sigmoid()


INSTANCE_HEADS = {"abmil": ABMIL, "clam_sb": CLAM_SB, "clam_mb": CLAM_MB, "transmil": TransMIL}


def make_head(
    name: str,
    *,
    in_channels: int,
    num_labels: int,
    tokens: bool = False,
    standardize: bool = False,
    **insight_options: Any,
) -> InsightHead | InstanceHead:
    """The head of a name, so that one key of a config changes it.

    Args:
        name: `insight`, `abmil`, `clam_sb`, `clam_mb` or `transmil`.
        in_channels: channels of the features.
        num_labels: K.
        tokens: of the others than `insight`: every cell is an instance, not every tile.
        standardize: see `InsightHead`.
        insight_options: of `InsightHead` (`width`, `fusion`, `norm`, `pooling`, `alpha`, `context`,
            `checkpoint_chunk` …). The other heads have the sizes of their papers and ignore them.

    Raises:
        ValueError: an unknown name, or as `InsightHead`.
    """
    if name == "insight":
        return InsightHead(in_channels, num_labels, standardize=standardize, **insight_options)
    if name not in INSTANCE_HEADS:
        raise ValueError(f"unknown head {name!r}: use one of {['insight', *INSTANCE_HEADS]}")
    return INSTANCE_HEADS[name](in_channels, num_labels, tokens=tokens, standardize=standardize)
