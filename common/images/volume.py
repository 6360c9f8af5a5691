"""An array with its place in the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Volume:
    """An image and its place.

    Attributes:
        array: `[H, W, D]`, or `[H, W, D, C]` with channels, in the file's own order of axes.
        affine: `[4, 4]` from voxel indices to RAS+ millimeters.
        path: the file, or the folder of a DICOM series.
        warnings: what is implausible about it without being certainly wrong.
    """

    array: np.ndarray
    affine: np.ndarray
    path: str
    warnings: tuple[str, ...] = ()
