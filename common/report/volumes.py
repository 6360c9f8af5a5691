"""A case's volumes for the page: cropped to where the heatmap says something, 8 bits, gzipped NIfTI as text."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage as ndi

from ..images import mask_on_grid, read_labels, read_volume
from ..images.geometry import axis_of_slices
from .levels import bounding_box, heat_levels

MARGIN_MM = 8.0  # around the organ


@dataclass(frozen=True)
class CaseVolumes:
    """What a run left of a case, and what it was made from, on the scan's own grid.

    Attributes:
        affine: `[4, 4]`, RAS+ mm.
        heat: `[H, W, D]` float, None where no heatmap was saved.
        mask: bool, None where no mask was saved.
        truth: bool, where a ground-truth mask is known.
        image: the first channel, where the scan is known.
    """

    affine: np.ndarray
    heat: np.ndarray | None = None
    mask: np.ndarray | None = None
    truth: np.ndarray | None = None
    image: np.ndarray | None = None

    @property
    def ml(self) -> float:
        """Milliliters of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


def read_case(folder: Path, case: str, files: Mapping[str, Any]) -> CaseVolumes | None:
    """Read a case's results, and its truth; None where neither heatmap nor mask was saved as NIfTI.

    Args:
        folder: of the run.
        case: its name.
        files: `label`, the ground-truth mask, where there is one that may be read.

    Raises:
        ValueError: a file cannot be read, or the truth lies on another grid.
    """
    paths = {key: folder / f"{case}_{end}.nii.gz" for key, end in (("heat", "heatmap"), ("mask", "seg"))}
    found = {key: read_volume(path) for key, path in paths.items() if path.is_file()}
    if not found:
        return None
    first = next(iter(found.values()))
    truth = None
    if (label := files.get("label")) and Path(label).exists():
        grid = (first.array.shape[:3], first.affine)
        truth = mask_on_grid(read_labels(label), *grid, image=first.path).array > 0
    return CaseVolumes(
        affine=first.affine,
        heat=found["heat"].array.astype(np.float32) if "heat" in found else None,
        mask=found["mask"].array > 0 if "mask" in found else None,
        truth=truth,
    )


def read_image(files: Mapping[str, Any]) -> np.ndarray | None:
    """The scan of a case, its first channel; None where it is not known, or lies no longer there."""
    images = files.get("image") or []
    path = images if isinstance(images, str) else next(iter(images), None)
    if path is None or not (Path(path).exists() or Path(path).parent.is_dir()):
        return None
    try:
        array = read_volume(path, dicom_geometry=files.get("dicom_geometry")).array
    except FileNotFoundError:
        return None
    return (array[..., 0] if array.ndim == 4 else array).astype(np.float32)


def gray_levels(image: np.ndarray) -> np.ndarray:
    """The image as uint8, black at its 1st percentile, white at its 99.8th, as in the montage."""
    low, high = np.percentile(image.ravel(order="K"), [1, 99.8])
    return (255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).round().astype(np.uint8)


def outlined(mask: np.ndarray, axis: int) -> np.ndarray:
    """The voxels of a mask at its edge, seen along an axis: thick slices are not filled."""
    cross = np.expand_dims(ndi.generate_binary_structure(2, 1), axis)
    return mask & ~ndi.binary_erosion(mask, cross)


def reduction(shape: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, int, int]:
    """By how much each axis is reduced, the finest one first, until `most` voxels are left."""
    factors = np.ones(3, dtype=int)
    while np.prod(-(-np.asarray(shape) // factors)) > most:
        factors[(np.asarray(spacing) * factors).argmin()] *= 2
    x, y, z = factors.tolist()
    return x, y, z


def embedded(volumes: CaseVolumes, stops: np.ndarray, *, most: int) -> dict[str, Any]:
    """Volumes of a case for the page.

    Args:
        volumes: with an image.
        stops: thresholds of the heat levels.
        most: voxels; larger volumes are shown coarser (means of the image, maxima of heat and masks).

    Returns:
        `image`, `heat`, `mask`, `truth`: base64 of gzipped NIfTI, those that there are; masks as their edges. `shape`,
        and `coarser`, by how much.
    """
    assert volumes.image is not None
    shown: np.ndarray = np.zeros(volumes.image.shape, dtype=bool)
    for mask in (volumes.mask, volumes.truth):
        shown |= mask if mask is not None else False
    if volumes.heat is not None:
        shown |= volumes.heat > np.nanmin(volumes.heat)
    spacing = nib.affines.voxel_sizes(volumes.affine)
    thick = int(spacing.argmax()) if spacing.max() > 1.5 * spacing.min() else axis_of_slices(volumes.affine)
    box = bounding_box(shown, [round(MARGIN_MM / side) for side in spacing])
    factors = reduction([s.stop - s.start for s in box], spacing, most)
    arrays: dict[str, np.ndarray] = {"image": _coarser(gray_levels(volumes.image[box]), factors, np.mean)}
    if volumes.heat is not None:
        arrays["heat"] = _coarser(heat_levels(volumes.heat[box], stops), factors, np.max)
    for name, mask in (("mask", volumes.mask), ("truth", volumes.truth)):
        if mask is not None:
            arrays[name] = outlined(_coarser(mask[box], factors, np.max).astype(bool), thick)
    place = np.eye(4)
    place[:3, :3] = np.diag(factors)
    place[:3, 3] = [s.start + (f - 1) / 2 for s, f in zip(box, factors, strict=True)]
    texts: dict[str, Any] = {name: encoded(array, volumes.affine @ place) for name, array in arrays.items()}
    return texts | {"focus": _focus(volumes, thick), "coarser": max(factors)}


def _focus(volumes: CaseVolumes, axis: int) -> list[float]:
    """Where to look first, RAS mm: the middle of the mask, the heat or the scan in the slice with most of it."""
    weights = next((v for v in (volumes.mask, _hottest(volumes.heat)) if v is not None and v.any()), None)
    if weights is None:
        assert volumes.image is not None
        weights = np.ones(volumes.image.shape, dtype=bool)
    others = tuple(a for a in range(3) if a != axis)
    z = int(weights.sum(axis=others).argmax())
    plane = np.argwhere(np.moveaxis(weights, axis, 0)[z]).mean(axis=0)
    voxel = np.insert(plane.round(), axis, z)  # its center, from which keys step
    return [round(float(v), 2) for v in nib.affines.apply_affine(volumes.affine, voxel)]


def _hottest(heat: np.ndarray | None) -> np.ndarray | None:
    """The hottest tenth of the range."""
    if heat is None:
        return None
    low, high = np.nanmin(heat), np.nanmax(heat)
    return heat > high - 0.1 * (high - low)


def _coarser(array: np.ndarray, factors: tuple[int, int, int], function: Any) -> np.ndarray:
    if max(factors) == 1:
        return array.astype(np.uint8)
    from skimage.measure import block_reduce  # slow to import, and for large volumes only

    return block_reduce(array, factors, function).astype(np.uint8)


def encoded(array: np.ndarray, affine: np.ndarray) -> str:
    """Base64 of a gzipped NIfTI file; the same text for the same array."""
    image = nib.Nifti1Image(np.asarray(array, dtype=np.uint8), affine)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=9, mtime=0)).decode()


def decoded(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of what `encoded` wrote."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    return np.asarray(image.dataobj), image.affine
