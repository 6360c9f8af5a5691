"""Slices of volumes with their yes/no labels: what a 2D classifier trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import apply_transform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from ..engines import weighted_sampler
from ..images import window_pads
from .datalist import label_of, slice_labels
from .splits import matched_weights


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
    """The preprocessed image of a case. Its mask is not given to the preprocessing: training sees `cls` only."""
    read: Any = apply_transform(preprocessing, {k: v for k, v in case.items() if k != "label"})
    return read["image"]


class SliceDataset(Dataset):
    """Axial slices of preprocessed volumes, held in memory in half precision.

    An item is `{"image": [C, H, W] float32, "cls": int}`, and with an organ channel `"organ": [1, H, W]` apart from
    the image, so that `augment` can treat them differently; it ends with concatenating them again.

    The label of a slice is the datalist's `cls`; a mask is read only to derive it where the datalist has none.

    Args:
        data: cases with `image` and `cls` (an int for all slices, or one per slice, inferior to superior).
        preprocessing: gives `image` `[C, H, W, Z]` with Z running inferior to superior.
        augment: transforms of one item.
        organ_channel: the last channel is the organ mask: slices without organ are left out, as inference does.
        window: `[h, w]` of the part around each volume's organ that is kept, see `window_pads`.
        targets: function of a case and its preprocessed image (whole, in full precision) that gives what items have
            beside image and label: tensors `[C, H, W, Z]` or, a number for each slice, `[Z]`, by name.
        progress: show a progress bar while reading.

    Attributes:
        classes: the label of each slice.
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
        progress: bool = True,
    ) -> None:
        self.data = list(data)
        self.augment = augment
        self.organ_channel = organ_channel
        self.window = window
        self.volumes: list[Tensor] = []
        self.targets: list[dict[str, Tensor]] = []
        self.classes: list[int] = []
        self.positions: list[float] = []
        self.where: list[tuple[int, int]] = []
        for case in tqdm(self.data, desc="reading", unit="case", disable=not progress):
            image = read_unmasked(case, preprocessing)
            self._add_slices(case, image)
            more = targets(case, image) if targets is not None else {}
            volume = convert_to_tensor(image, track_meta=False)
            pads = self._pads(volume)
            self.volumes.append(_padded(volume, pads).half())
            self.targets.append({name: _padded(target, pads) for name, target in more.items()})
        if not self.where:
            raise RuntimeError("no slice is left to train on: are the images empty, or is the organ mask?")

    def _add_slices(self, case: dict, image: Tensor) -> None:
        depth = image.shape[-1]
        shown = image[-1:] > 0.5 if self.organ_channel else image != image[:, :1, :1]  # an empty slice has one value
        for z, label in enumerate(slice_classes(case, depth)):
            if bool(shown[..., z].any()):
                self.classes.append(label)
                self.positions.append(z / max(depth - 1, 1))
                self.where.append((len(self.volumes), z))

    def _pads(self, volume: Tensor) -> list[int] | None:
        """What `F.pad` adds to the slices (or, negative, takes away) for the window."""
        if self.window is None:
            return None
        seen = volume[-1] > 0.5 if self.organ_channel else torch.ones_like(volume[-1], dtype=torch.bool)
        return window_pads(seen.any(-1), self.window)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        volume, z = self.where[index]
        plane = self.volumes[volume][..., z].float()
        item: Any = {"image": plane[:-1], "organ": plane[-1:]} if self.organ_channel else {"image": plane}
        item["cls"] = self.classes[index]
        item |= {name: target[..., z].float() for name, target in self.targets[volume].items()}
        if self.augment is not None:
            item = apply_transform(self.augment, item)
        return item


def _padded(volume: Tensor, pads: list[int] | None) -> Tensor:
    """The slices of `[C, H, W, Z]`, padded; numbers for each slice, `[Z]`, as they are."""
    return volume if pads is None or volume.dim() == 1 else F.pad(volume.movedim(-1, 0), pads).movedim(0, -1)


def slice_classes(case: dict, depth: int) -> list[int]:
    """Labels of the `depth` slices of a case.

    Raises:
        ValueError: no `cls` and no mask, or another number of labels than slices.
    """
    # Servers such as MONAI Label know pairs of image and mask only.
    cls = slice_labels(case["label"], case["image"]) if case.get("cls") is None and "label" in case else label_of(case)
    if isinstance(cls, int | np.integer):
        return [int(cls)] * depth
    if len(cls) != depth:
        raise ValueError(f"case {case['case']!r} has {len(cls)} labels in `cls` for {depth} slices")
    return [int(c) for c in cls]


def matched_sampler(dataset: SliceDataset, *, num_samples: int | None = None, bins: int = 10) -> Sampler:
    """Draw positives and negatives 1:1, negatives from where positives lie, so that position is no shortcut.

    Args:
        dataset: the slices.
        num_samples: draws per epoch, over all processes of a distributed run; by default twice the number of
            positive slices.
        bins: of slice position.
    """
    weights = matched_weights(dataset.classes, dataset.positions, bins=bins)
    draws = num_samples or 2 * sum(label > 0 for label in dataset.classes)
    return weighted_sampler(dataset, weights.tolist(), draws)
