"""Volumes cut into parts with yes/no labels of their own, where every whole volume would be positive.

Methods that learn from one label per volume need negatives. Each part is written as NIfTI (`RAS` order, the affine of
its place in the scan) and is a case of its own; all parts of a scan keep its patient, so a split keeps them together.
Masks are read here to derive `cls`; training does not see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..data import Case, find_cases, labels_slices, runs, slice_classes
from ..files import PathLike
from ..images import in_axes_of, mask_on_grid, read_grid, read_labels
from ..preprocessing import organ_mask
from .files import check_3d, load_volume, output_folder, save_volume

Box = tuple[slice, slice, slice]
_WHOLE: Box = (slice(None), slice(None), slice(None))


def lung_gap(lungs: np.ndarray) -> int:
    """Where the two lungs touch least: the first index along axis 0 (left to right) of the right-hand part.

    Args:
        lungs: mask `[x, y, z]` of both lungs; non-zero is lung.

    Raises:
        ValueError: the mask is empty.
    """
    profile = (np.asarray(lungs) > 0).sum(axis=(1, 2))
    if not profile.any():
        raise ValueError("the lung mask is empty; expected both lungs > 0.")
    # Between the middles of the two lungs, so that the empty rims of the image do not count as the gap.
    first, last = np.searchsorted(np.cumsum(profile), profile.sum() * np.array([0.25, 0.75]))
    between = profile[first : last + 1]
    return int(first + np.median(np.flatnonzero(between == between.min())))


def substacks(
    root: PathLike,
    out_dir: PathLike,
    *,
    modalities: Sequence[str] = ("flair",),
    label: str = "mask",
    organ: str | None = None,
    min_slices: int = 4,
    max_slices: int | None = None,
    min_ml: float = 0.0,
    min_share: float = 0.0,
    patient_separator: str | None = None,
) -> list[Case]:
    """Cut volumes into stacks of consecutive axial slices that all hold a finding, or all hold none.

    Reads the layout of `common.datasets.folder`, `<case>/<modality>.nii.gz` with `<case>/<label>.nii.gz`, and
    writes `out_dir/<case>_s<first>-<last>/` with the same file names (slices count from 0, inferior→superior).
    Negative stacks mostly come from the ends of the organ: report a position-only baseline beside any score.

    Args:
        root: folder that holds the case folders.
        out_dir: where the stacks go; files of the same name are replaced.
        modalities: file names without suffix; with one, `image` is a path, with more, a list in this order.
        label: name of the mask file; voxels > 0 are the finding.
        organ: name of an organ mask file, cut likewise and given as `organ`.
        min_slices, max_slices: see `runs`.
        min_ml: a positive part with less of the finding than this is left out.
        min_share: the same as a share of the organ (of the whole part without `organ`), 0 to 1.
        patient_separator: where given, the patient is the case name before its first occurrence.

    Returns:
        Cases with `cls` 0 or 1 for the whole stack, and `label`: a mask that is empty where `cls` is 0.

    Raises:
        FileNotFoundError: no case, or a case lacks a modality or a mask.
        ValueError: a file is unreadable, files of a case differ in shape or place, `out_dir` is `root`, or no
            part is left.
    """
    cases: list[Case] = []
    out_dir = output_folder(out_dir, root)
    for case, images in _volumes(root, modalities, label, organ, patient_separator):
        parts = _stacks(case, images, _WHOLE, min_slices, max_slices, min_ml, min_share)
        cases += [_write(part, images, place, out_dir) for part, place in parts]
    return _not_empty(cases, root)


def half_lungs(
    root: PathLike,
    out_dir: PathLike,
    *,
    modalities: Sequence[str] = ("ct",),
    label: str = "infection",
    organ: str | None = "lung",
    whole: bool = False,
    min_slices: int = 8,
    max_slices: int | None = 32,
    min_ml: float = 0.0,
    min_share: float = 0.0,
    margin_mm: float = 5.0,
    patient_separator: str | None = None,
) -> list[Case]:
    """Cut chest CTs into left and right lung, and each of them into stacks with and without a finding.

    Reads `<case>/<modality>.nii.gz`, `<case>/<label>.nii.gz` and `<case>/<organ>.nii.gz` and writes
    `out_dir/<case>_<left|right>_s<first>-<last>/` with the same file names. The halves meet in the sagittal plane
    where the lungs touch least and are cropped to their lung; a label counts what its own part shows, nothing else.

    Args:
        organ: name of the lung mask file, both lungs > 0; None: `common.preprocessing.organ_mask` finds them in the
            first modality.
        whole: scans with `min_slices` slices of lung free of a finding are cut into stacks of both lungs together
            (`<case>_both_s…`): halves are for scans that have no negatives otherwise.
        margin_mm: in-plane margin around the lung; never beyond the plane between the halves.
        root, out_dir, modalities, label, min_slices, max_slices, min_ml, min_share, patient_separator: see
            `substacks`.

    Returns:
        Cases as of `substacks`, with `organ`, `side` (`left`, `right` or `both`) and `position` (of the part's
        middle within its lung, 0 to 1, inferior→superior). Slices beyond the ends of the lung are left out.

    Raises:
        FileNotFoundError, ValueError: as `substacks`; also an empty lung mask.
    """
    cases: list[Case] = []
    out_dir = output_folder(out_dir, root)
    for case, images in _volumes(root, modalities, label, organ, patient_separator):
        if organ is None:
            first = images[f"image {modalities[0]}"]
            images["organ"] = nib.Nifti1Image(found_organ(first, "lung").astype(np.uint8), first.affine)
            case["files"] = case["files"] | {"organ": "lung"}
        lungs = np.asanyarray(images["organ"].dataobj) > 0
        try:
            gap = lung_gap(lungs)
        except ValueError as error:
            raise ValueError(f"case {case['case']!r}, file {organ!r}: {error}") from error
        sides = {"left": slice(0, gap), "right": slice(gap, len(lungs))}  # in RAS, x grows to the right
        finding: np.ndarray = np.any(np.asanyarray(images["label"].dataobj) > 0, axis=(0, 1))
        if whole and np.count_nonzero(lungs.any(axis=(0, 1)) & ~finding) >= min_slices:
            sides = {"both": slice(0, len(lungs))}
        for side, half in sides.items():
            if lungs[half].any():
                box = _box_around(lungs, half, images["organ"].header.get_zooms(), margin_mm)
                named = case | {"case": f"{case['case']}_{side}", "side": side}
                parts = _stacks(named, images, box, min_slices, max_slices, min_ml, min_share)
                for part, place in parts:
                    middle = (place[2].start + place[2].stop) / 2
                    part["position"] = round((middle - box[2].start) / (box[2].stop - box[2].start), 4)
                    cases.append(_write(part, images, place, out_dir))
    return _not_empty(cases, root)


def single_slices(cases: Sequence[Case], out_dir: PathLike, *, modalities: Sequence[str]) -> list[Case]:
    """Cut every volume that has a label a slice into its axial slices, each a case of one slice, grade included.

    Writes `out_dir/<case>_s<slice>/<modality>.nii.gz`, and `mask.nii.gz` and `organ.nii.gz` (0 and 1) where the case
    has them; slices count from 0, inferior→superior, and files of the same name are replaced. Left out are slices of
    which a modality holds one value alone: there is nothing to see, and no run would take them. Those with NaN or
    infinite values are kept: a run refuses them and names the file. All other cases stay as they are: volumes with one
    label, and pictures, whose one slice has a label.

    Args:
        cases: as adapters return them.
        out_dir: where the slices go.
        modalities: names of the images of a case, in their order.

    Returns:
        Cases; slices have one label in a list, `[cls]`, and keep the `patient` and whatever else their volume has, but
        no `box`.

    Raises:
        ValueError: a file is unreadable or not 3D, a mask has values that no mask has, files of a case lie on different
            grids, or a case has another number of images than `modalities`, or of labels than slices.
    """
    found: list[Case] = []
    for case in tqdm(cases, desc="cutting slices", unit="case", disable=None):
        if not labels_slices(case) or len(case["cls"]) == 1:
            found.append(case)
        else:
            found += _slices_of(case, Path(out_dir).absolute(), modalities)
    return found


def _slices_of(case: Case, out_dir: Path, modalities: Sequence[str]) -> list[Case]:
    paths = case["image"] if isinstance(case["image"], list) else [case["image"]]
    if len(paths) != len(modalities):
        raise ValueError(f"case {case['case']!r}: {len(paths)} image(s), but modalities={tuple(modalities)}.")
    first = load_volume(paths[0])
    images = {f"image {modalities[0]}": first}
    images |= {f"image {m}": load_volume(p, like=first) for m, p in zip(modalities[1:], paths[1:], strict=True)}
    for path, image in zip(paths, images.values(), strict=True):
        check_3d(image, path)
    shown = _shown(images.values())
    for key, above in (("label", 0.0), ("organ", 0.5)):  # as runs read them: of an organ, probabilities, too
        if case.get(key):
            mask = mask_on_grid(
                read_labels(case[key]), *read_grid(paths[0]), image=str(paths[0]), probabilities=key == "organ"
            )
            array, affine = in_axes_of(mask.array, mask.affine, np.eye(4))
            images[key] = nib.Nifti1Image((array > above).astype(np.uint8), affine)
    files = {key: key.removeprefix("image ").replace("label", "mask") for key in images}
    kept = {key: value for key, value in case.items() if key not in ("image", "label", "organ", "box")}
    return [
        _write(kept | {"case": f"{case['case']}_s{z:03d}", "cls": [cls], "files": files}, images, _at(z), out_dir)
        for z, cls in enumerate(slice_classes(case, first.shape[2]))
        if shown[z]
    ]


def _shown(images: Iterable[nib.Nifti1Image]) -> np.ndarray:
    """Whether there is something to see in each slice, or something wrong that a run is to name."""
    with np.errstate(invalid="ignore"):  # inf - inf
        spans = np.array([np.ptp(np.asanyarray(image.dataobj), axis=(0, 1)) for image in images])
    return np.all(spans != 0, axis=0) | ~np.all(np.isfinite(spans), axis=0)


def _at(z: int) -> Box:
    return slice(None), slice(None), slice(z, z + 1)


def found_organ(image: nib.Nifti1Image, organ: str) -> np.ndarray:
    """The organ `[x, y, z]` that inference would find (but for the size of its voxels), of an image in RAS."""
    spacing = tuple(float(s) for s in image.header.get_zooms()[:3])
    return organ_mask(np.asanyarray(image.dataobj), spacing=spacing, organ=organ)


def _not_empty(cases: list[Case], root: PathLike) -> list[Case]:
    if not cases:
        raise ValueError(f"{root}: no part is left; lower min_slices, min_ml or min_share.")
    return cases


def _volumes(
    root: PathLike, modalities: Sequence[str], label: str, organ: str | None, patient_separator: str | None
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Every case, with names of its files, and its images in RAS under the keys of `case["files"]`."""
    files = {f"image {m}": m for m in modalities} | {"label": label} | ({"organ": organ} if organ else {})
    found = find_cases(root, [f"*/{name}.nii.gz" for name in files.values()])
    for case in tqdm(found, desc="cutting volumes", unit="case", disable=None):
        first = load_volume(case["image"][0])
        images = {key: load_volume(path, like=first) for key, path in zip(files, case["image"], strict=True)}
        for path, image in zip(case["image"], images.values(), strict=True):
            check_3d(image, path)
        patient = case["case"].split(patient_separator)[0] if patient_separator else case["case"]
        yield {"case": case["case"], "patient": patient, "files": files}, images


def _box_around(mask: np.ndarray, half: slice, spacing: Sequence[float], margin_mm: float) -> Box:
    """Box around the part of the mask in `half`, with an in-plane margin that stays within it."""
    inside = np.zeros_like(mask)
    inside[half] = mask[half]
    box = []
    for axis, (low, high) in enumerate(((half.start, half.stop), (0, mask.shape[1]), (0, mask.shape[2]))):
        where = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        margin = round(margin_mm / float(spacing[axis])) if axis < 2 else 0
        box.append(slice(max(low, int(where[0]) - margin), min(high, int(where[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _stacks(
    case: Case,
    images: dict[str, nib.Nifti1Image],
    box: Box,
    min_slices: int,
    max_slices: int | None,
    min_ml: float,
    min_share: float,
) -> list[tuple[Case, Box]]:
    """Stacks of equal label inside `box`: named cases with `cls`, and the box of each."""
    finding: np.ndarray = np.asanyarray(images["label"].dataobj)[box] > 0
    within = np.asanyarray(images["organ"].dataobj)[box] > 0 if "organ" in images else np.ones_like(finding)
    voxel_ml = abs(float(np.linalg.det(images["label"].affine[:3, :3]))) / 1000
    bottom = box[2].start or 0
    parts: list[tuple[Case, Box]] = []
    for start, stop, positive in runs(np.any(finding, axis=(0, 1)), min_slices=min_slices, max_slices=max_slices):
        amount, size = int(finding[..., start:stop].sum()), int(within[..., start:stop].sum())
        if positive and (amount * voxel_ml < min_ml or amount < min_share * size):
            continue
        first, last = bottom + start, bottom + stop - 1
        name = f"{case['case']}_s{first:03d}-{last:03d}"
        parts.append((case | {"case": name, "cls": positive}, (box[0], box[1], slice(first, last + 1))))
    return parts


def _write(part: Case, images: dict[str, nib.Nifti1Image], box: Box, out_dir: Path) -> Case:
    """Save the part's files; `slicer` moves the affine's origin with the cut."""
    names = part.pop("files")
    paths = {
        key: save_volume(image.slicer[box], out_dir / part["case"] / f"{names[key]}.nii.gz")
        for key, image in images.items()
    }
    pictures = [path for key, path in paths.items() if key.startswith("image ")]
    masks = {key: path for key, path in paths.items() if key in ("label", "organ")}
    return part | {"image": pictures[0] if len(pictures) == 1 else pictures} | masks
