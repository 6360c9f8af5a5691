"""Scans and masks from files: an array, and where it lies. Everything that reads a volume reads it here."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError, SerializableImage
from nibabel.spatialimages import HeaderDataError

from ..files import PathLike
from .geometry import LPS_TO_RAS, check_affine, check_one_grid, in_axes_of, nifti_affine
from .pictures import is_picture, picture_grid, read_picture
from .volume import Volume

DICOM_FILES = (".dcm", ".ima")
OTHERS = (".mha", ".mhd", ".nrrd", ".nhdr")  # read by ITK
_BY_LINE = re.MULTILINE | re.IGNORECASE
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
# What nibabel raises of a file that is none, is cut off, or whose header says what cannot be.
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    OverflowError,
    MemoryError,
    zlib.error,
)


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
    if path.lower().endswith(DICOM_FILES):
        raise ValueError(f"{path} is one file of DICOM: an image is the folder of its series")
    image = _load(path)
    affine, warnings = _place(image, path)
    _check_type(image.get_data_dtype(), path)
    try:
        array = _values(image, path)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return Volume(_squeezed(array), affine, path, warnings)


def read_labels(path: PathLike, *, dicom_geometry: str | None = None) -> Volume:
    """Read a mask: as `read_volume`, or a DICOM Segmentation, which `mask_on_grid` brings to the whole grid."""
    if str(path).lower().endswith(DICOM_FILES):
        from .dicom_seg import read_segmentation  # needs the extra [dicom]

        return read_segmentation(str(path))
    return read_volume(path, dicom_geometry=dicom_geometry)


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
    what = f"{volume.path} and {image}"
    check_one_grid(array.shape[:3], moved, shape, affine, what=what, header=volume.affine)
    return replace(volume, array=array, affine=np.asarray(affine))


def mask_on_grid(
    mask: Volume, shape: Sequence[int], affine: np.ndarray, *, image: str, probabilities: bool = False
) -> Volume:
    """`on_grid` of a mask, which has no channels.

    Args:
        mask: of `read_labels`.
        shape, affine, image: see `on_grid`.
        probabilities: whether values between 0 and 1 mean something.

    Raises:
        ValueError: it is not 3D, has values that no mask has, or lies on another grid.
    """
    if mask.array.ndim != 3:
        color = " (in color? A mask's gray values are its labels)" if is_picture(mask.path) else ""
        raise ValueError(f"{mask.path}: expected a 3D mask, got the shape {list(mask.array.shape)}{color}")
    if not probabilities:
        mask = _checked_labels(mask)
    if mask.path.lower().endswith(DICOM_FILES):
        from .dicom_seg import on_image

        mask = on_image(mask, shape, affine, image=image, of_series=is_dicom(image))
    placed = on_grid(mask, shape, affine, image=image)
    corners = placed.array[tuple(slice(None, None, max(n - 1, 1)) for n in placed.array.shape)]
    # A single slice, cut out of a larger image, may be lesion all over.
    if not probabilities and corners.min() > 0 and (shape[2] > 1 or 0 < placed.array.min() < placed.array.max()):
        raise ValueError(f"{mask.path}: every corner of the mask is marked (inside out?); write 0 where nothing is")
    return placed


def _checked_labels(mask: Volume) -> Volume:
    """A mask without fractions; refuse those in which what is above 0 is more than what was marked.

    Of several labels, what interpolation has left near a whole number (1e-4 for 0) becomes that number.
    """
    if not np.isfinite(mask.array).all():
        raise ValueError(f"{mask.path}: a mask with NaN or infinite values; write 0 where nothing is marked")
    if mask.array.min() < -1e-3 and (mask.array == 0).any():
        raise ValueError(
            f"{mask.path}: a mask with values of {mask.array.min():g} beside 0: marked (255 in eight bits with a sign "
            "is -1), or not? Write 0 where nothing is marked, and more than 0 where something is"
        )
    marked = mask.array[mask.array > 0]
    if not marked.size or marked.min() == marked.max():
        return mask
    if np.abs(marked - np.rint(marked)).max() > 1e-3:
        found = f"{marked.min():.3g} to {marked.max():.3g}"
        raise ValueError(
            f"{mask.path}: a mask with fractions ({found}): probabilities? Write whole labels, 0 elsewhere"
        )
    if mask.path.lower().endswith((".jpg", ".jpeg")):
        raise ValueError(f"{mask.path}: a mask whose edges JPEG has blurred; threshold it, and write it as PNG")
    return replace(mask, array=np.rint(mask.array))


def read_mask(path: PathLike, image: PathLike, *, dicom_geometry: str | None = None) -> Volume:
    """The mask of an image, on the image's voxels.

    Raises:
        ValueError: it is not 3D, or lies on another grid.
    """
    mask = read_labels(path, dicom_geometry=dicom_geometry)
    return mask_on_grid(mask, *read_grid(image, dicom_geometry=dicom_geometry), image=str(image))


def _load(path: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        image: Any = nib.load(path)
        image.get_data_dtype()
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    start: Any = getattr(image.dataobj, "offset", None)
    if isinstance(image, nib.Nifti1Image) and start < image.header.single_vox_offset:
        raise ValueError(
            f"{path}: its header says that the voxels begin within it, at byte {start} (vox_offset); write "
            f"{image.header.single_vox_offset}"
        )
    return image


def _unreadable(path: str, error: Exception) -> ValueError:
    """The error, in one line, of a file that is no NIfTI file, or is damaged."""
    ending = re.search(r"(\.\w+)?(\.gz)?$", path, re.IGNORECASE)
    reason = " ".join(str(error).split()) or type(error).__name__
    small = ", its ending in small letters" if ending and ending[0] != ending[0].lower() else ""
    return ValueError(f"{path}: cannot be read ({reason}); expected a complete NIfTI file{small}")


def _values(image: Any, path: str) -> np.ndarray:
    if not path.lower().endswith(".gz") or not isinstance(image, SerializableImage):
        array = np.asanyarray(image.dataobj)
        if isinstance(image, nib.AnalyzeImage):  # other formats have more behind their voxels
            voxels, start = str(image.file_map["image"].filename), getattr(image.dataobj, "offset", 0)
            size = 0 if voxels.lower().endswith((".gz", ".bz2")) else os.path.getsize(voxels)
            _check_rest(image, size - start - _bytes(image.shape, image))
        return array
    with gzip.open(path) as file:
        stream: Any = type(image).from_stream(file)
        array = np.asanyarray(stream.dataobj)
        rest = 0
        while part := file.read(1 << 20):  # to the checksum, which nibabel does not reach: most damage shows there
            rest += len(part)
    _check_rest(image, rest)
    return array


def _check_rest(image: Any, rest: int) -> None:
    """Refuse a file that goes on for a slice and more behind its last voxel."""
    if rest >= max(_bytes(image.shape[:2], image), 1):
        raise ValueError(f"{rest} bytes follow its last voxel: more slices, or longer numbers, than its header says")


def _bytes(shape: Sequence[int], image: Any) -> int:
    return math.prod(shape) * image.get_data_dtype().itemsize


def _place(image: Any, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    header, warnings = image.header, []
    if isinstance(header, nib.analyze.AnalyzeHeader) and not ("sform_code" in header and header["sform_code"] > 0):
        _check_stored_spacing(image, path)
    if isinstance(header, nib.Nifti1Header):
        return nifti_affine(header, path)
    if isinstance(image, nib.AnalyzeImage) and not Path(path).with_suffix(".mat").is_file():
        warnings.append("Analyze files do not say which side is left: the orientation is a guess")
    return check_affine(image.affine, image.shape[:3], path), tuple(warnings)


def _check_stored_spacing(image: Any, path: str) -> None:
    """Refuse a spacing of 0 where pixdim alone tells it: nibabel makes 1 mm of it."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj() as file:
        stored = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    if any(size == 0 and length > 1 for size, length in zip(stored, image.shape, strict=False)):
        raise ValueError(
            f"{path}: no spacing in the header (pixdim {stored.tolist()}); write the one of the scan into it"
        )


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
    from monai.data import ITKReader

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        reader = ITKReader()
        array, meta = reader.get_data(reader.read(path))
    except Exception as error:  # ITK has errors of its own
        raise ValueError(
            f"{path}: cannot be read by ITK; expected a complete .mha or .nrrd file, its ending in small letters, and "
            "of .mhd and .nhdr the data beside it"
        ) from error
    _check_stored(path)
    if array.ndim < 3:
        raise ValueError(f"{path}: expected a 3D image, got shape {list(array.shape)}")
    affine = check_affine(np.asarray(meta["affine"]), array.shape[:3], path)
    plain = not affine[:3, 3].any() and np.array_equal(_turns(affine), _turns(LPS_TO_RAS))
    lost = "spacing, " if np.array_equal(np.abs(affine), np.eye(4)) else ""
    doubt = f"{lost}orientation and origin are those of a file that does not say any: they may have been lost"
    return Volume(_squeezed(array), affine, path, (doubt,) if plain else ())


def _turns(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / nib.affines.voxel_sizes(affine)


def _check_stored(path: str) -> None:
    """Refuse headers that ITK makes millimeters of: without a spacing, with one that is no number, in other units."""
    with open(path, "rb") as file:
        header = file.read(1 << 16)
    meta = path.lower().endswith((".mha", ".mhd"))
    spacing = re.search(rb"^\s*(element(spacing|size)\s*=|spacings:|space directions:)(.*)$", header, _BY_LINE)
    if (meta and not spacing) or (spacing and b"nan" in spacing[3].lower()):
        raise ValueError(
            f"{path}: no spacing in the header, or one that is no number; write the one of the scan into it"
        )
    units = re.search(rb"^space units:(.*)$", header, _BY_LINE)
    named = re.findall(rb'"(.*?)"', units[1]) if units and not meta else []
    if any(name.lower() not in (b"", b"mm", b"millimeter", b"millimeters") for name in named):
        raise ValueError(f"{path}: its unit is {named[0].decode(errors='replace')}; write it in millimeters")
