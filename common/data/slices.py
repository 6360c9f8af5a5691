"""Slices of volumes with their yes/no labels: what a 2D classifier trains on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.distributed import get_rank
from monai.data import get_track_meta, set_track_meta
from monai.transforms import apply_transform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset

from ..features import case_files
from ..images import filled_slices, window_pads
from .cache import Stored, VolumeCache, in_turns, warn_of_memory
from .datalist import label_of, slice_labels

logger = logging.getLogger(__name__)


def runs(
    labels: Sequence[int] | np.ndarray, *, min_slices: int = 1, max_slices: int | None = None
) -> list[tuple[int, int, int]]:
    """Contiguous runs of slices with one label, the long ones cut into nearly equal pieces.

    Args:
        labels: one label per slice.
        min_slices: shorter pieces are left out.
        max_slices: longest piece; `None` leaves runs whole. Without it the length of a part can give its label away.

    Returns:
        `(start, stop, label)` of each piece, in order; `stop` is exclusive.

    Raises:
        ValueError: `min_slices` below 1 or above `max_slices`.
    """
    if min_slices < 1 or (max_slices is not None and max_slices < min_slices):
        raise ValueError(f"need 1 <= min_slices <= max_slices; got {min_slices} and {max_slices}.")
    values = np.asarray(labels)
    if not values.size:
        return []
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    pieces: list[tuple[int, int, int]] = []
    for start, stop in pairwise(edges):
        length = stop - start
        longest = max_slices or length
        cuts = np.linspace(start, stop, -(-length // longest) + 1).astype(int).tolist()
        if min(np.diff(cuts)) < min_slices:  # equal pieces would be too short: full ones, and a rest that is left out
            cuts = list(range(start, stop + 1, longest))
        pieces += [(a, b, int(values[a])) for a, b in pairwise(cuts) if b - a >= min_slices]
    return pieces


def read_unmasked(case: dict, preprocessing: Callable) -> Tensor:
    """The preprocessed image of a case. Its mask is not given to the preprocessing: training sees `cls` only.

    Args:
        case: as a datalist has it.
        preprocessing: gives `image`.
    """
    return read_with_doubts(case, preprocessing)[0]


def read_with_doubts(case: dict, preprocessing: Callable) -> tuple[Tensor, str]:
    """`read_unmasked`, and what the preprocessing has under `warnings`: what is doubtful about the case's files.

    A training says it by `say_doubts`, once a case, of one from a cache as well: it is kept there with the image.
    """
    read: Any = apply_transform(preprocessing, {k: v for k, v in case.items() if k != "label"})
    return read["image"], str(read.get("warnings") or "")


def say_doubts(case: Mapping[str, Any], doubts: str | None) -> None:
    """Say in the console what is doubtful about a case; of several processes, which all go through it, the first."""
    if doubts and get_rank() == 0:
        logger.warning("case %s: %s", case["case"], doubts)


class SliceDataset(Dataset):
    """Axial slices of preprocessed volumes, in half precision: held in memory, or in a cache on disk.

    An item is `{"image": [C, H, W] float32, "cls": int, "bag": int}`, and with an organ channel `"organ": [1, H, W]`
    apart from the image, so that `augment` can treat them differently; it ends with concatenating them again.

    The label of a slice is the datalist's `cls`; a mask is read only to derive it where the datalist has none. A
    volume with one label that is positive does not tell which of its slices are: where there is such a volume, the
    slices of a volume with one label, or with none that is positive, share a `bag`, and the label is the bag's.
    The `bag` of every other slice is -1: it is on its own.

    Args:
        data: cases with `image` and `cls` (an int for all slices, or one per slice, inferior to superior).
        preprocessing: gives `image` `[C, H, W, Z]` with Z running inferior to superior.
        augment: transforms of one item.
        organ_channel: the last channel is the organ mask. Slices without organ, and those of one value, are left out,
            as inference does.
        window: `[h, w]` of the part around each volume's organ that is kept, see `window_pads`.
        targets: function of a case and its preprocessed image (whole, in full precision) that gives what items have
            beside image and label: tensors `[C, H, W, Z]` or, a number for each slice, `[Z]`, by name.
        cache_dir: folder of a `VolumeCache`, for volumes that do not fit into memory, and for a second run that does
            not preprocess them again; None: in memory.
        progress: show a progress bar while reading.

    Attributes:
        classes: the label of each slice, or of its volume.
        bags: number of the bag of each slice, that of its volume; -1: none.
        whole: whether the slices of each volume are a bag.
        pooled: whether any are.
        positions: z / (Z − 1) of each slice.
        where: index of the volume and z of each slice.

    Raises:
        ValueError: a case without `cls`, or with another number of labels than slices.
        RuntimeError: no slice is left.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        augment: Callable | None = None,
        organ_channel: bool = True,
        window: Sequence[int] | None = None,
        targets: Callable[[dict, Tensor], Mapping[str, Tensor]] | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.data = list(data)
        self.augment = augment
        self.preprocessing = preprocessing  # after `augment`: MONAI's loader gives out seeds in the order of attributes
        self.organ_channel = organ_channel
        self.window = window
        self.make_targets = targets
        self.classes: list[int] = []
        self.bags: list[int] = []
        self.positions: list[float] = []
        self.where: list[tuple[int, int]] = []
        settings = (preprocessing, organ_channel, window)
        self._caches = [VolumeCache(cache_dir, *settings, more) for more in (None, targets)] if cache_dir else None
        read = self._read(progress)
        # Each `[Z, …]`: the volume under `image`, and what goes with it.
        self.volumes = [tensors for tensors, _ in read]
        found = [label for _, label in read]
        self.pooled = any(isinstance(label, int) and label > 0 for label in found)
        self.whole = [self.pooled and (isinstance(label, int) or not any(label)) for label in found]
        for number, (tensors, label) in enumerate(read):
            self._list_slices(number, tensors.pop("shown")[:], label)
        if not self.where:
            raise RuntimeError("no slice is left to train on: are the images empty, or is the organ mask?")
        if get_rank() == 0:
            print(self._about_labels())

    def _read(self, progress: bool) -> list[tuple[Stored, int | list[int]]]:
        """What is kept of each case, and its label or those of its slices."""
        read: dict[int, tuple[Stored, int | list[int]]] = {}
        for index in in_turns(self.data, progress=progress):
            case = self.data[index]
            tensors = self._hold(case) if self._caches is None else self._store(case, *self._caches)
            read[index] = tensors, case_label(case, len(tensors["shown"]))
            if self._caches is None and len(read) == 1:
                warn_of_memory(tensors.values(), len(self.data))
        if self._caches is not None and progress:
            print(*(cache.report() for cache in self._caches if cache.entries), sep="\n")
        return [read[index] for index in range(len(self.data))]

    def _list_slices(self, number: int, shown: Tensor, label: int | list[int]) -> None:
        """Append the slices of a volume on which there is something."""
        for z in torch.nonzero(shown).flatten().tolist():
            self.classes.append(label if isinstance(label, int) else label[z])
            self.positions.append(z / max(len(shown) - 1, 1))
            self.bags.append(number if self.whole[number] else -1)
            self.where.append((number, z))

    def _about_labels(self) -> str:
        """What labels there are, in one line for the console."""
        labeled = list(zip((number for number, _ in self.where), self.classes, strict=True))
        volumes = {number: label for number, label in labeled if self.whole[number]}
        own = [label for number, label in labeled if not self.whole[number]]
        parts = []
        if volumes:
            ill = sum(label > 0 for label in volumes.values())
            parts.append(f"one label a volume: {len(volumes)} volumes, {ill} positive; slices are pooled")
        if own:
            ill, count = sum(label > 0 for label in own), len({number for number, _ in labeled} - set(volumes))
            parts.append(f"one label a slice: {len(own)} slices of {count} volumes, {ill} positive")
        return "; ".join(parts)

    def _hold(self, case: dict) -> Stored:
        image, doubts = read_with_doubts(case, self.preprocessing)
        say_doubts(case, doubts)
        return {**self._packed(image), **self._packed_targets(case, image)}

    def _store(self, case: dict, images: VolumeCache, targets: VolumeCache) -> Stored:
        # Once, and only where it is needed, by whichever process comes first.
        read = functools.cache(lambda: read_with_doubts(case, self.preprocessing))
        entry = images.entry(case_files(case), lambda: self._packed(read()[0]), about=lambda: read()[1])
        say_doubts(case, entry.about)
        found = entry.stored()
        if self.make_targets is not None:
            files = case_files(case, ("image", "organ", "label"))
            found |= targets.entry(files, lambda: self._packed_targets(case, read()[0]), case.get("cls")).stored()
        return found

    def _packed(self, image: Tensor) -> dict[str, Tensor]:
        """What is kept of a preprocessed image: slices `[Z, C, H, W]`, and `[Z]`, whether there is anything on them."""
        volume = convert_to_tensor(image, track_meta=False)
        shown = filled_slices(volume.movedim(-1, 0), organ_channel=self.organ_channel)
        slices = _slices(volume, self._pads(volume))
        return {"image": slices.half().contiguous(), "shown": shown}

    def _packed_targets(self, case: dict, image: Tensor) -> dict[str, Tensor]:
        if self.make_targets is None:
            return {}
        pads = self._pads(convert_to_tensor(image, track_meta=False))
        made = self.make_targets(case, image)
        return {name: _slices(torch.as_tensor(target), pads).contiguous() for name, target in made.items()}

    def _pads(self, volume: Tensor) -> list[int] | None:
        """What `F.pad` adds to the slices (or, negative, takes away) for the window."""
        if self.window is None:
            return None
        seen = volume[-1] > 0.5 if self.organ_channel else torch.ones_like(volume[-1], dtype=torch.bool)
        return window_pads(seen.any(-1), self.window)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._item(index)
        return item if self.augment is None else augmented(self.augment, item)

    def _item(self, index: int) -> dict[str, Any]:
        """What `augment` gets."""
        number, z = self.where[index]
        item: Any = {name: slices[z].float() for name, slices in self.volumes[number].items()}
        if self.organ_channel:
            item |= {"image": item["image"][:-1], "organ": item["image"][-1:]}
        return item | {"cls": self.classes[index], "bag": self.bags[index]}


def augmented(augment: Callable, item: dict[str, Any]) -> Any:
    """`augment(item)` in plain tensors: where a crop lies in the world is of no use here, and to record it takes as
    long as the augmentation itself."""
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        return apply_transform(augment, item)
    finally:
        set_track_meta(tracked)


def _slices(volume: Tensor, pads: list[int] | None) -> Tensor:
    """The slices `[Z, C, H, W]` of `[C, H, W, Z]`, padded; numbers for each slice, `[Z]`, as they are."""
    slices = volume.movedim(-1, 0)
    return slices if pads is None or volume.dim() == 1 else F.pad(slices, pads)


def slice_classes(case: dict, depth: int) -> list[int]:
    """Labels of the `depth` slices of a case; one label of the volume is repeated.

    Raises:
        ValueError: see `case_label`.
    """
    label = case_label(case, depth)
    return [label] * depth if isinstance(label, int) else label


def case_label(case: dict, depth: int) -> int | list[int]:
    """The label of a case, or the labels of its `depth` slices; the label of one slice, as of a picture, is its own.

    Raises:
        ValueError: no `cls` and no mask, or another number of labels than slices.
    """
    # Servers such as MONAI Label know pairs of image and mask only.
    cls = slice_labels(case["label"], case["image"]) if case.get("cls") is None and "label" in case else label_of(case)
    if isinstance(cls, int | np.integer):
        return [int(cls)] if depth == 1 else int(cls)
    if len(cls) != depth:
        raise ValueError(f"case {case['case']!r} has {len(cls)} labels in `cls` for {depth} slices")
    return [int(c) for c in cls]


def labels_of(case: Mapping[str, Any], depth: int) -> tuple[bool, np.ndarray | None]:
    """Whether a case of a datalist, or any of its slices, is positive, and, bool `[depth]`, which; None: not said.

    Raises:
        ValueError: it has no label, or another number of labels than slices.
    """
    cls = case.get("cls")
    if isinstance(cls, list) and (not cls or isinstance(cls[0], str)):
        return bool(cls), None
    label = case_label(dict(case), depth)
    return (label > 0, None) if isinstance(label, int) else (max(label) > 0, np.array(label) > 0)
