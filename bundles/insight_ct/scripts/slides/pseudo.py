"""Second stage on slides: an aggregator learns cell by cell from the masks that the first one's heat suggests.

The supervision stays the label of the slide: it says which slides may hold a pseudo-mask at all. `scripts.pseudo` has
the loss, and the same for volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.features import Entry, FeatureStore

from ..bags import BagDataset
from .output import smooth_cells


@torch.no_grad()
def pseudo_masks(
    entry: Entry, labels: Sequence[int], *, head: Any, threshold: Sequence[float], smooth_um: float = 0.0
) -> Tensor:
    """Cells of a slide's tiles whose heat, smoothed within the tile, lies above the threshold of a label that it has.

    Args:
        entry: features of the slide.
        labels: K, 0 or 1; a label that the slide lacks has an empty mask.
        head: of the first stage.
        threshold: K, of its heat.
        smooth_um: sigma of the Gaussian in micrometers.

    Returns:
        `[N, K, h, w]` float16, 0 or 1.
    """
    masks = torch.zeros((len(entry), len(labels), *entry.shape[2:]), dtype=torch.float16)
    if not any(labels):
        return masks
    present = np.array(labels, dtype=bool)[:, None, None]
    limits = np.broadcast_to(threshold, len(labels)).reshape(-1, 1, 1)
    sigma = smooth_um / float(entry.about["cell_um"])
    parts = zip(entry.chunks(), entry.inside.split(entry.chunk), masks.split(entry.chunk), strict=True)
    for features, inside, found in parts:
        heat = head.heatmap(features, inside).numpy()
        for one, tissue, mask in zip(heat, inside[:, 0].numpy() > 0.5, found, strict=True):
            smoothed = smooth_cells(one, tissue, sigma, np.zeros_like(one)) if sigma > 0 else one
            mask.copy_(torch.from_numpy((smoothed > limits) & present & tissue))
    return masks


class PseudoMaskDataset(BagDataset):
    """Bags of slides with pseudo-masks, for `scripts.pseudo.MaskInferer` and `PseudoMaskLoss`.

    Args:
        bags, store, options: see `BagDataset`.
        teacher: network of the first stage, `scripts.networks.Insight` with its weights; the features are those of its
            encoder.
        threshold, smooth_um: see `pseudo_masks`.
        progress: show a progress bar.
    """

    def __init__(
        self,
        bags: Sequence[dict],
        store: FeatureStore,
        *,
        teacher: Any,
        threshold: Sequence[float],
        smooth_um: float = 0.0,
        progress: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(bags, store, **options)
        how: dict[str, Any] = {"head": teacher.eval().head, "threshold": threshold, "smooth_um": smooth_um}
        pairs = zip(self.entries, self.data, strict=True)
        bar = tqdm(pairs, total=len(self.data), desc="masks", unit="slide", disable=not progress)
        self.masks = [pseudo_masks(entry, bag["labels"], **how) for entry, bag in bar]

    def _parts(self, index: int, window: slice) -> list[Tensor | None]:
        return [*super()._parts(index, window), self.masks[index][window].float()]
