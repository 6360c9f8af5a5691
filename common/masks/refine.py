"""From maps to masks: gate the slices, threshold the map, then follow the intensity inside what it points at.

Arrays are `[H, W, D]` in the model's grid, slices along the last axis, `spacing` in millimeters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage as ndi
from skimage.morphology import disk

from .morphology import dilate_in_plane, each_slice, largest_component


def smooth_along_slices(probability: np.ndarray, *, sigma_mm: float, slice_mm: float) -> np.ndarray:
    """Gaussian smoothing of slice probabilities `[C, D]` over neighboring slices; `sigma_mm=0` changes nothing.

    A lesion spans neighboring slices, so a lone slice is less credible than a run of them.
    """
    if sigma_mm <= 0 or probability.shape[-1] < 2:
        return probability
    return ndi.gaussian_filter1d(probability, sigma_mm / slice_mm, axis=-1, mode="nearest")


def gate_slices(probability: np.ndarray, gate: float | None) -> np.ndarray:
    """Class of each slice, `[D]` of `[C, D]` probabilities; a slice of class 0 gets no mask.

    Args:
        gate: a slice passes when its probability of not being class 0 exceeds it; None: when class 0 is not the most
            probable one.
    """
    leading = 1 + probability[1:].argmax(axis=0)
    positive = probability.argmax(axis=0) > 0 if gate is None else 1 - probability[0] > gate
    return np.where(positive, leading, 0)


def shown_classes(probability: np.ndarray, gate: float | None, *, one_class: bool) -> tuple[np.ndarray, int]:
    """Class of each slice, see `gate_slices`, and the one whose evidence is shown where a slice has none.

    That is the class of the most suspicious slice.

    Args:
        probability: `[C, D]`.
        gate: of `gate_slices`.
        one_class: all slices that pass are of one class, the most probable of them together.
    """
    found = gate_slices(probability, gate)
    leading = 1 + int(probability[1:, (1 - probability[0]).argmax()].argmax())
    if one_class and found.any():
        leading = 1 + int(probability[1:, found > 0].sum(axis=1).argmax())
        found = np.where(found > 0, leading, 0)
    return found, leading


def smooth_in_plane(image: np.ndarray, *, smooth_mm: float, spacing: Sequence[float]) -> np.ndarray:
    """What `refine_by_intensity` compares with its threshold: a Gaussian over rows and columns, as float32."""
    sigma = smooth_mm / np.asarray(spacing[:2], dtype=float)
    return ndi.gaussian_filter(image.astype(np.float32), (*sigma, 0))


def refine_by_intensity(
    seed: np.ndarray,
    image: np.ndarray,
    organ: np.ndarray,
    *,
    spacing: Sequence[float],
    dilate_mm: float = 4.5,
    intensity: float = 1.25,
    adaptive: float = 0.0,
    smooth_mm: float = 1.0,
    opening_mm: float = 1.5,
    largest: bool = True,
    least_share: float = 0.0,
) -> np.ndarray:
    """Bright voxels of the organ near the seed: weak maps point at a lesion, its brightness gives the outline.

    The seed's slices are dilated by `dilate_mm`; voxels brighter than a threshold stay; a small opening removes
    specks, holes are filled slice by slice.

    Args:
        seed: bool, what the map marks.
        image: in multiples of the organ's median intensity.
        organ: bool.
        spacing: millimeters of the three axes.
        dilate_mm: in-plane reach beyond the seed.
        intensity: brightness threshold in organ medians.
        adaptive: with a > 0 the threshold is at least `1 + a·(m − 1)`, m = median brightness of the seed where it is
            above `intensity`: half way between organ and lesion for a = 0.5.
        smooth_mm: in-plane Gaussian of the image before it is thresholded.
        opening_mm: radius of the opening.
        largest: keep the largest 3D component (26-connected): right for one lesion (glioma), wrong for many (MS).
        least_share: where less than this share of the seed (its largest component) stays, it is returned instead: a
            lesion that is hardly brighter than the organ has no outline of brightness.

    Returns:
        Bool mask inside the organ; empty for an empty seed.
    """
    if not seed.any():
        return np.zeros_like(seed, dtype=bool)
    pixels = np.asarray(spacing[:2], dtype=float)
    reach_mm = max(2 * (dilate_mm + opening_mm), dilate_mm + 4 * smooth_mm)  # the Gaussian is cut at 4 sigma
    box = _bounding_box(seed, np.ceil(reach_mm / pixels).astype(int) + 2)
    inside, bright, allowed = seed[box], image[box], organ[box]
    bright = smooth_in_plane(bright, smooth_mm=smooth_mm, spacing=spacing)
    threshold = intensity
    sure = inside & (bright > intensity)
    if adaptive > 0 and sure.any():
        threshold = max(intensity, 1 + adaptive * (float(np.median(bright[sure])) - 1))
    kept = dilate_in_plane(inside, dilate_mm, spacing) & allowed & (bright > threshold)
    if opening_mm > 0:
        element = disk(max(1, round(opening_mm / float(pixels.mean()))))
        kept = each_slice(lambda s: ndi.binary_opening(s, element), kept)
    kept = each_slice(ndi.binary_fill_holes, kept) & allowed
    mask = np.zeros_like(seed, dtype=bool)
    mask[box] = largest_component(kept) if largest else kept
    if least_share <= 0:  # most callers; components of the seed cost as much again
        return mask
    marked = largest_component(seed) if largest else seed.copy()
    return mask if (mask & marked).sum() >= least_share * marked.sum() else marked


def refine_options(chosen: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any] | None:
    """Options of `refine_by_intensity` as they were chosen for weights, some of them changed.

    The key `refine` of a config, so that the command line reaches into it: `--refine#largest false`.

    Args:
        chosen: None: no refinement; with a change there is one, its other options at their defaults.
        changes: by option.
    """
    return None if chosen is None and not changes else {**(chosen or {}), **changes}


def _bounding_box(mask: np.ndarray, margin: np.ndarray) -> tuple[slice, ...]:
    (box,) = ndi.find_objects(mask.astype(np.uint8))
    rows = [slice(max(s.start - int(m), 0), s.stop + int(m)) for s, m in zip(box[:2], margin, strict=True)]
    return (*rows, box[2])
