"""Cases of a training whose intensities are unlike those of the others: one of another kind among many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low

from .seen import LEVELS, Description
from .strange import STRAY

MIDDLE = LEVELS.index(50)


def unlike_others(described: Mapping[str, Description], *, window: Sequence[float] | None = None) -> list[str]:
    """What is doubtful about some cases of a training, held against the others; texts that name the cases.

    - Organ and intensities are to the last digit those of another case: copies of one scan, perhaps with two labels.
    - Nearly all of the organ has one value: a mask in the place of an image.
    - Without a window, negative values in some cases only: standardized images among raw ones. The fewer are named.
    - With one, 5 to 95 % of the organ's intensities do not hold the median of the others: other units.

    Args:
        described: cases by name, each as `common.preprocessing.seen.describe_case` gives it.
        window: `[low, high]` that is scaled to [0, 1] afterwards; None: intensities are scaled by the organ's own, so
            that units do not matter.

    Example:
        With `p7` standardized and 19 raw cases: `["p7: negative values, which 19 other cases lack: …"]`.
    """
    found = [*_copies(described)]
    channels = len(next(iter(described.values()))["quantiles"]) if described else 0
    for i in range(channels):
        where = f", channel {i + 1}" if channels > 1 else ""
        own = {name: case["quantiles"][i] for name, case in described.items()}
        found += _masks(own, where)
        found += _standardized(described, i, where) if window is None else _other_units(own, where)
    return found


def _copies(described: Mapping[str, Description]) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for name, case in described.items():
        if None not in case["contrast"]:  # that of a small or flat organ may be another's
            what = json.dumps([case[part] for part in ("organ_ml", "quantiles", "contrast")])
            alike.setdefault(what, []).append(name)
    copies = [names for names in alike.values() if len(names) > 1]
    yield from (f"{_named(names)}: the same organ and intensities: copies of one scan?" for names in copies)


def _masks(quantiles: Mapping[str, Sequence[float]], where: str) -> Iterator[str]:
    if flat := [name for name, values in quantiles.items() if values[1] == values[-2]]:
        yield f"{_named(flat)}{where}: nearly all of the organ has one value: masks?"


def _standardized(described: Mapping[str, Description], channel: int, where: str) -> Iterator[str]:
    shares = {name: max(case["outside"][channel], case["negative"][channel]) for name, case in described.items()}
    below = [name for name, share in shares.items() if share > STRAY]
    above = [name for name in described if name not in below]
    few, many, no, what = (below, above, "", "lack") if len(below) <= len(above) else (above, below, "no ", "have")
    if few:
        yield (
            f"{_named(few)}{where}: {no}negative values, which {len(many)} other cases {what}: standardized and raw "
            "intensities among each other?"
        )


def _other_units(quantiles: Mapping[str, Sequence[float]], where: str) -> Iterator[str]:
    typical = median_low(values[MIDDLE] for values in quantiles.values())
    odd = [name for name, values in quantiles.items() if not values[1] <= typical <= values[-2]]
    if 0 < len(odd) <= len(quantiles) / 2:
        low, high = quantiles[odd[0]][1], quantiles[odd[0]][-2]
        yield (
            f"{_named(odd)}{where}: 5 to 95 % of the organ's intensities are {low:g} to {high:g}, without the median "
            f"of the others, {typical:g}: other units?"
        )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
