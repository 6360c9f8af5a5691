"""Scans and masks from files: an array, and where it lies. Everything that reads a volume reads it here."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from ..files import PathLike
from .geometry import check_affine, check_one_grid, in_axes_of, nifti_affine
from .pictures import is_picture, picture_grid, read_picture
from .volume import Volume

OTHERS = (".mha", ".mhd", ".nrrd", ".nhdr")  # read by ITK
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def is_dicom(path: PathLike) -> bool:
    """Whether an image's path names a DICOM series: its folder, or `<folder>/<SeriesInstanceUID>`."""
    path = Path(path)
    return path.is_dir() or (not path.exists() and path.parent.is_dir() and _UID.fullmatch(path.name) is not None)


def read_volume(path: PathLike, *, dicom_geometry: str | None = None) -> Volume:
    """Read a NIfTI file (or `.mha`, `.nrrd`), a DICOM series, or a picture (PNG, JPEG, TIFF) as one slice.

    Args:
        path: a file, the folder that holds one series, or `<folder>/<SeriesInstanceUID>`.
        dicom_geometry: `assume_axial` takes series without positions, see `common.images.dicom`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be decoded, is in color or complex, or lies nowhere; the message names the file.
    """
    path = str(path)
    if is_dicom(path):
        from .dicom import read_series  # needs the extra [dicom]

        return read_series(path, dicom_geometry=dicom_geometry)
    if path.lower().endswith(OTHERS):
        return _read_by_itk(path)
    if is_picture(path):
        return read_picture(path)
    image = _load(path)
    affine, warnings = _place(image, path)
    _check_type(image.get_data_dtype(), path)
    try:
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a complete NIfTI file") from error
    return Volume(_squeezed(array), affine, path, warnings)


def read_grid(path: PathLike, *, dicom_geometry: str | None = None) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape `(H, W, D)` and affine of an image, from headers alone where the format allows it."""
    if is_dicom(path):
        from .dicom import read_series_grid

        return read_series_grid(str(path), dicom_geometry=dicom_geometry)
    if str(path).lower().endswith(OTHERS):
        volume = _read_by_itk(str(path))
        return volume.array.shape[:3], volume.affine
    if is_picture(path):
        return picture_grid(path)
    image = _load(str(path))
    return image.shape[:3], _place(image, str(path))[0]


def on_grid(volume: Volume, shape: Sequence[int], affine: np.ndarray, *, image: str) -> Volume:
    """A mask, or a second modality, on the voxels of its image: flipped and permuted as needed, never resampled.

    Args:
        volume: what is brought there.
        shape, affine: of the image, see `read_grid`.
        image: its path, for the message.

    Raises:
        ValueError: it lies on another grid (corners further apart than 0.1 voxel), with both affines.
    """
    array, moved = in_axes_of(volume.array, volume.affine, affine)
    check_one_grid(array.shape[:3], moved, shape, affine, what=f"{volume.path} and {image}")
    return replace(volume, array=array, affine=np.asarray(affine))


def mask_on_grid(mask: Volume, shape: Sequence[int], affine: np.ndarray, *, image: str) -> Volume:
    """`on_grid` of a mask, which has no channels.

    Raises:
        ValueError: it is not 3D, or lies on another grid.
    """
    if mask.array.ndim != 3:
        raise ValueError(f"{mask.path}: expected a 3D mask, got the shape {list(mask.array.shape)}")
    return on_grid(mask, shape, affine, image=image)


def read_mask(path: PathLike, image: PathLike, *, dicom_geometry: str | None = None) -> Volume:
    """The mask of an image, on the image's voxels.

    Raises:
        ValueError: it is not 3D, or lies on another grid.
    """
    mask = read_volume(path, dicom_geometry=dicom_geometry)
    return mask_on_grid(mask, *read_grid(image, dicom_geometry=dicom_geometry), image=str(image))


def _load(path: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        image: Any = nib.load(path)
    except (ImageFileError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a complete NIfTI file") from error
    return image


def _place(image: Any, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if isinstance(image.header, nib.Nifti1Header):
        return nifti_affine(image.header, path)
    return check_affine(image.affine, image.shape[:3], path), ()


def _check_type(dtype: np.dtype, path: str) -> None:
    kinds = {"V": "in color (RGB)", "c": "complex"}
    if dtype.kind in kinds:
        raise ValueError(
            f"{path}: its voxels are {kinds[dtype.kind]}, of the type {dtype}; expected one real number each: convert "
            "it to gray values, or to its magnitude"
        )


def _squeezed(array: np.ndarray) -> np.ndarray:
    """Without trailing axes of length 1, and channels as the fourth axis (NIfTI keeps vectors in its fifth)."""
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _read_by_itk(path: str) -> Volume:
    from monai.transforms import LoadImage

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        image: Any = LoadImage(reader="ITKReader", dtype=None)(path)
    except Exception as error:  # MONAI wraps ITK's errors in its own
        raise ValueError(f"{path}: cannot be read by ITK; expected a complete .mha or .nrrd file") from error
    affine = check_affine(image.affine.numpy(), image.shape[:3], path)
    return Volume(_squeezed(image.numpy()), affine, path)
