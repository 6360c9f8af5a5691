"""Tensors with a place in the world: spacing, orientation, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import MetaKeys, SpaceKeys
from torch import Tensor

from .volume import Volume


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor in their order, whatever its dtype, device and strides."""
    plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
    return plain.flatten().view(torch.uint8).numpy().data


def window_pads(organ: Tensor, size: Sequence[int]) -> list[int]:
    """Pads of `torch.nn.functional.pad` (negative ones crop) that give a window of `size` centered on the organ.

    Args:
        organ: `[H, W]` bool. Without any organ the window is centered on the image.
        size: `[h, w]`; a longer organ widens it, so that no organ is lost.

    Returns:
        `[left, right, top, bottom]`: of the last axis, then of the one before.
    """
    pads = []
    for axis, length in ((0, size[1]), (1, size[0])):  # any over the rows leaves the columns
        present = organ.any(axis)
        index = torch.nonzero(present).flatten() if bool(present.any()) else torch.tensor([0, len(present) - 1])
        first, last = int(index[0]), int(index[-1])
        length = max(length, last - first + 1) if bool(present.any()) else length
        start = (first + last + 1 - length) // 2
        pads += [-start, start + length - len(present)]
    return pads


def filled_slices(slices: Tensor, *, organ_channel: bool) -> Tensor:
    """Which of `[D, C, H, W]` slices show anything, bool `[D]`: more than one value, and some organ.

    Args:
        slices: image channels, and the organ mask as the last one with `organ_channel`.
        organ_channel: whether there is one.
    """
    image = slices[:, :-1] if organ_channel else slices
    filled = (image != image[:, :, :1, :1]).flatten(1).any(dim=1)
    return filled & (slices[:, -1] > 0.5).flatten(1).any(dim=1) if organ_channel else filled


def axial(volume: Tensor) -> Tensor:
    """`[C, H, W, D]` MetaTensor flipped and permuted (never resampled) to LPS: the last axis runs upwards."""
    return Orientation(axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(volume)


def file_of(image: Any) -> str:
    """The file that a `MetaTensor` was read from, for messages."""
    return str(image.meta.get("filename_or_obj", "the image")) if isinstance(image, MetaTensor) else "the image"


def spacing_of(image: Any, default: float = 1.0) -> tuple[float, float, float]:
    """Millimeters between voxels along the three axes of a `MetaTensor`; `default` for a plain tensor.

    To five digits: what headers round, and an oblique affine always does, decides nothing. Distances in a mask are
    multiples of the spacing, so that 2.9999998 in place of 3 would move its edge by a voxel.
    """
    if isinstance(image, MetaTensor):
        x, y, z = (float(f"{float(s):.5g}") for s in image.pixdim)
        return x, y, z
    return default, default, default


def as_array(tensor: Any) -> np.ndarray:
    """A numpy array of a tensor on any device, or of anything that numpy takes."""
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def meta_tensor(volume: Volume) -> MetaTensor:
    """`[C, H, W, D]` float32 on the volume's grid, as MONAI's `LoadImage` gives it."""
    array = volume.array.astype(np.float32)
    array = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    meta = {
        MetaKeys.ORIGINAL_AFFINE: volume.affine,
        MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[1:]),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        "filename_or_obj": volume.path,
    }
    affine = torch.as_tensor(volume.affine, dtype=torch.float64)
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(array)), affine=affine, meta=meta)


def like_image(image: Any, array: np.ndarray) -> Tensor:
    """A tensor on the image's grid, so that inverting the preprocessing can bring it back."""
    tensor = torch.as_tensor(array)
    return MetaTensor(tensor, meta=dict(image.meta)) if isinstance(image, MetaTensor) else tensor
