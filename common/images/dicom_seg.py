"""DICOM Segmentations (SEG) as masks, read by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import PathLike
from .dicom_files import find_series, pydicom
from .geometry import LPS_TO_RAS, TOLERANCE, check_one_grid, corners, in_axes_of
from .volume import Volume


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
        from highdicom.seg import segread
    except ImportError:
        raise ImportError("a mask in DICOM is read by highdicom: pip install 'weakseg-bundles[dicom]'") from None
    try:
        segments = segread(path)
        several = len(segments.segment_numbers) > 1  # fractions of several cannot be combined, of one need not
        volume = segments.get_volume(combine_segments=several)
        array = volume.array if several else volume.array[..., 0]
    except Exception as error:  # pydicom and highdicom have many
        raise ValueError(
            f"{path}: cannot be read as a mask ({error}); a mask is NIfTI, or a DICOM Segmentation whose segments do "
            "not overlap"
        ) from error
    return Volume(np.asarray(array), LPS_TO_RAS @ np.asarray(volume.affine, dtype=float), str(path))


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
