"""A bag as one map, Otsu's threshold over it, and bags that come in chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.masks import otsu
from common.pooling import RunningPool

if TYPE_CHECKING:
    from .networks import InsightHead


@torch.jit.unused
def above_otsu(heatmap: Tensor, inside: Tensor | None = None) -> Tensor:
    """`H · 1(H > T)`, T Otsu's threshold of each label over the cells inside of all tiles (INSIGHT, Eq. 9).

    Where these are all alike there is no threshold, and nothing is taken away: the bag must keep its gradient.

    Args:
        heatmap: `[N, K, h, w]`.
        inside: `[N, 1, h, w]`, cells above 0.5 count; None for all.
    """
    values = heatmap.detach().float().cpu().numpy()
    mask = None if inside is None else inside.cpu().numpy()[:, 0] > 0.5
    thresholds = [otsu(values[:, k], mask=mask) for k in range(values.shape[1])]
    cut = heatmap.new_tensor([t if math.isfinite(t) else -math.inf for t in thresholds])
    return heatmap * (heatmap > cut[:, None, None])


def as_one_bag(maps: Tensor) -> Tensor:
    """`[1, K, N, h, w]` of `[N, K, h, w]`: the tiles become one more axis to pool over."""
    return maps.transpose(0, 1).unsqueeze(0)


class HeatmapStream:
    """Inference on a bag of any size in flat memory: heatmaps chunk by chunk, then the probability of the whole.

    With Otsu's threshold the heatmaps, 4 bytes a cell, are kept until the end.

    Args:
        head: an `InsightHead`; its mode (train, eval) is left alone and makes no difference.

    Example:
        >>> stream = InsightHead(16).stream()
        >>> [list(stream.update(features).shape) for features in torch.rand(2, 5, 16, 4, 4)]
        [[5, 1, 4, 4], [5, 1, 4, 4]]
        >>> stream.compute().shape
        torch.Size([1])
    """

    def __init__(self, head: InsightHead) -> None:
        self.head = head
        self._pool = RunningPool(head.pooling, alpha=head.alpha)
        self._cells: list[tuple[Tensor, Tensor | None]] = []  # with Otsu's threshold, which is that of the whole bag

    @torch.no_grad()
    def update(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        """Heatmap `[n, K, h, w]` of the next n tiles, see `InsightHead.heatmap`."""
        heatmap = self.head.heatmap(features, inside)
        if self.head.otsu:
            self._cells.append((heatmap.cpu(), None if inside is None else inside.cpu()))
        else:
            self._pool.update(as_one_bag(heatmap), None if inside is None else as_one_bag(inside))
        return heatmap

    def compute(self) -> Tensor:
        """Probability `[K]`, float32 on the CPU, of all tiles so far.

        Raises:
            RuntimeError: there was no tile.
        """
        if not self._cells:
            return self._pool.compute()[0]
        heatmaps, masks = zip(*self._cells, strict=True)
        inside = None if masks[0] is None else torch.cat(masks)
        pool = RunningPool(self.head.pooling, alpha=self.head.alpha)
        pool.update(as_one_bag(above_otsu(torch.cat(heatmaps), inside)), None if inside is None else as_one_bag(inside))
        return pool.compute()[0]
