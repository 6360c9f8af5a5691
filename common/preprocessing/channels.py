"""Names of an image's channels: modalities, or numbers where one file holds several; and those of the training."""

from __future__ import annotations

from collections.abc import Sequence


def channel_names(names: Sequence[str] | None, count: int) -> list[str]:
    """A name for each of `count` channels: the modalities', or numbers where these are another number.

    One image file may hold several channels, as the colors of a picture.

    Example:
        >>> channel_names(["t1", "flair"], 2), channel_names(["image"], 3)
        (['t1', 'flair'], ['channel 1', 'channel 2', 'channel 3'])
    """
    return list(names) if names and len(names) == count else [f"channel {i + 1}" for i in range(count)]


def compare_names(modalities: Sequence[str], channels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold a datalist's names of the channels against those of the training, as many.

    Case does not matter, and a name that says nothing (`image`, `channel 1`) may be anything.

    Returns:
        What is certainly wrong, the same names in another order, and what is merely unlike.
    """
    own, before = ([name.lower() for name in names] for names in (modalities, channels))
    if own != before and sorted(own) == sorted(before):
        return [f"modalities are {', '.join(modalities)}, but training had the order {', '.join(channels)}"], []
    pairs = zip(modalities, channels, own, before, strict=True)
    unlike = [pair[:2] for pair in pairs if pair[2] != pair[3] and not any(map(_says_nothing, pair[2:]))]
    return [], [f"modality {name!r} in the place of {trained!r} in training" for name, trained in unlike]


def _says_nothing(name: str) -> bool:
    return name == "image" or name.startswith("channel ")
