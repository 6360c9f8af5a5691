"""What a network gets to see of a slice of a preprocessed volume, as in inference, and the way of a map back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


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
    """The views of a network that gets its slices from `common.engines.SliceMapInferer`: that window, those pads.

    Args:
        inferer: of the bundle's inference. Its mirrored slice, if it has one, is a second view.
    """

    def __init__(self, inferer: Any) -> None:
        self.inferer = inferer

    def __call__(self, volume: Tensor, z: int) -> list[View]:
        """Views of the slice at `z` of a volume `[C + 1, H, W, D]`, whose last channel is the organ."""
        pads = self.inferer.pads((volume[-1] > 0.5).any(dim=-1))
        height, width = (n + pads[k] + pads[k + 1] for n, k in zip(volume.shape[1:3], (2, 0), strict=True))
        more = [0, -width % self.inferer.divisor, 0, -height % self.inferer.divisor]

        def view(mirror: Sequence[int]) -> View:
            return View(
                lambda image: F.pad(F.pad(image, pads).flip([axis - 2 for axis in mirror]), more),
                lambda heat: F.pad(heat[:height, :width].flip(list(mirror)), [-pad for pad in pads]),
            )

        return [view(()), view((0,))] if self.inferer.flip else [view(())]
