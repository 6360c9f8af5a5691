"""From a 2D classifier with class maps to the maps of a volume, in few large batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from .checkpoint import unwrapped


class SliceMapInferer(Inferer):
    """Class maps and slice probabilities of a volume from a network with `explain(image) -> (maps, logits)`.

    Slices run along the last axis, many at once. With an organ channel, slices without organ are not computed and
    the others are cropped to the organ's bounding box (nothing outside can be evidence).

    Args:
        batch_size: slices per forward.
        organ_channel: the last input channel is the organ mask.
        divisor: H and W are padded to a multiple of it.
        margin: pixels kept around the organ's bounding box.
        flip: average over the image and its left-right mirror (twice the cost).
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        organ_channel: bool = True,
        divisor: int = 4,
        margin: int = 8,
        flip: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.organ_channel = organ_channel
        self.divisor = divisor
        self.margin = margin
        self.flip = flip

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network.

        Args:
            inputs: `[B, C_in, H, W, D]`.
            network: has `num_classes` and `explain`.

        Returns:
            `[B, 2C, H, W, D]`: channels `0…C-1` are the raw class maps (0 where nothing was computed), channels
            `C…2C-1` the slices' class probabilities, constant over a slice (class 0 = certain where there is no
            organ). One tensor, so that every workflow that expects a single output can carry it.
        """
        net = unwrapped(network)
        return torch.stack([self._volume(volume, net) for volume in convert_to_tensor(inputs, track_meta=False)])

    def _volume(self, volume: Tensor, network: Any) -> Tensor:
        slices = volume.permute(3, 0, 1, 2)  # [D, C_in, H, W]
        depth, _, height, width = slices.shape
        classes = int(network.num_classes)
        out = volume.new_zeros((depth, 2 * classes, height, width), dtype=torch.float32)
        out[:, classes] = 1.0
        if self.organ_channel:
            organ = slices[:, -1] > 0.5
            wanted = torch.nonzero(organ.flatten(1).any(1)).flatten()
            if len(wanted) == 0:
                return out.permute(1, 2, 3, 0)
            rows, cols = _extent(organ.any(0).any(1), self.margin), _extent(organ.any(0).any(0), self.margin)
        else:
            wanted = torch.arange(depth, device=volume.device)
            rows, cols = slice(0, height), slice(0, width)
        for chunk in wanted.split(self.batch_size):
            batch = slices[chunk, :, rows, cols]
            maps, logits = self._explain(batch, network)
            out[chunk, :classes, rows, cols] = maps
            out[chunk, classes:] = logits.softmax(1)[:, :, None, None]
        return out.permute(1, 2, 3, 0)

    def _explain(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        maps, logits = self._padded(batch, network)
        if self.flip:  # left-right: the first spatial axis in LPS and RAS orientation
            mirrored_maps, mirrored_logits = self._padded(batch.flip(2), network)
            maps, logits = (maps + mirrored_maps.flip(2)) / 2, (logits + mirrored_logits) / 2
        return maps, logits

    def _padded(self, batch: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        height, width = batch.shape[-2:]
        batch = F.pad(batch, [0, -width % self.divisor, 0, -height % self.divisor])
        maps, logits = network.explain(batch.contiguous(memory_format=torch.channels_last))
        return maps[..., :height, :width].float(), logits.float()


def _extent(present: Tensor, margin: int) -> slice:
    index = torch.nonzero(present).flatten()
    return slice(max(int(index[0]) - margin, 0), int(index[-1]) + 1 + margin)
