"""Volumes to train on, in memory or in a cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from common.data import CacheEntry, VolumeCache

from .geometry import Body


@dataclass(frozen=True)
class StoredBody:
    """A body in a cache, one of those of its case."""

    entry: CacheEntry
    number: int

    def load(self) -> Body:
        """The body, its tensors mapped into memory."""
        about = self.entry.about[self.number]
        volume, inside = (self.entry.tensor(f"{name}_{self.number}") for name in ("volume", "inside"))
        x, y, z = (slice(*ends) for ends in about["box"])
        return Body(volume, inside, tuple(about["spacing"]), about["radius"], (x, y, z))


class Bodies(Sequence[Body]):
    """Bodies in memory, or loaded from a cache whenever one is asked for."""

    def __init__(self, parts: Iterable[Body | StoredBody]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        part = self.parts[index]
        return part.load() if isinstance(part, StoredBody) else part


class Volume(NamedTuple):
    """A volume to train on.

    Attributes:
        body: a `Body`, or where it is stored.
        extremes: points between which planes meet the organ.
        label: 0 or 1.
        size: voxels of the organ.
        doubts: what is doubtful about the files of its case, see `common.data.slices.say_doubts`.
    """

    body: Any
    extremes: Tensor
    label: int
    size: float
    doubts: str = ""


def stored_volumes(
    cache: VolumeCache, files: Sequence[Path], make: Callable[[], list[Volume]], cls: Any
) -> list[Volume]:
    """The volumes of a case from a cache, made where it lacks them.

    Args:
        cache: see `common.data.VolumeCache`.
        files: all that they are made from.
        make: gives them, in memory.
        cls: label of the case, by which it may be cut.
    """
    made: list[Volume] = []

    def tensors() -> dict[str, Tensor]:
        made.extend(make())
        parts: dict[str, Tensor] = {}
        for number, volume in enumerate(made):
            parts |= {f"volume_{number}": volume.body.volume, f"inside_{number}": volume.body.inside}
            parts[f"extremes_{number}"] = volume.extremes
        return parts

    def about() -> list[dict[str, Any]]:
        return [
            {
                "spacing": list(volume.body.spacing),
                "radius": volume.body.radius,
                "box": [[axis.start, axis.stop] for axis in volume.body.box],
                "label": volume.label,
                "size": volume.size,
                "doubts": volume.doubts,
            }
            for volume in made
        ]

    entry = cache.entry(files, tensors, cls, about=about)
    return [
        Volume(
            StoredBody(entry, number),
            entry.tensor(f"extremes_{number}").clone(),
            said["label"],
            said["size"],
            said.get("doubts") or "",  # a cache of before has none
        )
        for number, said in enumerate(entry.about)
    ]
