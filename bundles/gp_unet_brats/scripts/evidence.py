"""Where evidence for a class may lie."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bright_regions(image: Tensor, levels: Tensor) -> Tensor:
    """Where an image is bright in more than a line: the 3×3 mean above the level, opened by 3×3.

    Args:
        image: `[B, 1, H, W]`, in multiples of the organ's median.
        levels: `[C]`, one a class; -inf allows everything.

    Returns:
        Bool `[B, C, H, W]`.

    Example:
        >>> spot = torch.zeros(1, 1, 9, 9)
        >>> spot[..., 2:7, 2:7] = 2.0
        >>> bright_regions(spot, torch.tensor([1.5, -torch.inf])).sum(dim=(2, 3))
        tensor([[ 9, 81]])
    """
    smooth = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    bright = (smooth > levels[:, None, None]).to(image.dtype)
    eroded = -F.max_pool2d(-bright, 3, 1, 1)
    return F.max_pool2d(eroded, 3, 1, 1) > 0.5
