"""How long `fit` will take on volumes, guessed from the sizes of what its networks will see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes

from ..data import SECTIONS, labels_slices
from ..images import read_grid

RUN = 10  # seconds until a run has its imports behind it
CASE = 0.3  # seconds for what a volume of any size takes
LOOKED_AT = 20  # cases


class Cost(NamedTuple):
    """What was measured on two CPU cores: seconds, and pixels that a network saw for them.

    Attributes:
        epoch: seconds of an epoch of 1,000 draws (slices, bags, for `tonno_mosmed` planes).
        draw: pixels of a draw.
        volume: seconds of the masks of one volume.
        work: pixels that these masks took.
    """

    epoch: float
    draw: float
    volume: float
    work: float


HEAD = 160 * 160 * 22  # a head of 1.5 × 1.5 × 5 mm
COSTS = {
    "gp_unet_brats": Cost(12, 128 * 144, 1, HEAD),
    "ensemble_gradcam_brats": Cost(40, 128 * 144, 2, HEAD),
    "insight_ct": Cost(20, 2**2 * 256**2, 8, 2**2 * 256**2 * 160),
    "tonno_mosmed": Cost(20, 96**2, 20, 80 * 40 * 96**2),
}
UNKNOWN = Cost(20, 128 * 144, 5, HEAD)
DRAWING = 50 / (160 * 192)  # seconds of 1,000 draws of `train_draw.json`, for each pixel of one


class Grids(NamedTuple):
    """Voxels and millimeters of some volumes, `[N, 3]` each, with the axis of the slices last."""

    shapes: np.ndarray
    spacings: np.ndarray

    def in_words(self) -> str:
        """Spacing from the shortest to the longest axis."""
        ordered = np.sort(self.spacings)
        spans = zip(ordered.min(axis=0), ordered.max(axis=0), strict=True)
        texts = [f"{a:.3g}" if np.isclose(a, b) else f"{a:.3g} to {b:.3g}" for a, b in spans]
        return f"spacing {' × '.join(texts)} mm"

    def resampled(self, spacing: Sequence[float]) -> np.ndarray:
        """Mean number of voxels along each axis at another spacing; -1 leaves that of the scan."""
        target = np.where(np.asarray(spacing) > 0, spacing, self.spacings)
        return np.mean(self.shapes * self.spacings / target, axis=0)


def read_grids(content: Mapping[str, Any], root: Path) -> Grids:
    """Of the first `LOOKED_AT` cases, from their headers."""
    shapes, spacings = zip(*(read_case_grid(case, root) for case in cases_of(content)[:LOOKED_AT]), strict=True)
    return Grids(np.array(shapes, dtype=float), np.array(spacings))


def read_case_grid(case: Mapping[str, Any], root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and millimeters of a case's first image, `[3]` each, the axis of the slices last, from its header."""
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    shape, affine = read_grid(root / images[0])
    axes = np.argsort(np.argmax(np.abs(affine[:3, :3] / voxel_sizes(affine)), axis=0))
    return np.asarray(shape)[axes], voxel_sizes(affine)[axes]


def cases_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All cases of a datalist, section by section."""
    return [case for section in SECTIONS for case in content.get(section) or []]


def minutes(
    bundle: str,
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    grids: Grids,
    *,
    rounds: int,
    runs: int,
    drawing: Mapping[str, Any] | None = None,
) -> int:
    """A guess: all steps of `fit` on two CPU cores.

    Args:
        bundle: its name.
        content: of the datalist.
        settings: keys of its training and inference.
        grids: of some volumes.
        rounds: of training on masks.
        runs: processes that will be started.
        drawing: keys of the training on masks, where another network learns to draw them.
    """
    cost = COSTS.get(bundle, UNKNOWN)
    draw, work, slices = _pixels(settings, grids)
    cases = len(cases_of(content))
    labeled = [len(case["cls"]) if labels_slices(case) else slices for case in content["training"]]
    least = settings.get("min_slices_per_epoch", 0)
    draws = settings.get("volumes_per_epoch") or settings.get("bags_per_epoch") or max(least, sum(labeled))
    training = settings["max_epochs"] * draws / 1000 * cost.epoch * draw / cost.draw
    masks = 2 * cases * (CASE + cost.volume * work / cost.work)
    again = training
    if drawing:
        epoch = drawing["slices_per_epoch"] / 1000 * float(np.prod(drawing["slice_size"])) * DRAWING
        again = drawing["max_epochs"] * epoch
    return max(1, round((training + rounds * again + masks + RUN * runs) / 60))


def _pixels(settings: Mapping[str, Any], grids: Grids) -> tuple[float, float, float]:
    """Pixels of a draw in training, pixels for the masks of a volume, and slices of a volume."""
    voxels = grids.resampled(settings.get("spacing") or [-1.0, -1.0, -1.0])
    zoom = float(settings.get("zoom") or 1.0) ** 2
    if settings.get("num_directions"):  # slices through the volume in these directions
        plane = float(settings["size"]) ** 2
        return plane, settings["num_directions"] * settings["num_slices"] * plane, voxels[2]
    # A frame is a length of the slice in pixels, a window of intensities is not.
    frame = settings.get("slice_size") or (settings.get("window") if "members" in settings else None)
    return zoom * float(np.prod(frame or voxels[:2])), zoom * float(np.prod(voxels)), voxels[2]
