"""Whether a window shows anything of a training's images: their units are not known, and nothing to compare with is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from ignite.distributed import get_rank, get_world_size
from tqdm import tqdm

from ..engines import gathered
from .seen import Description

logger = logging.getLogger(__name__)

NEARLY_ALL = 0.98  # of an organ's voxels; where the organ is the whole image, most of it may be air


class OutsideWindow(ValueError):
    """A case from which nothing can be learned, see `outside_window`."""


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


def within_window(
    cases: Sequence[dict], preprocessing: Any, *, skip: bool = False, progress: bool = True
) -> list[dict]:
    """The cases that a training takes: all of them, or with `skip` those whose window shows something.

    With `skip` every case is read once more, up to its organ mask, by one of the processes of a training; masks of
    findings are not opened. Who is left out is said in a warning, with the reason.

    Args:
        cases: as a datalist has them.
        preprocessing: of the training, a `Compose` with a `CheckSeend`; without one, or where that has no window, all
            are taken and none is read.
        skip: leave out, in place of the error that the preprocessing raises.
        progress: show a progress bar while reading.

    Raises:
        ValueError: no case is left.
    """
    transforms = _up_to_the_look(preprocessing)
    if not (skip and transforms):
        return list(cases)
    mine = range(get_rank(), len(cases), get_world_size())
    bar = tqdm(
        mine, desc="looking through the window", unit="case", leave=False, disable=not progress or get_rank() > 0
    )
    outside = {i: text for i in bar if (text := _reason_to_leave_out(cases[i], transforms))}
    outside = {i: text for part in gathered(outside) for i, text in part.items()}
    left = [outside[i] for i in sorted(outside)]
    if len(left) == len(cases):
        raise ValueError(f"the window shows nothing of any of {len(left)} cases: {left[0] if left else 'none given'}")
    if left and get_rank() == 0:
        what = "%d of %d case(s) left out, of which the window shows nothing:\n  %s"
        logger.warning(what, len(left), len(cases), "\n  ".join(left))
    return [case for i, case in enumerate(cases) if i not in outside]


def _up_to_the_look(preprocessing: Any) -> list[Any]:
    """The transforms of a `Compose` up to the first that looks through a window; empty where none does."""
    transforms = list(getattr(preprocessing, "transforms", ()))
    places = [i for i, one in enumerate(transforms) if getattr(one, "only_looks", False) and one.window is not None]
    return transforms[: places[0] + 1] if places else []


def _reason_to_leave_out(case: dict, transforms: Sequence[Any]) -> str:
    """Name of a case of which the window shows nothing, and why; empty where it shows something."""
    data: Any = {key: value for key, value in case.items() if key != "label"}
    try:
        for transform in transforms:
            data = transform(data)
    except OutsideWindow as error:
        return f"{case['case']} ({error})"
    except Exception:  # whatever else is wrong, the training says, and names the case
        logger.debug("%s cannot be looked at", case["case"], exc_info=True)
    return ""
