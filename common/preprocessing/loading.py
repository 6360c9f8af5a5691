"""A case from its files: image, organ mask and ground truth on one grid, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from ..images import Volume, file_of, mask_on_grid, meta_tensor, on_grid, read_labels, read_volume
from ..images.geometry import axis_of_slices
from ..images.pictures import is_picture
from ..images.wrapped import MOST_SLICES, doubt_about_ends
from .stack import doubts_about_slices

TILTED = 30.0  # degrees; head scans along the hippocampus or the skull base stay below
SHEARED = 1.0  # degrees
MOST_LABELS = 20
FEWEST_STEPS = 1000  # of single precision between the lowest and the highest value


class LoadCased(Transform):
    """Read the files of a case; geometry is decided here, once, for everything that follows.

    The image is a path, or a list of them, one per modality. Masks under `organ` and `label`, where there are any, are
    brought to the axes of the image (flipped and permuted, never resampled) and get its affine. The image as it
    was read stays under `scan`, for pictures; what is doubtful about the files goes to `warnings`, one text.

    Args:
        channels: expected number of the image's channels.
        dicom_geometry: `assume_axial` takes DICOM series without positions, see `common.images.read_volume`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read; see `check_image`; two modalities are the same image; files of the case lie
            on different grids; or the image is a mask. The message names the file.
    """

    masks = ("organ", "label")

    def __init__(self, *, channels: int, dicom_geometry: str | None = None) -> None:
        self.channels = channels
        self.dicom_geometry = dicom_geometry

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        files = data["image"] if isinstance(data["image"], list | tuple) else [data["image"]]
        first = self._read(files[0])
        grid = (first.array.shape[:3], first.affine)
        others = [on_grid(self._read(file), *grid, image=first.path) for file in files[1:]]
        check_different([first, *others])
        image = torch.cat([meta_tensor(volume) for volume in (first, *others)])
        check_image(image, channels=self.channels)
        values = _few_values(image)
        if len(values) == 2:
            raise ValueError(
                f"{first.path}: every voxel is {values[0]:g} or {values[1]:g}: a mask in the place of an image? Name "
                "the scan"
            )
        warnings = "; ".join(dict.fromkeys(_doubts([first, *others], values)))
        data |= {"image": image, "scan": image.clone(), "warnings": warnings}
        for key in self.masks:
            if data.get(key) is not None:
                mask = read_labels(data[key], dicom_geometry=self.dicom_geometry)
                on_image = mask_on_grid(mask, *grid, image=first.path, probabilities=key == "organ")
                data[key] = meta_tensor(on_image)
        return data

    def _read(self, path: Any) -> Volume:
        return read_volume(path, dicom_geometry=self.dicom_geometry)


def _doubts(modalities: Sequence[Volume], few_values: Sequence[float]) -> Iterator[str]:
    """What is doubtful about the images of a case; `doubt_about_type` may refuse one."""
    for volume in modalities:
        texts = (*volume.warnings, doubt_about_type(volume), *_stack(volume))
        yield from (f"{os.path.basename(volume.path)}: {text}" for text in texts if text)
    if few_values:
        yield f"no values but {', '.join(f'{v:g}' for v in few_values)}: labels in the place of an image?"
    if (degrees := _tilt(modalities[0].affine)) > TILTED:
        yield f"tilted by {degrees:.0f} degrees: what is taken for axial slices lies askew in the patient"
    if (degrees := _shear(modalities[0].affine)) > SHEARED:
        yield f"sheared: its axes are {degrees:.0f} degrees from square; resample it to a straight grid"


def _stack(volume: Volume) -> list[str]:
    """What is doubtful about the axial slices of a volume, or of its first channel."""
    one = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    return doubts_about_slices(np.moveaxis(one, axis_of_slices(volume.affine), -1))


def _tilt(affine: np.ndarray) -> float:
    """Degrees between the patient's long axis and the axis of the image that is taken for it."""
    along = affine[:3, axis_of_slices(affine)]
    return float(np.rad2deg(np.arccos(min(abs(along[2]) / np.linalg.norm(along), 1.0))))


def _shear(affine: np.ndarray) -> float:
    """By how many degrees the angle between two axes differs from a right one, at most."""
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    return float(np.rad2deg(np.arcsin(np.abs(axes.T @ axes - np.eye(3)).max().clip(max=1.0))))


def _few_values(image: Tensor) -> list[float]:
    """The values of an image that are 0 and so few others that no scanner has made it; empty where there are more.

    A single slice may be nearly black, and beside a scan a mask may be a channel of its own.
    """
    if image.shape[0] > 1 or min(image.shape[1:]) < 2:
        return []
    low, high = image.aminmax()
    if ((image == low) | (image == high)).all():
        return [float(low), float(high)] if 0 in (low, high) else []
    if high - low > MOST_LABELS or not torch.equal(image, image.round()):
        return []
    values = [float(value) for value in torch.unique(image)]
    return values if 0 in values else []


def check_different(modalities: Sequence[Volume]) -> None:
    """Refuse one image in the place of two modalities: the same file, or the same values.

    Raises:
        ValueError: naming both.
    """
    for one, other in combinations(modalities, 2):
        if one.array.shape == other.array.shape and np.array_equal(one.array, other.array):
            raise ValueError(
                f"{one.path} and {other.path} are the same image, given as two modalities: is a pattern wrong?"
            )


def doubt_about_type(volume: Volume) -> str:
    """Why values seem not to fit into the type that they are stored in; empty where they do, or nothing tells.

    Args:
        volume: as it was read; what is no whole number of one or two bytes, or a picture, is not looked at.

    Raises:
        ValueError: they certainly do not fit.
    """
    array = volume.array
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2 or is_picture(volume.path):
        return ""
    info = np.iinfo(array.dtype)
    return doubt_about_ends(
        array[:, :, :: -(-array.shape[2] // MOST_SLICES)],
        (int(info.min), int(info.max)),
        what=str(array.dtype),
        path=volume.path,
        advice="make it anew in a larger type (or are bytes swapped, or letters or a frame burned in?)",
    )


def check_image(image: Tensor, *, channels: int) -> None:
    """Refuse an image that a network would turn into nonsense.

    Args:
        image: `[C, H, W, D]`; a `MetaTensor` knows its axes, and its file for the message; else slices are the last.
        channels: expected number of channels.

    Raises:
        ValueError: not 3D, axial slices of a single row, another number of channels, NaN or infinite values, nothing
            but one value, or values too far from 0 to be told apart in single precision.
    """
    path = file_of(image)
    if image.ndim != 4 or not image.numel():
        raise ValueError(f"{path}: expected a 3D image, got shape {list(image.shape[1:])}")
    affine = image.affine.numpy() if isinstance(image, MetaTensor) else np.eye(4)
    slices = [n for n, axis in zip(image.shape[1:], nib.io_orientation(affine)[:, 0], strict=True) if axis != 2]
    if min(slices) < 2:
        raise ValueError(f"{path}: expected a 3D image, got axial slices of {slices[0]} × {slices[1]} voxels")
    if image.shape[0] != channels:
        found = image.shape[0]
        colors = " (colors, or a fourth axis)" if found > 1 else ""
        raise ValueError(
            f"{path}: expected {channels} channel(s), got {found}{colors}; --channels {found} trains on such images, "
            "and weights take as many as they were trained on. Several modalities: give one image_pattern per "
            "modality, in the order of metadata.json"
        )
    low, high = (float(value) for value in image.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{path}: holds NaN or infinite values; replace them before")
    if low == high:
        raise ValueError(f"{path}: every voxel is {low:g}, there is nothing to see")
    if high - low < FEWEST_STEPS * torch.finfo(torch.float32).eps * max(abs(low), abs(high)):
        raise ValueError(
            f"{path}: its values, {low:.9g} to {high:.9g}, are too far from 0 to be told apart in single precision; "
            "subtract what is common to all (scl_inter?)"
        )
