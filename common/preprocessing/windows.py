"""Whether a window shows anything of a training's images: their units are not known, and nothing to compare with is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .seen import Description

NEARLY_ALL = 0.98  # of an organ's voxels; where the organ is the whole image, most of it may be air


def outside_window(case: Description, window: Sequence[float] | None) -> str:
    """Why nothing can be learned from a case: in the window it is of one value, or nearly. Empty if something can.

    Args:
        case: of `describe_case`.
        window: `[low, high]` that is scaled to [0, 1] afterwards; None: intensities are scaled otherwise.
    """
    if window is None or max(case["outside"], default=0.0) <= NEARLY_ALL:
        return ""
    i = int(np.argmax(case["outside"]))
    low, high = case["quantiles"][i][1], case["quantiles"][i][-2]
    return (
        f"{case['outside'][i]:.0%} of the organ's voxels lie outside of the window [{window[0]:g}, {window[1]:g}] "
        f'(5 to 95 % of them are {low:g} to {high:g}): other units? --window "[-1350,150]" shows lungs in Hounsfield '
        "units"
    )
