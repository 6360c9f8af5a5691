"""Organs of two sides: what a report says of the side is a label for each half, and the healthy half a negative.

Nothing is cut: both halves are cases of the same image, each with a mask of its half of the organ. All halves of a
patient keep the patient, so a split keeps them together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..data import Case, labels_of, labels_slices
from ..data.find import with_paths_relative
from ..files import PathLike
from ..images import is_picture, mask_on_grid, read_labels
from ..preprocessing.transforms import LUNGS
from .files import check_3d, load_volume, save_volume
from .parts import found_organ, lung_gap
from .words import SIDES

HALVED = ("brain", "head", *LUNGS)
_REACH_MM = 15.0  # of the plane of symmetry from where the halves of the organ are as large
# The narrowest of 47 brains is .70 times as wide as long, half of one at most .54. Between the lungs of 13 chests at
# most .06 of what they have elsewhere is left, in the middle of a single one at least .66.
_WIDE, _BETWEEN = 0.62, 0.3
_SHARE = 0.1  # of a finding: what reaches less of itself across the middle is of one side


def parse_side(text: str) -> str:
    """`left`, `right` or `both`, of the patient, as people write it (`L`, `rt.`, `bilateral`, `left and right`).

    Raises:
        ValueError: another word.
    """
    words = set(re.findall(r"\w+", text.lower())) - {"and", "side", "sides", "sided"}
    named = {side for side, same in SIDES.items() if words & {*same}}
    if not named or words - set().union(*SIDES.values()):
        raise ValueError(f"{text!r} is no side; accepted: left, right, both")
    return named.pop() if len(named) == 1 else "both"


def middle_of(image: np.ndarray, organ: np.ndarray, *, spacing: float) -> int:
    """The plane about which the image is most symmetric, near where the halves of the organ are equally large.

    Args:
        image, organ: `[x, y, z]`, left to right along the first axis.
        spacing: of that axis, mm.

    Returns:
        The first index of the right half.

    Raises:
        ValueError: there is no organ.
    """
    profile = np.asarray(organ, dtype=bool).sum(axis=(1, 2))
    if not profile.any():
        raise ValueError("the mask of the organ is empty")
    equal = int(np.searchsorted(np.cumsum(profile), profile.sum() / 2))
    reach = round(_REACH_MM / spacing)
    inside = np.where(organ, image, 0.0)

    def alike(place: int) -> float:
        width = min(place, len(profile) - place)
        left, right = inside[place - width : place][::-1], inside[place : place + width]
        with np.errstate(invalid="ignore"):  # of one value, as outside the organ
            return float(np.nan_to_num(np.corrcoef(left.ravel(), right.ravel())[0, 1], nan=-1.0))

    places = range(max(1, equal - reach), min(len(profile), equal + reach + 1))
    return max(places, key=alike)


def side_of(mask: np.ndarray, middle: int) -> str:
    """`left`, `right` or `both`: where a finding `[x, y, z]` lies, but for less than a tenth of it."""
    left = float(mask[:middle].sum()) / max(1.0, float(mask.sum()))
    return "both" if _SHARE <= left <= 1 - _SHARE else "left" if left > 0.5 else "right"


def halves(cases: Sequence[Case], out_dir: PathLike, *, organ: str, gap_mm: float = 9.0) -> list[Case]:
    """Two cases of each: the left and the right half of the organ, with the label on the side that has the finding.

    Args:
        cases: as adapters return them, with `cls`; a positive one says in `finding_side` (`left`, `right`, `both`)
            where the finding is, or has its mask in `label`, which says it and is not kept: it is not of a half.
        out_dir: gets the masks `<case>_<side>.nii.gz` of the halves, on the image's grid.
        organ: one of `HALVED`, see `common.preprocessing.organ_mask`, for cases without a mask in `organ`. Of lungs the
            middle is where they touch least.
        gap_mm: left out between the halves: a finding of one side may reach across the middle.

    Returns:
        Cases `<case>_left` and `<case>_right`, with `organ`, the side in `half` and in `side`, by which samplers
        stratify parts of scans, the image and all else of their case.

    Raises:
        ValueError: an unknown organ; an image is a picture, or not 3D; nothing says where a finding is, or there is no
            organ in an image or in a half of it.
    """
    if organ not in HALVED:
        raise ValueError(f"halves are of {', '.join(HALVED)}; got {organ!r}")
    found: list[Case] = []
    for case in tqdm(cases, desc="finding halves", unit="case", disable=None):
        try:
            found += _halves_of(case, Path(out_dir).absolute(), organ, gap_mm)
        except ValueError as error:
            raise ValueError(f"case {case['case']!r}: {error}") from error
    return found


def whole_in_test(datalist: dict[str, Any], cases: Sequence[Case], root: PathLike) -> dict[str, Any]:
    """A datalist of halves whose test cases are whole again: masks are made and scored of scans as they come.

    Args:
        datalist: of `make_datalist`.
        cases: those that `halves` was given.
        root: folder that its paths are relative to.
    """
    patients = {case["patient"] for case in datalist["test"]}
    kept = [{k: v for k, v in case.items() if k not in ("section", "finding_side")} for case in cases]
    test = [with_paths_relative(case, Path(root).absolute()) for case in kept if case["patient"] in patients]
    return datalist | {"test": test}


def _halves_of(case: Case, out_dir: Path, organ: str, gap_mm: float) -> list[Case]:
    path = case["image"] if isinstance(case["image"], str) else case["image"][0]
    if is_picture(path):
        raise ValueError(f"{path}: a picture does not say which side of it is left")
    image = load_volume(path)
    check_3d(image, path)
    array, spacing = np.asanyarray(image.dataobj), tuple(float(s) for s in image.header.get_zooms()[:3])
    mask = _on(image, case, "organ") > 0.5 if case.get("organ") else found_organ(image, organ)
    _check_two_sides(mask, organ, spacing)
    middle = lung_gap(mask) if organ in LUNGS else middle_of(array, mask, spacing=spacing[0])
    where = _side(case, image, middle)
    gap = round(gap_mm / 2 / spacing[0])
    kept = {key: value for key, value in case.items() if key not in ("label", "finding_side")}
    parts: list[Case] = []
    for side, place in zip(("left", "right"), (slice(0, max(0, middle - gap)), slice(middle + gap, None)), strict=True):
        half = np.zeros(mask.shape, dtype=np.uint8)
        half[place] = mask[place]
        if not half.any():
            raise ValueError(f"nothing of the organ is on the {side} side; does the image show both?")
        name = f"{case['case']}_{side}"
        mine = save_volume(nib.Nifti1Image(half, image.affine), out_dir / f"{name}.nii.gz")
        cls = case["cls"] if where in (side, "both") else _nothing(case)
        parts.append(kept | {"case": name, "cls": cls, "organ": mine, "half": side, "side": side})
    return parts


def _check_two_sides(organ: np.ndarray, name: str, spacing: Sequence[float]) -> None:
    """Refuse a mask `[x, y, z]` of one half alone, which would be halved once more: labels would be of other places.

    Raises:
        ValueError: half a brain or head, or one lung.
    """
    across, along = (organ.sum(axis=axes) for axes in ((1, 2), (0, 2)))
    if not across.any():
        return  # each half will say so
    wide, long = np.ptp(np.flatnonzero(across)) * spacing[0], np.ptp(np.flatnonzero(along)) * spacing[1]
    one = across[lung_gap(organ)] > _BETWEEN * across.max() if name in LUNGS else wide < _WIDE * long
    if one:
        raise ValueError(
            f"the mask of the {name} seems to hold one side alone ({wide:.0f} mm from left to right, {long:.0f} from "
            "front to back): halves need both. Give a mask of the whole organ, or leave the case out"
        )


def _side(case: Case, image: nib.Nifti1Image, middle: int) -> str:
    """Where the finding is; empty where there is none."""
    if not labels_of(case, image.shape[2])[0]:
        return ""
    if case.get("finding_side"):
        return str(case["finding_side"])
    if not case.get("label"):
        raise ValueError(
            "which side is ill? A table says it in a column 'side' (left, right, both), other data by masks"
        )
    return side_of(_on(image, case, "label") > 0, middle)


def _on(image: nib.Nifti1Image, case: Case, key: str) -> np.ndarray:
    """A mask of a case on the grid of its image, as runs read it: of an organ, probabilities, too."""
    of = f"the image of case {case['case']!r}"
    return mask_on_grid(read_labels(case[key]), image.shape, image.affine, image=of, probabilities=key == "organ").array


def _nothing(case: Case) -> Any:
    """The label that says of as many slices, or of the case, that nothing is there."""
    if labels_slices(case):
        return [0] * len(case["cls"])
    return [] if isinstance(case["cls"], list) else 0
