"""From a 2D classifier with class maps to the maps of a volume, in few large batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from ..checkpoint import unwrapped
from ..images import filled_slices, window_pads


class SliceMapInferer(Inferer):
    """Class maps and slice probabilities of a volume from a network with `explain(image) -> (maps, logits)`.

    Slices run along the last axis, many at once. Slices of one value are not computed, nor, with an organ channel,
    those without organ; the others are cropped to the organ's bounding box (nothing outside can be evidence).

    Args:
        batch_size: slices per forward.
        organ_channel: the last input channel is the organ mask.
        divisor: H and W are padded to a multiple of it.
        margin: pixels kept around the organ's bounding box.
        window: `[h, w]` of the part around the organ that is seen, as in `common.data.SliceDataset`, in place of
            the bounding box: for networks whose global average depends on how much air there is.
        flip: average over the image and its left-right mirror (twice the cost). A network that explains one class for
            each slice gives, by `network.decided(views)`, one whose maps are of the same class for both.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        organ_channel: bool = True,
        divisor: int = 4,
        margin: int = 8,
        window: Sequence[int] | None = None,
        flip: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.organ_channel = organ_channel
        self.divisor = divisor
        self.margin = margin
        self.window = window
        self.flip = flip

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network.

        Args:
            inputs: `[B, C_in, H, W, D]`.
            network: has `num_classes`, `explain`, and `num_maps` where that is not `num_classes`.

        Returns:
            `[B, N + C, H, W, D]`: channels `0…N-1` are the raw maps (0 where nothing was computed), the last C the
            slices' class probabilities, constant over a slice (class 0 = certain where nothing was computed). One
            tensor, so that every workflow that expects a single output can carry it.
        """
        net = unwrapped(network)
        volumes = [self._volume(volume, net) for volume in convert_to_tensor(inputs, track_meta=False)]
        return torch.stack(volumes) if len(volumes) > 1 else volumes[0][None]  # a stack of one is a copy

    def _volume(self, volume: Tensor, network: Any) -> Tensor:
        slices = volume.permute(3, 0, 1, 2)  # [D, C_in, H, W]
        depth, _, height, width = slices.shape
        classes = int(network.num_classes)
        maps = int(getattr(network, "num_maps", classes))
        out = volume.new_zeros((depth, maps + classes, height, width), dtype=torch.float32)
        out[:, maps] = 1.0
        seen = torch.ones_like(slices[:, -1], dtype=torch.bool)
        if self.organ_channel:
            seen = slices[:, -1] > 0.5
        filled = torch.nonzero(filled_slices(slices, organ_channel=self.organ_channel)).flatten()
        if len(filled) == 0:
            return out.permute(1, 2, 3, 0)
        pads = self.pads(seen.any(0))
        back = [-pad for pad in pads]
        for chunk in filled.split(self.batch_size):
            explained, logits = self._explain(F.pad(slices[chunk], pads), network)
            out[chunk, :maps] = F.pad(explained, back)
            out[chunk, maps:] = logits.softmax(1)[:, :, None, None]
        return out.permute(1, 2, 3, 0)

    def pads(self, organ: Tensor) -> list[int]:
        """What `F.pad` adds to the image (or, negative, takes away) so that the organ and what is around it is seen.

        Args:
            organ: `[H, W]` bool, of all slices together; where it is nowhere, the image is seen as it is.
        """
        if self.window is not None:
            return window_pads(organ, self.window)
        if not bool(organ.any()):
            return [0, 0, 0, 0]
        return [*_extent(organ.any(0), self.margin), *_extent(organ.any(1), self.margin)]

    def _explain(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        if not self.flip:
            return self._forward(batch, network)
        mirrored = batch.flip(2)  # left-right: the first spatial axis in LPS and RAS orientation
        if hasattr(network, "decided"):  # else the maps of a slice's two views may be of two classes
            network = network.decided([self._padded(batch), self._padded(mirrored)])
        maps, logits = self._forward(batch, network)
        mirrored_maps, mirrored_logits = self._forward(mirrored, network)
        return (maps + mirrored_maps.flip(2)) / 2, (logits + mirrored_logits) / 2

    def _forward(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        height, width = batch.shape[-2:]
        maps, logits = network.explain(self._padded(batch))
        return maps[..., :height, :width].float(), logits.float()

    def _padded(self, batch: Tensor) -> Tensor:
        height, width = batch.shape[-2:]
        padded = F.pad(batch, [0, -width % self.divisor, 0, -height % self.divisor])
        return padded.contiguous(memory_format=torch.channels_last)


def _extent(present: Tensor, margin: int) -> tuple[int, int]:
    """Pads (negative) that leave the positions where `present`, and `margin` more as far as there are any."""
    index = torch.nonzero(present).flatten()
    return -max(int(index[0]) - margin, 0), -max(len(present) - int(index[-1]) - 1 - margin, 0)
