"""Numbers beyond the range of their type, or of their bits: they come out at its other end."""

from __future__ import annotations

import numpy as np

MOST_SLICES = 32  # in which edges are looked at
# Share of edges across the whole range: 181 images of 8 bits have at most .002, noise .02, values that do not fit .03
# (often beyond both ends) to 1.
AROUND = (0.01, 0.05)


def doubt_about_ends(array: np.ndarray, ends: tuple[int, int], *, what: str, path: str, advice: str) -> str:
    """Why whole numbers seem not to fit into the range that they are stored in; empty where they do.

    130 is -126 in eight bits with a sign, -20 is 65516 in sixteen without. Neighbors are then a whole range apart, as
    if the ends of the range were one. Images that fill their range have next to none of that, but for the ends
    themselves, where values were clipped.

    Args:
        array: `[H, W, N]`, some slices.
        ends: the lowest and the highest number that can be stored.
        what: how they are stored.
        path: of the file, for the message.
        advice: what to do.

    Raises:
        ValueError: they certainly do not fit.
    """
    lowest, highest = ends
    size = highest - lowest + 1
    array = array.astype(np.int64 if size > 1 << 30 else np.int32)
    steep = across = 0
    for one, other in ((array[1:], array[:-1]), (array[:, 1:], array[:, :-1])):
        apart = abs(one - other)
        low, high = np.minimum(one, other), np.maximum(one, other)
        steep += int((apart > size / 8).sum())
        across += int(((apart > 7 * size / 8) & (low > lowest) & (high < highest)).sum())
    share = across / max(steep, 1)
    if share <= AROUND[0]:
        return ""
    text = f"{share:.0%} of its edges go from one end of the values of {what} to the other: they did not fit"
    if share > AROUND[1]:
        raise ValueError(f"{path}: {text}, and came out at the other: {advice}")
    return f"{text}?"
