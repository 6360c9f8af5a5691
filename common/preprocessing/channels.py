"""Names of an image's channels: modalities, or numbers where one file holds several channels."""

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
