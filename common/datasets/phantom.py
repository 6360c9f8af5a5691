"""The phantom data set: heads with a known lesion, on which a bundle trains and is scored within minutes on a CPU.

Brightness alone does not find the lesion (vessels, choroid plexus and scalp are as bright or brighter, the gain of
each scan differs, a bias field varies within it), and neither does the position of a slice. Size and shape do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..data import Case
from ..files import PathLike, atomic_path

# Names of the images of a case, with the brightness of lesion, vessel and ventricle relative to brain in each.
MODALITIES: dict[str, tuple[float, float, float]] = {
    "flair": (1.5, 1.8, 0.45),
    "t1ce": (1.3, 2.0, 0.5),
    "t2": (1.6, 1.7, 1.7),
    "t1": (0.8, 1.5, 0.5),
}


def _smooth_field(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float] | np.ndarray) -> np.ndarray:
    """Smooth random field of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return (field - field.mean()) / (field.std() + 1e-12)


def _ellipsoid(grid: np.ndarray, center: np.ndarray, radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance from the center in units of the radii: 1 on the surface of the ellipsoid."""
    scaled = [(axis - c) / r for axis, c, r in zip(grid, center, radii, strict=True)]
    return np.sqrt(sum(s**2 for s in scaled))


def _vessels(rng: np.random.Generator, organ: np.ndarray, per_1000: float) -> np.ndarray:
    """Weights in [0, 1] of small bright dots, drawn in every slice that shows the organ, whether lesion or not."""
    weight = np.zeros(organ.shape)
    x, y = np.meshgrid(*(np.arange(n) for n in organ.shape[:2]), indexing="ij")
    for z in range(organ.shape[2]):
        inside = np.argwhere(organ[..., z])
        for _ in range(2 + rng.poisson(per_1000 * len(inside) / 1000) if len(inside) else 0):
            center = inside[rng.integers(len(inside))] + rng.uniform(-0.5, 0.5, 2)
            radius, strength = rng.uniform(1.0, 2.0), rng.uniform(0.75, 1.25)
            for depth in range(z, min(z + int(rng.integers(1, 3)), organ.shape[2])):
                distance = np.hypot(x - center[0], y - center[1])
                dot = strength * np.clip(radius + 0.5 - distance, 0, 1)
                weight[..., depth] = np.maximum(weight[..., depth], dot)
                center = center + rng.uniform(-1, 1, 2)
    return weight * organ


def phantom_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (64, 64, 16),
    *,
    modalities: int = 1,
    lesion: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one head.

    Args:
        rng: source of all randomness.
        shape: voxels along left, posterior and superior; sizes of head and lesion scale with it.
        modalities: number of images, in the order of `MODALITIES`.
        lesion: whether there is one.

    Returns:
        `image` (modalities, x, y, z) float32, zero or more, in arbitrary units; `mask` (x, y, z) bool, the lesion;
        `organ` (x, y, z) bool, the brain. The mask lies within the organ.

    Raises:
        ValueError: a shape too small to hold a head, or an unknown number of modalities.
    """
    if len(shape) != 3 or min(shape[:2]) < 24 or shape[2] < 6:
        raise ValueError(f"shape must be 3D and at least (24, 24, 6); got {tuple(shape)}.")
    if not 1 <= modalities <= len(MODALITIES):
        raise ValueError(f"modalities must lie between 1 and {len(MODALITIES)}; got {modalities}.")
    size = np.array(shape, dtype=float)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))

    # The head reaches the first and the last slice only just, so that these are nearly air.
    center = (size - 1) / 2 + rng.uniform(-1, 1, 3) * size * [0.03, 0.03, 0.02]
    radii = size * [0.38, 0.45, 0.5] * rng.uniform([0.92, 0.92, 0.95], [1.04, 1.04, 1.02])
    head = _ellipsoid(grid, center, radii)
    organ = head < 0.8
    skull, scalp = (head >= 0.8) & (head < 0.9), (head >= 0.9) & (head < 1)

    # Ventricles, and in each a spot of choroid plexus: a bright pair in the middle slices of every head.
    ventricle, plexus = np.zeros(shape, bool), np.zeros(shape)
    for side in (-1, 1):
        middle = center + radii * [side * 0.16, rng.uniform(0.0, 0.1), rng.uniform(-0.05, 0.15)]
        ventricle |= _ellipsoid(grid, middle, radii * [0.09, 0.3, 0.25]) < 1
        spot = _ellipsoid(grid, middle + radii * [side * 0.03, 0.2, 0], [2.0, 2.0, max(1.0, radii[2] * 0.25)])
        plexus = np.maximum(plexus, rng.uniform(0.8, 1.2) * np.clip(2 * (1.25 - spot), 0, 1))

    mask, blend = np.zeros(shape, bool), np.zeros(shape)
    if lesion:
        extent = radii * rng.uniform([0.2, 0.2, 0.32], [0.34, 0.32, 0.48])
        direction = rng.standard_normal(3)
        offset = direction / np.linalg.norm(direction) * rng.uniform(0.2, 0.5)
        ragged = _smooth_field(rng, shape, (2.5, 2.5, 1.0))
        level = 1 - _ellipsoid(grid, center + offset * radii, extent) + 0.18 * ragged
        blend = organ / (1 + np.exp(-level / 0.07))
        parts, count = ndimage.label(blend > 0.5)
        if count > 1:  # a ragged edge may shed crumbs; the lesion is one piece
            largest = 1 + np.argmax(ndimage.sum_labels(blend > 0.5, parts, np.arange(1, count + 1)))
            blend[(parts != largest) & (parts > 0)] = 0
        mask = blend > 0.5

    vessels = np.maximum(_vessels(rng, organ, per_1000=4.0), plexus * organ)
    images = []
    for lesion_level, vessel_level, ventricle_level in list(MODALITIES.values())[:modalities]:
        tissue = np.zeros(shape)
        tissue[organ] = (1 + 0.06 * _smooth_field(rng, shape, (1.5, 1.5, 0.7)))[organ]
        tissue[ventricle & organ] = ventricle_level
        tissue += blend * (lesion_level * rng.uniform(0.92, 1.08) - tissue)
        # A dot on the lesion is as bright as one on brain, so the brightest voxel of a slice gives nothing away.
        tissue = np.maximum(tissue, np.where(vessels > 0, 1 + (vessel_level - 1) * vessels, 0))
        tissue[skull], tissue[scalp] = 0.15, rng.uniform(1.4, 2.2)
        tissue = ndimage.gaussian_filter(tissue, (0.5, 0.5, 0))
        bias = np.exp(0.15 * _smooth_field(rng, shape, size / 4))
        noise = 0.05 * rng.standard_normal((2, *shape))
        images.append(np.hypot(tissue * bias + noise[0], noise[1]) * 100 * np.exp(rng.uniform(-0.7, 0.7)))
    return np.stack(images).astype(np.float32), mask, organ


def _orientation(code: str) -> np.ndarray:
    """nibabel's orientation array of a code such as `LPS`."""
    if len(code) != 3 or not all(set(pair) & set(code) for pair in ("LR", "AP", "IS")):
        raise ValueError(f"axcodes: {code!r} names no orientation; give three letters such as 'LPS' or 'RAS'.")
    return nib.orientations.axcodes2ornt(tuple(code))


def write_phantom(
    out_dir: PathLike,
    *,
    cases: int = 24,
    shape: tuple[int, int, int] = (64, 64, 16),
    spacing: tuple[float, float, float] = (3.0, 3.0, 5.0),
    modalities: int = 1,
    healthy_fraction: float = 0.15,
    axcodes: str | Sequence[str] = "LPS",
    seed: int = 0,
) -> list[Case]:
    """Write a phantom data set as `<case>/<modality>.nii.gz` (float32) and `<case>/mask.nii.gz` (int16).

    Args:
        out_dir: where the case folders go; files of the same name are replaced.
        cases: number of cases.
        shape: voxels along left, posterior and superior.
        spacing: voxel size in mm along the same axes.
        modalities: number of images per case, in the order of `MODALITIES`.
        healthy_fraction: share of the cases without a lesion, rounded.
        axcodes: orientation of the files, e.g. `"RAS"`; given several, the cases take them in turn. Array and
            affine change together, so the head stays where it is.
        seed: the same seed gives the same data.

    Returns:
        Cases with absolute paths, `patient` and `cls` per slice, inferior→superior.

    Raises:
        ValueError: no case, `axcodes` that name no orientation, or as `phantom_case`.
    """
    codes = [axcodes] if isinstance(axcodes, str) else list(axcodes)
    targets = [_orientation(code) for code in codes]
    if cases < 1:
        raise ValueError(f"cases must be 1 or more; got {cases}.")
    out_dir = Path(out_dir).absolute()
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # LPS array in NIfTI's RAS+ world
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)  # origin in the middle of the volume
    healthy = round(healthy_fraction * cases)
    written: list[Case] = []
    for number in range(cases):
        # Healthy cases are spread evenly: one wherever the running total passes a whole number.
        ill = (number + 1) * healthy // cases == number * healthy // cases
        rng = np.random.default_rng([seed, number])
        image, mask, _ = phantom_case(rng, shape, modalities=modalities, lesion=ill)
        name = f"phantom_{number:03d}"
        volumes = dict(zip(MODALITIES, image, strict=False)) | {"mask": mask.astype(np.int16)}
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), targets[number % len(targets)])
        for key, volume in volumes.items():
            nifti = nib.Nifti1Image(volume, affine)
            with atomic_path(out_dir / name / f"{key}.nii.gz") as temporary:
                nib.save(nifti.as_reoriented(turn), temporary)
        images = [str(out_dir / name / f"{key}.nii.gz") for key in volumes if key != "mask"]
        written.append(
            {
                "case": name,
                "patient": name,
                "image": images[0] if modalities == 1 else images,
                "label": str(out_dir / name / "mask.nii.gz"),
                "cls": np.any(mask, axis=(0, 1)).astype(int).tolist(),
            }
        )
    return written
