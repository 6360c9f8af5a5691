"""What of a case is unlike what weights saw in training: texts of what is certainly wrong, and of what is doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .channels import channel_names
from .seen import LEVELS, Description, distances

# In how many multiples of what was seen a case may lie, and still be as in training.
# In plane volumes are resampled, or all that is seen has another size; slices of 1 mm do well where 5 mm were seen.
IN_PLANE, NATIVE_IN_PLANE, BETWEEN_SLICES, SQUARE = 3.0, 1.3, 6.0, 1.5
ORGAN_VOLUME, IMPOSSIBLE_VOLUME = 1.5, 3.0
CONTRAST = 1.25  # of the distance that 95 % of the training's own cases keep, each left out in turn
STRAY = 0.05  # share of voxels outside of a range in which all of the training's lay
NOTHING_OUTSIDE = 0.001
FILLED = 0.1  # share of its window that training must fill before values inside it mean anything


def compare(
    case: Description, seen: Description, *, window: Sequence[float] | None = None
) -> tuple[list[str], list[str]]:
    """Hold a case against what was seen in training.

    Args:
        case: of `describe_case`.
        seen: of `summarize`; with `native_pixels` true where images were not resampled in training.
        window: of this run, perhaps another than the training's, where the images are in other units.

    Returns:
        What is certainly wrong, and what is merely unlike; texts without the file's name.
    """
    names = channel_names(seen["channels"], len(seen["quantiles"]))
    seen = {**seen, "channels": names}
    if len(case["quantiles"]) != len(names):
        return [f"{len(case['quantiles'])} channel(s), but training had {len(names)}: {', '.join(names)}"], []
    if (window is None) != (seen["window"] is None):
        own, before = (f"by {'the organ' if w is None else f'the window {list(w)}'}" for w in (window, seen["window"]))
        return [f"intensities are scaled {own}, in training {before}"], []
    errors = [text for i in range(len(names)) if (text := _out_of_range(case, seen, i, window))]
    strange, volume = _strange_contrasts(case, seen), _strange_volume(case, seen)
    largest = seen["organ_ml"]["max"]
    # Each alone has harmless causes, and so has a small organ: a child's, or one in part.
    if _comparable(case, seen) and case["organ_ml"] > largest * (ORGAN_VOLUME if strange else IMPOSSIBLE_VOLUME):
        text = "; ".join([volume, *strange])
        return [*errors, f"{text}: another body part or kind of image, or a wrong spacing"], []
    warnings = [*([volume] if volume else []), *strange, *_strange_values(case, seen, window)]
    warnings += [] if errors else [text for i in range(len(names)) if (text := _strange_median(case, seen, i, window))]
    return errors, [*warnings, *_strange_spacing(case, seen)]


def _scaled(values: Any, window: Sequence[float] | None) -> np.ndarray:
    low, high = window or (0.0, 1.0)
    return (np.asarray(values, dtype=float) - low) / (high - low)


def _span(before: Mapping[str, Any], window: Sequence[float]) -> np.ndarray:
    """Lowest and highest intensity of the training, in units of its window."""
    return _scaled([before["min"][0], before["max"][-1]], window)


def _out_of_range(case: Description, seen: Description, i: int, window: Sequence[float] | None) -> str:
    """Why intensities cannot be in the units of the training's; empty if they can."""
    own, before = case["quantiles"][i], seen["quantiles"][i]
    outside, usual = case["outside"][i], seen["outside"][i]
    trained = f"{before['min'][0]:g} to {before['max'][-1]:g}"
    found = f"5 to 95 % of them are {own[1]:g} to {own[-2]:g}"
    if window is None:
        if usual <= NOTHING_OUTSIDE and outside > STRAY:
            return f"{outside:.0%} of the organ's voxels are negative ({found}); training saw {trained}"
        return ""
    span = _span(before, seen["window"])
    beyond = 1.0 - float(np.diff(np.interp(span, _scaled(own, window), np.array(LEVELS) / 100.0))[0])
    allowed = STRAY if usual <= NOTHING_OUTSIDE else max(0.5, (1.0 + usual) / 2)
    if outside <= allowed and (span[1] - span[0] < FILLED or beyond <= 0.5):
        return ""
    where, share = ("the window", outside) if outside > allowed else ("what training saw", beyond)
    return (
        f"{share:.0%} of the organ's voxels lie outside of {where} ({found}; window [{window[0]:g}, {window[1]:g}]). "
        f"The weights were trained with the window {[float(w) for w in seen['window']]} on values of {trained}: other "
        "units, or Hounsfield units with an offset? Give the window that brings these images to that scale by --window"
    )


def _strange_median(case: Description, seen: Description, i: int, window: Sequence[float] | None) -> str:
    if window is None:
        return ""
    middle = LEVELS.index(50)
    own, before = _scaled(case["quantiles"][i][middle], window), seen["quantiles"][i]
    low = _scaled(before["min"][middle - 1], seen["window"])
    high = _scaled(before["max"][middle + 1], seen["window"])
    if low <= own <= high or float(np.diff(_span(before, seen["window"]))[0]) < FILLED:
        return ""
    return (
        f"median inside the organ {case['quantiles'][i][middle]:g}; in training {before['min'][middle]:g} to "
        f"{before['max'][middle]:g} with the window {seen['window']}"
    )


def _strange_values(case: Description, seen: Description, window: Sequence[float] | None) -> list[str]:
    found = [f"nearly all of the organ is {own[1]:g}: a mask?" for own in case["quantiles"] if own[1] == own[-2]]
    count = len(case["quantiles"])
    shares = zip(case.get("negative", [0.0] * count), seen.get("negative", [0.0] * count), strict=True)
    for own, usual in shares if window is None else ():
        if own > usual + STRAY:
            found.append(f"{own:.0%} of the voxels are negative, in training {usual:.0%}: standardized intensities?")
    return found


def _comparable(case: Description, seen: Description) -> bool:
    """Whether the organ's volume tells anything: how large a whole scan is, weights of pictures have not seen."""
    return seen.get("slices", {}).get("max") != 1 or case.get("slices") == 1


def _strange_volume(case: Description, seen: Description) -> str:
    own, before = case["organ_ml"], seen["organ_ml"]
    if not _comparable(case, seen) or before["min"] / ORGAN_VOLUME <= own <= before["max"] * ORGAN_VOLUME:
        return ""
    return f"organ of {own:.0f} ml, in training {before['min']:.0f} to {before['max']:.0f} ml"


def _strange_spacing(case: Description, seen: Description) -> list[str]:
    native, found = seen.get("native_pixels", False), []
    in_plane = NATIVE_IN_PLANE if native else IN_PLANE
    for axis, factor in enumerate((in_plane, in_plane, BETWEEN_SLICES)):
        own, low, high = case["spacing"][axis], seen["spacing"]["min"][axis], seen["spacing"]["max"][axis]
        if not low / factor <= own <= high * factor:
            text = f"{'distance of slices' if axis == 2 else 'pixels'} {own:g} mm, in training {low:g} to {high:g} mm"
            if native and axis < 2:
                text += f", and the weights see them as they are: --spacing [{high:g},{high:g},-1.0] resamples"
            found.append(text)
    long = _longer(case["spacing"])
    if not found and long > SQUARE * max(map(_longer, (seen["spacing"]["min"], seen["spacing"]["max"]))):
        found.append(f"pixels {case['spacing'][0]:g} x {case['spacing'][1]:g} mm, {long:.1f} times longer than wide")
    return list(dict.fromkeys(found))


def _longer(spacing: Sequence[float]) -> float:
    """How many times a pixel is as long as wide, or as wide as long."""
    return max(spacing[:2]) / min(spacing[:2])


def _strange_contrasts(case: Description, seen: Description) -> list[str]:
    """Channels that do not look like what was seen as that channel, with the one that they look like, if any."""
    found = []
    for own, name, before in zip(case["contrast"], seen["channels"], seen["contrast"], strict=True):
        apart = _apart(own, before)
        if apart is None or apart <= CONTRAST:
            continue
        others = zip(seen["channels"], (_apart(own, other) for other in seen["contrast"]), strict=True)
        like = [other for other, far in others if far is not None and far <= 1.0]
        swapped = f", but like {like[0]!r}: are modalities swapped?" if like else ""
        found.append(f"contrast unlike {name!r} of the training ({apart:.1f} times the usual distance){swapped}")
    return found


def _apart(own: list[float] | None, before: Mapping[str, Any] | None) -> float | None:
    """Distance of contrasts in multiples of the limit; None where one is unknown."""
    if own is None or before is None:
        return None
    mean, covariance = np.array(before["mean"]), np.array(before["covariance"])
    return float(distances(np.array([own]), mean, covariance)[0]) / max(before["limit"], 1e-6)
