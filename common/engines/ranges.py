"""Which values the settings of the bundles may have: one table. Their types are told by the configs themselves."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any

from ..masks import clean, refine_by_intensity


@dataclass(frozen=True)
class Rule:
    """What a number must be, or each number of a list; with `whole`, the list itself."""

    said: str
    holds: Callable[[Any], bool]
    whole: bool = False


FROM_1 = Rule("1 or more", lambda value: value >= 1)
FROM_0 = Rule("0 or more", lambda value: value >= 0)
ABOVE_0 = Rule("more than 0", lambda value: value > 0)
SHARE = Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)
LENGTH = Rule("more than 0, or -1 for the scan's own", lambda value: value > 0 or value == -1)
TWO = Rule("two numbers", lambda value: len(value) == 2, whole=True)
THREE = Rule("three numbers", lambda value: len(value) == 3, whole=True)
SEVERAL = Rule(
    "two or more, all different, the first of which is healthy",
    lambda value: len({*map(str, value)}) == len(value) >= 2,
    whole=True,
)
FINITE = Rule("a finite number", math.isfinite)
SOME = Rule("at least one", lambda value: len(value) >= 1, whole=True)

# Keys of all bundles; `a#b` lies in a dict of options. A key that is not here may have any value of its type.
RANGES: dict[Rule, str] = {
    FROM_1: """
        bag_size bags_per_epoch batch_size cases channels checkpoint_chunk encoder_batch_size levels max_epochs
        max_slices min_slices num_directions num_slices patience planes schedule_epochs size slice_size stack stride
        threads thumbnail_px tile_px tile_stride val_interval validation_planes volumes volumes_per_epoch width
    """,
    FROM_0: """
        across_mm alpha baseline_openings_mm baseline_smooth_mm body_learning_rate classification decoupling
        encoder_learning_rate gate_smooth_mm image_channel map_width min_area_cm2 min_component_ml min_slices_per_epoch
        min_volume_ml num_workers refine#dilate_mm refine#intensity refine#opening_mm refine#smooth_mm rotate scale
        seed segmentation shear smooth_um translate weight_decay
    """,
    ABOVE_0: """
        clip_norm clip_value input_scale learning_rate mpp mpp_of_file radius tissue_mpp upper zoom
    """,
    SHARE: """
        average_decay dropout gate heat_quantile heat_quantiles intensity intensity_mask intensity_masks mask_quantile
        min_tissue quantile refine#adaptive refine#least_share sensitivity smoothing table_gate vertical_flip
    """,
    FINITE: "natural_threshold offset raw_threshold threshold thresholds",
    LENGTH: "spacing shape",
    TWO: "slice_size window",
    THREE: "spacing shape",
    SEVERAL: "classes",
    SOME: "levels members",
}
# Words of keys that nothing else checks before the first case.
CHOICES: dict[str, tuple[Any, ...]] = {
    "backend": ("openslide", "tifffile"),
    "combine": ("or", "and", "min", "max", "mean", "product"),
    "dicom_geometry": ("assume_axial", None),
    "geometry": ("organ", "paper"),
    "normalize_maps": ("slice", "volume", "none"),
    "objective": ("dice", "miou"),
    "score": ("dice", "f1"),
}
# Dicts that are keyword arguments of a function.
OPTIONS: dict[str, Callable] = {"clean": clean, "refine": refine_by_intensity}
# Of what is chosen for weights: which may be null, and which one number per label.
CHOSEN_NULL, CHOSEN_LISTS = ("intensity_mask",), ("gate", "threshold", "thresholds")
FREE = ("$", "@", "%")  # known only when it is evaluated


def out_of_range(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting that no run could use, with what it may be.

    Args:
        config: values by key; expressions and references may stand for everything.
    """
    for key, value in config.items():
        options = value if isinstance(value, Mapping) and "_target_" not in value else {}
        values = {key: value} | {f"{key}#{name}": one for name, one in options.items()}
        yield from (f"--{name}: {text}" for name, one in values.items() if (text := unsuitable(name, one)))


def wrong_choices(chosen: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value chosen for weights that no run could use; of those no config tells a type.

    Args:
        chosen: by key, as it lies beside the weights.

    Example:
        `{"gate": 7}` gives "gate: expected a number from 0 to 1, got 7".
    """
    for key, value in chosen.items():
        if key not in OPTIONS:
            lines = {key: unsuitable(key, value) or _no_number(key, value)}
        elif isinstance(value, Mapping):
            lines = {f"{key}#{name}": _wrong_chosen_option(key, name, one) for name, one in value.items()}
        else:
            lines = {key: "" if value is None else f"expected a dict or null, got {value!r}"}
        yield from (f"{name}: {line}" for name, line in lines.items() if line)


def _wrong_chosen_option(key: str, name: str, value: Any) -> str:
    known = inspect.signature(OPTIONS[key]).parameters
    if name in known and isinstance(known[name].default, bool) and not isinstance(value, bool):
        return f"expected true or false, got {value!r}"
    option = f"{key}#{name}"
    return _wrong_option(OPTIONS[key], {name: value}) or unsuitable(option, value) or _no_number(option, value)


def _no_number(key: str, value: Any) -> str:
    """Why a value is none where its rule is about numbers."""
    said = [rule.said for rule in _rules_of(key) if not rule.whole]
    parts = value if isinstance(value, list) and key in CHOSEN_LISTS else [value]
    if not said or all(map(_is_number, parts)) or (value is None and key in CHOSEN_NULL):
        return ""
    return f"expected {said[0]}, got {value!r}"


def unsuitable(key: str, value: Any) -> str:
    """Why a key cannot have a value; empty if it can."""
    if _is_free(value):
        return ""
    if key in CHOICES and value not in CHOICES[key]:
        words = ", ".join("null" if word is None else str(word) for word in CHOICES[key])
        return f"expected one of {words}; got {value!r}"
    if key in OPTIONS and isinstance(value, Mapping) and "_target_" not in value:
        return _wrong_option(OPTIONS[key], value)
    outer, _, name = key.partition("#")
    is_option = outer in OPTIONS and re.fullmatch("(?!chosen$)[a-z]\\w*", name)
    return (_wrong_option(OPTIONS[outer], {name: value}) if is_option else "") or _broken_rule(key, value)


def _broken_rule(key: str, value: Any) -> str:
    """What a value has to be by the rules of its key, and is not; empty if it is."""
    several = isinstance(value, list | tuple)
    numbers = list(filter(_is_number, value if several else [value]))
    for rule in _rules_of(key):
        held = (not several or rule.holds(value)) if rule.whole else all(map(rule.holds, numbers))
        if not held:
            return f"expected {rule.said}, got {value!r}"
    return ""


def _rules_of(key: str) -> list[Rule]:
    return [rule for rule, keys in RANGES.items() if key in keys.split()]


def _is_free(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(FREE)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _wrong_option(function: Callable, options: Mapping[str, Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty}
    for name, value in options.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            return f"it has no {name!r}; " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}")
        # Words of JSON are texts here still.
        if _is_number(known[name]) and isinstance(value, str) and not _is_free(value):
            return f"its {name} is {value!r}; expected a number, such as {known[name]}"
    return ""
