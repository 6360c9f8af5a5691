"""From a volume to its maps: encoded slice by slice, or looked up in a feature store, then aggregated in chunks."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from common.checkpoint import unwrapped
from common.features import EntryLocked, FeatureStore, bag_of, encode, volume_entry
from common.files import NotWritten

logger = logging.getLogger(__name__)


class InsightInferer(Inferer):
    """Heatmaps and probabilities of volumes from a network `scripts.networks.Insight`.

    Args:
        batch_size: slices per forward of the encoder.
        chunk: slices per forward of the head; memory grows with it and not with the volume.
        store_dir: folder of a feature store: features found there are not computed, others are added. None: none.
        by_slice: every slice has the probability of its own cells, as a network gives it that learned from single
            slices; otherwise all have that of the volume, which a small lesion hardly moves in a large lung.

    Raises:
        ValueError: `chunk` is below 1.
    """

    def __init__(
        self, *, batch_size: int = 16, chunk: int = 64, store_dir: str | None = None, by_slice: bool = False
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.batch_size = batch_size
        self.chunk = 1 if by_slice else chunk
        self.by_slice = by_slice
        self.store = FeatureStore(store_dir) if store_dir else None

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network.

        Args:
            inputs: `[B, C + 1, H, W, D]`, the last channel the organ.
            network: has `encoder`, `head` and `num_labels`.

        Returns:
            `[B, 2 (K + 1), H, W, D]`: the raw maps of class 0 (0 everywhere) and of the K labels (the heatmap enlarged
            bilinearly; 0 in slices without organ), then class probabilities, those of the volume in every slice or,
            with `by_slice`, each slice's own (class 0 for certain without organ).
        """
        net = unwrapped(network)
        volumes = convert_to_tensor(inputs, track_meta=False)
        return torch.stack([self._volume(volume, net) for volume in volumes])

    def _volume(self, volume: Tensor, network: Any) -> Tensor:
        labels = int(network.num_labels)
        out = volume.new_zeros((2 * (labels + 1), *volume.shape[1:]), dtype=torch.float32)
        slices, organ, indices = bag_of(volume)
        if not indices:
            out[labels + 1] = 1.0
            return out
        encoder = network.encoder
        features = self._features(volume, slices, encoder)
        inside = encoder.coverage(organ)
        stream = network.head.stream()
        for first in range(0, len(indices), self.chunk):
            part = slice(first, first + self.chunk)
            heatmap = stream.update(features[part].to(volume.device), inside[part])
            enlarged = enlarge(heatmap, encoder, volume.shape[1:3])
            out[1 : labels + 1, :, :, indices[part]] = enlarged.permute(1, 2, 3, 0)
            if self.by_slice:
                out[labels + 1 :, :, :, indices[part]] = _of_classes(stream.compute()).to(volume.device)
                stream = network.head.stream()
        if self.by_slice:
            outside = sorted(set(range(volume.shape[3])) - set(indices))
            out[labels + 1, :, :, outside] = 1.0
        else:
            out[labels + 1 :] = _of_classes(stream.compute()).to(volume.device)
        return out

    def _features(self, volume: Tensor, slices: Tensor, encoder: Any) -> Any:
        if self.store is not None:
            try:
                return volume_entry(volume.cpu(), encoder, self.store, batch_size=self.batch_size)
            except (EntryLocked, NotWritten) as error:  # another process is at it, or the disk is full: do without
                logger.warning("%s; these features are not stored", error)
        return encode(encoder, slices, self.batch_size)


def _of_classes(probability: Tensor) -> Tensor:
    """`[K + 1, 1, 1, 1]`: of class 0 what the most probable of the K labels leaves, then of the labels."""
    return torch.cat([1 - probability.amax(0, keepdim=True), probability])[:, None, None, None]


def enlarge(heatmap: Tensor, encoder: Any, shape: Any) -> Tensor:
    """`[N, K, H, W]` of `[N, K, h, w]`, bilinear, cell by cell where the encoder saw it."""
    height, width = shape
    if encoder.vector:  # one cell for all
        return heatmap.expand(-1, -1, height, width)
    # The last cells may reach beyond the image.
    resized = encoder.resized(height, width)
    sides = zip(heatmap.shape[2:], (height, width), resized, strict=True)
    shape = [round(cells * encoder.stride * side / seen) for cells, side, seen in sides]
    enlarged = F.interpolate(heatmap, size=shape, mode="bilinear", align_corners=False)
    return enlarged[..., :height, :width]
