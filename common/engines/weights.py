"""A run against its datalist and what lies beside its weights: their training, what they saw, what was chosen."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..checkpoint import read_beside
from ..files import PathLike, json_text, read_json
from .ranges import wrong_choices

logger = logging.getLogger(__name__)

SIZES = ("spacing", "mpp")  # of a pixel: of another one a network that saw no other may make anything


def as_trained(parser: Any, usual: Mapping[str, Any], told: Set[str]) -> None:
    """Set what the weights of a run depend on to what it was in their training: classes, spacing, window …

    Left alone is what the command, or a file laid over the first config, says. Where the weights lie does not matter:
    in a bundle's own folder, too, they may be others than those that its config was made for. Of a pixel's size a
    warning says what the training had.

    Args:
        parser: of the run.
        usual: the config that the others lie over.
        told: keys of the command.
    """
    if "ckpt" not in parser or "train" in parser:
        return
    ckpt = parser.get_parsed_content("ckpt")
    for key, value in read_beside(ckpt).get("trained", {}).items():
        if key in usual and key in parser and key not in told and value != usual[key] == parser[key]:
            logger.warning("%s %s, as in the training of %s, in place of %s", key, value, ckpt, usual[key])
            parser[key] = value
        elif key in SIZES and not isinstance(now := parser.get(key, value), str) and not np.array_equal(now, value):
            told_otherwise = "%s %s: %s was trained with %s, so probabilities and masks may mean nothing"
            logger.warning(told_otherwise, key, now, ckpt, value)


def check_classes(parser: Any) -> None:
    """Refuse the classes of the training in another order: each would get the probability of another.

    Raises:
        ValueError: with both orders.
    """
    if "ckpt" not in parser or "train" in parser or not isinstance(now := parser.get("classes"), list):
        return
    before = read_beside(parser.get_parsed_content("ckpt")).get("trained", {}).get("classes", now)
    if now != before and sorted(map(str, now)) == sorted(map(str, before)):
        raise ValueError(f"--classes: {', '.join(now)}; the weights were trained with the order {', '.join(before)}")


def check_listed_classes(parser: Any) -> None:
    """Refuse a datalist whose labels, which are numbers, name other classes than those of the run.

    Raises:
        ValueError: a class has another number there, or a training would meet a number beyond its classes.
    """
    path = parser.get_parsed_content("datalist") if "datalist" in parser else None
    now, listed = parser.get("classes"), None
    with suppress(OSError, ValueError):  # told where it is read
        listed = read_json(path) if path else None
    if not isinstance(listed, Mapping) or not isinstance(now, list):
        return
    there = listed.get("classes")
    if not isinstance(there, list):
        return
    numbers = _labels_in_numbers(listed)
    moved = [name for k, name in enumerate(there) if name in now and now.index(name) != k]
    if numbers and (moved or ("train" in parser and max(numbers) >= len(now))):
        own = f", or give the run --classes {json.dumps(there)}" if "train" in parser else ""
        raise ValueError(
            f"{path}: its labels are of the classes {', '.join(map(str, there))}, and the run has "
            f"{', '.join(map(str, now))}: labels would be taken for others; write it with these classes (prepare "
            f"--classes){own}"
        )


def _labels_in_numbers(datalist: Mapping[str, Any]) -> set[int]:
    sections = [part for part in datalist.values() if isinstance(part, list)]
    found = [case.get("cls") for part in sections for case in part if isinstance(case, Mapping)]
    return {one for cls in found for one in (cls if isinstance(cls, list) else [cls]) if isinstance(one, int)}


def check_chosen(parser: Any) -> None:
    """Refuse values beside weights that no run could use, of those that this run takes from there.

    Raises:
        ValueError: naming the file and each key.
    """
    wrong = []
    for name, item in dict(parser.config).items():
        if not isinstance(item, Mapping) or not str(item.get("_target_", "")).endswith("checkpoint.read_chosen"):
            continue
        # What the command gives in place of them, or a calibration is about to choose, is not taken from there.
        if keys := {key for text in _texts(parser.config) for key in re.findall(rf"@{name}\['(\w+)'\]", text)}:
            path = Path(parser.get_parsed_content(f"{name}#ckpt")).with_suffix(".json")
            chosen = {key: value for key, value in read_beside(path).get("chosen", {}).items() if key in keys}
            wrong += [f"{path}, chosen, {line}" for line in wrong_choices(chosen)]
    if wrong:
        raise ValueError("\n".join(dict.fromkeys([*wrong[:-1], f"{wrong[-1]}; mend the file, or choose anew"])))


def check_trained(ckpt: PathLike, settings: Mapping[str, Any], *, refuse: bool) -> list[str]:
    """`unlike_training` for servers, which run none of the above: with `refuse` anything found is an error, else told.

    Raises:
        ValueError: naming all of it, and what to do.
    """
    found = unlike_training(ckpt, settings)
    if found and refuse:
        raise ValueError(f"{ckpt}: {'; '.join(found)}; write that into inference.json, or check_range false")
    for text in found:
        logger.warning("%s: %s", ckpt, text)
    return found


def unlike_training(ckpt: PathLike, settings: Mapping[str, Any]) -> list[str]:
    """What a config has otherwise than the training of its weights, in words.

    Args:
        ckpt: the weights.
        settings: of the config, by key; those that the training does not tell do not count.

    Example:
        `["size is 64, but model.pt was trained with 96"]`
    """
    path, trained = Path(ckpt), read_beside(ckpt).get("trained", {})
    now = json.loads(json_text({key: value for key, value in settings.items() if key in trained}))
    return [
        f"{key} is {value!r}, but {path.name} was trained with {trained[key]!r}"
        for key, value in now.items()
        if value != trained[key]
    ]


def check_channels(parser: Any) -> None:
    """Refuse patterns that name the channels of the training in another order; a datalist says itself what it has.

    Raises:
        ValueError: with the order of the training.
    """
    if any(key not in parser for key in ("ckpt", "seen", "image_pattern")) or "train" in parser:
        return
    if parser.get("datalist") and parser.get_parsed_content("datalist"):
        return
    patterns: Any = parser.get_parsed_content("image_pattern")
    patterns = [patterns] if isinstance(patterns, str) else list(patterns or [])
    channels = (read_beside(parser.get_parsed_content("ckpt")).get("seen") or {}).get("channels") or []
    if text := misplaced(patterns, channels):
        if parser.get("check_range", True):
            raise ValueError(f"--image_pattern {patterns}: {text}; --check_range false goes on")
        logger.warning("--image_pattern %s: %s", patterns, text)


def misplaced(files: Sequence[str], channels: Sequence[str]) -> str:
    """What stands in another channel's place by its name; empty where nothing does, or names do not tell.

    A name tells a channel by its end, whatever its case: `t1.nii.gz`, `*/p1_T1.nii.gz`, a folder `t1`.

    Args:
        files: paths or patterns, one per channel, the first of them or all.
        channels: names in the order of the training.

    Example:
        `misplaced(["*/t1.nii.gz"], ["flair", "t1"])` gives "t1 stands in the place of flair; training had the order
        flair, t1".
    """
    for file, channel in zip(files, channels, strict=False):
        stem = PurePath(PurePath(file).name.lower().removesuffix(".gz")).stem
        named = [one for one in channels if re.search(rf"(?:^|[^a-z0-9]){re.escape(str(one).lower())}$", stem)]
        found = max(named, key=len, default=channel)
        if found != channel:
            return f"{found} stands in the place of {channel}; training had the order {', '.join(channels)}"
    return ""


def _texts(config: Any) -> Iterator[str]:
    """All texts in a config."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping | list | tuple):
        for inner in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(inner)


def sees_native_pixels(trained: Mapping[str, Any]) -> bool:
    """Whether weights that were trained with these settings see the pixels of images as they are, of whatever size."""
    sizes = [*trained.get("spacing", [1.0])[:2], *trained.get("shape", [])[:2]]
    return all(size < 0 for size in sizes) and not trained.get("size")
