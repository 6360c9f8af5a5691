"""A phantom data set on disk: a folder a case, with its image and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..data import Case
from ..files import PathLike, atomic_path
from .clinic import SCANNERS, clinic_case
from .phantom import MODALITIES, phantom_case

KINDS = ("plain", "clinic")


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
    kind: str = "plain",
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
        kind: `plain`: bright lesions, as `phantom_case` draws them; `clinic`: lesions that are told from bodies as
            bright by texture and edge, of two scanners in turn, as `clinic_case` does.
        seed: the same seed gives the same data.

    Returns:
        Cases with absolute paths, `patient` and `cls` per slice, inferior→superior.

    Raises:
        ValueError: no case, `axcodes` that name no orientation, an unknown kind, or as `phantom_case`.
    """
    codes = [axcodes] if isinstance(axcodes, str) else list(axcodes)
    targets = [_orientation(code) for code in codes]
    if cases < 1:
        raise ValueError(f"cases must be 1 or more; got {cases}.")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    out_dir = Path(out_dir).absolute()
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # LPS array in NIfTI's RAS+ world
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)  # origin in the middle of the volume
    healthy = round(healthy_fraction * cases)
    written: list[Case] = []
    for number in range(cases):
        # Healthy cases are spread evenly: one wherever the running total passes a whole number.
        ill = (number + 1) * healthy // cases == number * healthy // cases
        rng = np.random.default_rng([seed, number])
        if kind == "clinic":
            scanner = number % len(SCANNERS)
            image, mask, _ = clinic_case(rng, shape, modalities=modalities, lesion=ill, scanner=scanner)
        else:
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
