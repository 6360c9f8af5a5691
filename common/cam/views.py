"""What a network gets to see of a slice of a preprocessed volume, as in inference, and the way of a map back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from monai.transforms.utils import generate_spatial_bounding_box
from torch import Tensor

from ..images import window_pads


@dataclass(frozen=True)
class View:
    """One look of a network at a slice.

    Attributes:
        to_network: of slices `[B, C, H, W]` on the volume's grid, or of their organ, what the network gets,
            `[B, C, h, w]`; differentiable.
        to_slice: of a map `[h, w]` the same on the volume's grid, `[H, W]`.
    """

    to_network: Callable[[Tensor], Tensor]
    to_slice: Callable[[Tensor], Tensor]


def whole_slices(volume: Tensor, z: int) -> list[View]:
    """The view of a network that sees slices as they are.

    Args:
        volume: `[C, H, W, D]`.
        z: place of the slice along the last axis.

    Example:
        >>> import torch
        >>> (view,) = whole_slices(torch.zeros(2, 8, 8, 3), 1)
        >>> view.to_network(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 1, 8, 8])
    """
    return [View(lambda image: image, lambda heat: heat)]


class PaddedSlices:
    """The views of a network that gets slices from `common.engines.SliceMapInferer`, whose options these are.

    Args:
        window: `[h, w]` around the organ of the volume; None: the organ's bounding box.
        divisor: H and W are padded to a multiple of it.
        margin: pixels around the bounding box.
        flip: the mirrored slice is a second view.
    """

    def __init__(
        self, *, window: Sequence[int] | None = None, divisor: int = 4, margin: int = 8, flip: bool = False
    ) -> None:
        self.window = window
        self.divisor = divisor
        self.margin = margin
        self.flip = flip

    def __call__(self, volume: Tensor, z: int) -> list[View]:
        """Views of the slice at `z` of a volume `[C + 1, H, W, D]`, whose last channel is the organ."""
        pads = self._pads((volume[-1] > 0.5).any(dim=-1))
        height, width = (n + pads[k] + pads[k + 1] for n, k in zip(volume.shape[1:3], (2, 0), strict=True))
        more = [0, -width % self.divisor, 0, -height % self.divisor]

        def view(mirror: Sequence[int]) -> View:
            return View(
                lambda image: F.pad(F.pad(image, pads).flip([axis - 2 for axis in mirror]), more),
                lambda heat: F.pad(heat[:height, :width].flip(list(mirror)), [-pad for pad in pads]),
            )

        return [view(()), view((0,))] if self.flip else [view(())]

    def _pads(self, organ: Tensor) -> list[int]:
        if self.window is not None:
            return window_pads(organ, self.window)
        if not bool(organ.any()):
            return [0, 0, 0, 0]
        (top, left), (bottom, right) = generate_spatial_bounding_box(
            organ[None].cpu(), margin=self.margin, allow_smaller=True
        )
        return [-left, right - organ.shape[1], -top, bottom - organ.shape[0]]
