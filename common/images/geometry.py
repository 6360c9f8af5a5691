"""Where an image lies in the world: one rule for sform and qform, units, spacing, and for two images on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import nibabel as nib
import numpy as np

UNITS = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}  # millimeters
SPACING_MM = (0.01, 100.0)  # between neighboring voxels
EXTENT_MM = 3000.0  # no scanner's field of view is longer
ACROSS_MM = 1000.0  # nor, of a volume, wider: bores have 600 to 850
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from the axes of DICOM and ITK to those of NIfTI, and back
TOLERANCE = 0.1  # of a voxel, between the corners of two images on one grid


def nifti_affine(header: nib.Nifti1Header, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine of a NIfTI image, and what is doubtful about it.

    The sform counts where its code is set, else the qform, as nibabel and most viewers have it; units are honored,
    as ITK does. Where neither code is set, the standard leaves the orientation open: nibabel's guess (LAS, centered)
    is taken, with a warning.

    Args:
        header: of NIfTI-1 or NIfTI-2.
        path: of the file, for messages.

    Returns:
        `[4, 4]` from voxel indices to RAS+ millimeters, and warnings.

    Raises:
        ValueError: both forms are set and name other axis directions; or see `check_affine`.
    """
    unit = _unit(header)
    to_millimeters = np.diag([unit, unit, unit, 1.0])
    shape = header.get_data_shape()[:3]
    forms = {name: form for name in ("sform", "qform") if (form := _form(header, name, path)) is not None}
    forms = {name: to_millimeters @ form for name, form in forms.items()}
    for name, form in forms.items():
        _check_directions(form, f"{path}: the {name}", " mend it, or set its code to 0")
    if not forms:
        affine = check_affine(to_millimeters @ header.get_base_affine(), shape, path)
        size = _numbers(nib.affines.voxel_sizes(affine))
        return affine, (f"no affine in the header: the orientation is a guess, the spacing {size} mm from pixdim",)
    warnings = []
    if len(forms) == 2:
        sform, qform = forms["sform"], forms["qform"]
        if not np.array_equal(_turn(qform, sform), [[0, 1], [1, 1], [2, 1]]):
            raise ValueError(
                f"{path}: sform and qform disagree on the orientation: {_named(sform)} against {_named(qform)}; keep "
                "the right one, and set the other's code to 0"
            )
        millimeters = float(np.linalg.norm(corners(shape, sform) - corners(shape, qform), axis=1).max())
        if millimeters > TOLERANCE * float(nib.affines.voxel_sizes(sform).min()):
            sizes = [_numbers(nib.affines.voxel_sizes(form)) for form in (sform, qform)]
            other = f" (spacing {sizes[0]} and {sizes[1]} mm)" if sizes[0] != sizes[1] else ""
            warnings.append(f"sform and qform are up to {millimeters:.1f} mm apart{other}: the sform is used")
    affine = check_affine(next(iter(forms.values())), shape, path)
    if np.array_equal(affine, np.eye(4)):
        warnings.append("the affine is the identity: spacing and orientation may have been lost")
    return affine, tuple(warnings)


def _unit(header: nib.Nifti1Header) -> float:
    """Millimeters of the header's unit of length; a code that the standard lacks counts as unknown."""
    try:
        return UNITS.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:
        return 1.0


def _form(header: nib.Nifti1Header, name: str, path: str) -> np.ndarray | None:
    try:
        form = getattr(header, f"get_{name}")(coded=True)[0]
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"{path}: the {name} cannot be read ({error}); set its code to 0, or mend it") from error
    return None if form is None else np.asarray(form, dtype=np.float64)


def check_affine(affine: np.ndarray, shape: Sequence[int], path: str) -> np.ndarray:
    """The affine, if an image of that shape can lie there.

    Raises:
        ValueError: it is not finite, flat, or its spacing or extent is that of no medical image.
    """
    affine = np.asarray(affine, dtype=np.float64)
    _check_directions(affine, f"{path}: the affine")
    spacing = nib.affines.voxel_sizes(affine)
    low, high = SPACING_MM
    longest = max((float(n * s) for n, s in zip(shape, spacing, strict=False)), default=0.0)
    if spacing.min() < low or spacing.max() > high or longest > EXTENT_MM:
        raise ValueError(
            f"{path}: an impossible spacing of {_numbers(spacing)} mm for the shape {list(shape)}: expected {low:g} to "
            f"{high:g} mm, and no side longer than {EXTENT_MM:g} mm; mend the header (pixdim, sform, xyzt_units)"
        )
    long = axis_of_slices(affine)
    wide = max(n * s for axis, (n, s) in enumerate(zip(shape, spacing, strict=False)) if axis != long)
    if min(shape) > 1 and wide > ACROSS_MM:
        raise ValueError(
            f"{path}: a spacing of {_numbers(spacing)} mm makes its axial slices {wide:.0f} mm wide, and no "
            "bore is; mend the header (pixdim, sform, xyzt_units)"
        )
    return affine


def axis_of_slices(affine: np.ndarray) -> int:
    """Number of the array's axis that runs along the body, of an affine `[4, 4]`: axial slices lie along it."""
    return list(nib.io_orientation(affine)[:, 0]).index(2)


def _check_directions(affine: np.ndarray, what: str, advice: str = "") -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(
            f"{what} {affine.tolist()} places no volume: three directions are needed{advice and ';'}{advice}"
        )


def corners(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """The centers of the eight voxels at the corners, `[8, 3]` in millimeters."""
    voxels = np.array(list(product(*((0, n - 1) for n in (*shape, 1, 1, 1)[:3]))), dtype=np.float64)
    return nib.affines.apply_affine(affine, voxels)


def in_axes_of(array: np.ndarray, affine: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume with its axes flipped and permuted, never resampled, to run as nearly as may be along another's.

    Args:
        array: `[H, W, D, ...]`.
        affine: of that volume.
        like: affine of the other one.

    Returns:
        The array (a view) and its affine.
    """
    turn = _turn(affine, like)
    moved = affine @ nib.orientations.inv_ornt_aff(turn, array.shape[:3])
    return nib.orientations.apply_orientation(array, turn), moved


def _turn(affine: np.ndarray, like: np.ndarray) -> np.ndarray:
    """nibabel's orientation array: which axis of `like` each axis of `affine` runs along, and whether forwards (1)."""
    along = np.eye(4)
    along[:3, :3] = np.linalg.inv(like[:3, :3]) @ affine[:3, :3]
    return nib.io_orientation(along)


def check_one_grid(
    shape: Sequence[int],
    affine: np.ndarray,
    like_shape: Sequence[int],
    like: np.ndarray,
    *,
    what: str,
    header: np.ndarray | None = None,
) -> None:
    """Refuse two grids that are not one: other shapes, or corners further apart than 0.1 voxel.

    Args:
        shape, affine: of one.
        like_shape, like: of the other, whose voxels are the measure.
        what: the two names, for the message.
        header: affine of the first as its file has it, where the axes have been turned since.

    Raises:
        ValueError: showing both shapes, and the affines as in the files.
    """
    if tuple(shape) == tuple(like_shape):
        voxels = corners(shape, np.linalg.inv(like) @ affine) - corners(shape, np.eye(4))
        apart = float(np.linalg.norm(voxels, axis=1).max())
        if apart <= TOLERANCE:
            return
        reason = f"their corners are up to {apart:.3g} voxels apart"
    else:
        reason = f"their shapes are {list(shape)} and {list(like_shape)}"
    affines = f"{_rows(affine if header is None else header)} and {_rows(like)}"
    raise ValueError(
        f"{what} do not lie on one grid: {reason}. Affines: {affines}. Resample one to the other, or mend the wrong "
        "header"
    )


def _named(affine: np.ndarray) -> str:
    return f"{''.join(nib.aff2axcodes(affine))} {_rows(affine)}"


def _rows(affine: np.ndarray) -> str:
    return "[" + ", ".join(f"[{_numbers(row, ', ')}]" for row in affine[:3]) + "]"


def _numbers(values: Sequence[float] | np.ndarray, between: str = " × ") -> str:
    return between.join(f"{float(v):.6g}" for v in values)
