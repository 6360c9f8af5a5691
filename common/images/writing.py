"""Results as NIfTI, placed exactly where their image is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..files import PathLike, atomic_path, writing


def write_nifti(path: PathLike, array: np.ndarray, affine: np.ndarray, *, like: PathLike | None = None) -> None:
    """Write a volume as NIfTI; with `like`, under the header of that image, so that every reader places both alike.

    Of a NIfTI image everything is kept but what describes the voxels' values: sform and qform with their codes,
    pixdim, units. Extensions are left out, since they may name the patient.

    Args:
        path: `.nii.gz` or `.nii`.
        array: `[H, W, D]`.
        affine: RAS+ millimeters; what counts where `like` is no NIfTI file.
        like: the image that the array belongs to.
    """
    header = _header(like)
    if header is None:
        image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
        image.set_sform(image.affine, code="scanner")
        image.set_qform(image.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    else:
        header.set_data_dtype(array.dtype)
        header.set_data_shape(array.shape)
        header.set_slope_inter(1.0, 0.0)
        header["cal_min"] = header["cal_max"] = 0.0
        header.set_intent("none")
        header.extensions.clear()
        # Without an affine nibabel leaves both forms as the header has them.
        image = (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image)(array, None, header)
    with writing(path), atomic_path(path) as temporary:
        nib.save(image, temporary)


def _header(like: PathLike | None) -> Any:
    """A copy of the header of a NIfTI file; None for other formats."""
    if like is None or not Path(like).is_file():
        return None
    try:
        header = nib.load(like).header
    except nib.filebasedimages.ImageFileError:
        return None
    if isinstance(header, nib.nifti1.Nifti1PairHeader) and not header.is_single:  # of two files, `.hdr` and `.img`
        header = nib.Nifti1Header(header.binaryblock, header.endianness, check=False)
        header["magic"], header["vox_offset"] = header.single_magic, 0
    return header.copy() if isinstance(header, nib.Nifti1Header) else None
