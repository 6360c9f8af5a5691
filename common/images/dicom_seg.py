"""DICOM Segmentations (SEG) as masks, read by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import PathLike
from .dicom import PLACE
from .dicom_files import find_series, pydicom
from .geometry import LPS_TO_RAS, TOLERANCE, check_one_grid, corners, in_axes_of
from .volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


def read_segmentation(path: str) -> Volume:
    """All segments of a DICOM Segmentation: `k` where segment `k` is, fractions as they are.

    Its frames are those in which something is marked; `on_image` places them on the whole image.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no Segmentation, its segments overlap, or its frames form no volume.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        from highdicom.seg import Segmentation, segread
    except ImportError:
        raise ImportError("a mask in DICOM is read by highdicom: pip install 'weakseg-bundles[dicom]'") from None
    try:
        segments = segread(path)
        if segments.get_volume_geometry(allow_missing_positions=True) is None:
            segments = Segmentation.from_dataset(_evened(pydicom().dcmread(path)), copy=False)
        several = len(segments.segment_numbers) > 1  # fractions of several cannot be combined, of one need not
        volume = segments.get_volume(combine_segments=several)
        array = volume.array if several else volume.array[..., 0]
    except Exception as error:  # pydicom and highdicom have many
        raise ValueError(
            f"{path}: cannot be read as a mask ({error}); a mask is NIfTI, or a DICOM Segmentation whose segments do "
            "not overlap"
        ) from error
    return Volume(np.asarray(array), LPS_TO_RAS @ np.asarray(volume.affine, dtype=float), str(path))


def _evened(data: Dataset) -> Dataset:
    """A Segmentation with its frames moved to their places in an even stack, which highdicom asks for.

    It allows 0.01 of their distance where `read_series` takes 0.1, since many series round their positions; and it
    writes no SpacingBetweenSlices for such a series.

    Raises:
        ValueError: they lie less evenly than the slices of a series may.
    """
    shared = data.SharedFunctionalGroupsSequence[0]
    planes = [frame.PlanePositionSequence[0] for frame in data.PerFrameFunctionalGroupsSequence]
    positions = np.array([plane.ImagePositionPatient for plane in planes], dtype=np.float64)
    directions = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=np.float64)
    along = positions @ np.cross(directions[:3], directions[3:])
    heights, of_frame = np.unique(along.round(4), return_inverse=True)
    gaps = np.diff(heights)
    # Each gap by itself, since what they are off adds up; those of a slice's distance tell it.
    places = np.concatenate([[0], np.rint(gaps / gaps[gaps < 1.5 * gaps.min()].mean()).cumsum()])
    first, last = positions[along.argmin()], positions[along.argmax()]
    distance = float(heights[-1] - heights[0]) / places[-1]
    if np.abs(heights - heights[0] - places * distance).max() > 2 * PLACE * distance:  # between two that are off
        raise ValueError("its frames are unevenly spaced: convert it to NIfTI on the image's grid")
    for plane, place in zip(planes, places[of_frame], strict=True):
        plane.ImagePositionPatient = (first + (last - first) * place / places[-1]).round(6).tolist()
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = round(distance, 6)
    return data


def on_image(mask: Volume, shape: Sequence[int], affine: np.ndarray, *, image: str, of_series: bool) -> Volume:
    """A Segmentation on the whole grid of its image, 0 where it has no frames.

    Args:
        mask: of `read_segmentation`.
        shape, affine: of the image.
        image: its path.
        of_series: whether that is a DICOM series, which has a frame of reference.

    Raises:
        ValueError: it refers to another frame of reference than the series; or lies elsewhere, or on another grid.
    """
    own = _frame_of_reference(mask.path)
    theirs = _frame_of_reference(find_series(image).files[0]) if of_series else ""
    if own and theirs and own != theirs:
        raise ValueError(
            f"{mask.path} lies in another frame of reference ({own}) than {image} ({theirs}): is it of another series?"
        )
    array, moved = in_axes_of(mask.array, mask.affine, affine)
    voxels = np.linalg.inv(affine) @ moved
    first = np.rint(voxels[:3, 3]).astype(int)
    last = first + array.shape
    wanted = corners(array.shape, np.eye(4)) + first
    apart = np.linalg.norm(corners(array.shape, voxels) - wanted, axis=1).max()
    if apart > TOLERANCE or (first < 0).any() or (last > np.asarray(shape)).any():
        what = f"{mask.path} and {image}"
        check_one_grid(array.shape, moved, shape, affine, what=what, header=mask.affine)
    whole = np.zeros(tuple(shape), array.dtype)
    whole[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = array
    return replace(mask, array=whole, affine=np.asarray(affine))


def _frame_of_reference(file: PathLike) -> str:
    """FrameOfReferenceUID of a file; empty where there is none."""
    data = pydicom().dcmread(file, stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"], force=True)
    return str(data.get("FrameOfReferenceUID") or "")
