"""The baselines that need no learned map: intensity thresholds, plain, gated by slice labels, without thin parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, ResampleToMatchd, apply_transform
from tqdm import tqdm

from ..images import as_array, like_image, spacing_of
from ..metrics import dice
from .from_labels import in_multiples
from .morphology import largest_component, smooth_in_organ, without_thin
from .refine import gate_slices

logger = logging.getLogger(__name__)
INTENSITIES = tuple(np.round(np.arange(0.7, 2.55, 0.1), 2).tolist())
QUANTILES = 1 - np.geomspace(0.9, 2e-4, 40)
MEASURED = 16  # cases whose intensities say what to try


class Thresholds(NamedTuple):
    """Of the baselines, in units of the image; `opened` is of it without what is thinner than `opening_mm`."""

    plain: float
    gated: float
    opened: float | None = None
    opening_mm: float | None = None


def intensity_grid(normalize: str, intensities: Sequence[float] = INTENSITIES) -> tuple[float, ...] | None:
    """Thresholds that the baselines try under a normalization.

    Args:
        normalize: mode of `common.preprocessing.NormalizeByOrgand`.
        intensities: the grid in multiples of the organ's own intensity.

    Returns:
        `intensities` where images are in such multiples; None for other units, whose range `fit_baselines` measures.
    """
    return tuple(intensities) if in_multiples(normalize) else None


def fit_baselines(
    cases: Sequence[dict],
    preprocessing: Callable,
    *,
    intensities: Sequence[float] | None = INTENSITIES,
    channel: int = 0,
    smooth_mm: float = 0.0,
    openings_mm: Sequence[float] = (),
    progress: bool = True,
) -> Thresholds | None:
    """Thresholds with the best mean 3D Dice on training cases that hold a lesion: no empty mask gains anything.

    The gated threshold is fitted in the slices whose true label is positive, where the largest component is kept. The
    baselines may look at training masks; the methods may not.

    Args:
        cases: training cases with `image` and `label`; those without a lesion are left out.
        preprocessing: gives `image` `[image channels, organ, H, W, D]`.
        intensities: what to try; None: quantiles of what some training images hold inside the organ, for images that
            are not in multiples of the organ's own intensity.
        channel: of the image, that is thresholded.
        smooth_mm: in-plane Gaussian of the image before it is thresholded.
        openings_mm: radii of `common.masks.without_thin`, each tried with each threshold; without any, `opened`
            stays None.

    Returns:
        The thresholds; None, and a line in the console, where no case has a mask of a lesion.
    """
    cases = [case for case in cases if "label" in case]
    to_image_grid = ResampleToMatchd(keys="label", key_dst="image", mode="nearest")
    if intensities is None:
        intensities = _measured(cases, preprocessing, channel) if cases else []
    scores = []
    for case in tqdm(cases, desc="fitting baselines", unit="case", leave=False, disable=not progress):
        preprocessed: Any = apply_transform(preprocessing, case)
        read = to_image_grid(preprocessed)
        image, truth = read["image"].numpy(), read["label"][0].numpy() > 0
        if not truth.any():
            continue
        organ, positive, spacing = image[-1] > 0.5, truth.any(axis=(0, 1)), spacing_of(read["image"])
        shown = smooth_in_organ(image[channel], organ, sigma_mm=smooth_mm, spacing=spacing)
        opened = [without_thin(shown, radius_mm=radius, spacing=spacing) for radius in openings_mm]
        scores.append(np.zeros((len(intensities), 2 + len(openings_mm))))
        for row, intensity in zip(scores[-1], intensities, strict=True):
            bright = (shown > intensity) & organ
            broad = [dice((image > intensity) & organ, truth) for image in opened]
            row[:] = dice(bright, truth), dice(largest_component(bright & positive), truth), *broad
    if not scores:
        level = logging.WARNING if any("label" in case for case in cases) else logging.INFO
        logger.log(
            level,
            "no training case has a mask of a lesion to fit baselines on: give --baseline_thresholds '[1.4, 1.2]'",
        )
        return None
    mean = np.mean(scores, axis=0)
    plain, gated = (float(intensities[i]) for i in mean[:, :2].argmax(axis=0))
    if not openings_mm:
        return Thresholds(plain, gated)
    i, k = np.unravel_index(mean[:, 2:].argmax(), mean[:, 2:].shape)
    return Thresholds(plain, gated, float(intensities[i]), float(openings_mm[k]))


def _measured(cases: Sequence[dict], preprocessing: Callable, channel: int) -> list[float]:
    """Quantiles of the intensities inside the organ, over cases from all of the list."""
    values = []
    for case in cases[:: -(-len(cases) // MEASURED)]:
        read: Any = apply_transform(preprocessing, {k: v for k, v in case.items() if k != "label"})
        volume = as_array(read["image"])
        values.append(volume[channel][volume[-1] > 0.5])
    return np.unique(np.quantile(np.concatenate(values), QUANTILES)).tolist()


class BaselineMasksd(MapTransform):
    """Add what needs no learned map: `baseline_threshold`, `_gated`, `_opened`, `_opened_gated`, on the model's grid.

    The first is every organ voxel brighter than `plain`. The second, with a threshold of its own, keeps
    it only in slices whose probability passes the gate, and of that the largest component. The others are the
    same of the image that `common.masks.without_thin` leaves, both with the threshold `opened`.

    Args:
        keys: the network's input `[image channels, organ, H, W, D]`.
        thresholds: as `Thresholds`; plain and gated alone leave the other two masks out, None all.
        gate: as in `common.masks.MapsToMaskd`, whose `slice_probability` is used.
        smooth_mm: in-plane Gaussian of the image before it is thresholded.
        channel: of the image, that is thresholded.

    Raises:
        ValueError: one of the two numbers that belong to the opening without the other, or a wrong count.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        thresholds: Sequence[float | None] | None,
        gate: float | None = 0.5,
        smooth_mm: float = 0.0,
        channel: int = 0,
    ) -> None:
        super().__init__(keys)
        self.gate = gate
        self.channel = channel
        self.smooth_mm = smooth_mm
        self.thresholds: Thresholds | None = None
        if thresholds is None:
            return
        if len(thresholds) not in (2, 4) or None in thresholds[:2] or sum(x is None for x in thresholds[2:]) == 1:
            raise ValueError(f"thresholds must be {Thresholds._fields} or the first two; got {tuple(thresholds)}")
        self.thresholds = Thresholds(*thresholds)  # type: ignore[arg-type]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        if self.thresholds is None:
            return data
        plain, gated, opened, radius = self.thresholds
        for key in self.key_iterator(data):
            image = data[key]
            volume, spacing = as_array(image), spacing_of(image)
            organ = volume[-1] > 0.5
            shown = smooth_in_organ(volume[self.channel], organ, sigma_mm=self.smooth_mm, spacing=spacing)
            slices = gate_slices(as_array(data["slice_probability"]), self.gate) > 0
            masks = {"threshold": (shown > plain) & organ, "gated": largest_component((shown > gated) & organ & slices)}
            if opened is not None and radius is not None:
                broad = without_thin(shown, radius_mm=radius, spacing=spacing)
                masks["opened"] = (broad > opened) & organ
                masks["opened_gated"] = largest_component(masks["opened"] & slices)
            data |= {f"baseline_{k}": like_image(image, mask[None].astype(np.uint8)) for k, mask in masks.items()}
        return data
