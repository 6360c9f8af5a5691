"""What weights saw in training, described by pure functions of images and organ masks; `strange` holds cases to it.

A description is a dict of plain numbers for JSON, the same of a case in training and at inference. Its parts: spacing,
volume of the organ, quantiles of the raw intensities inside it, and for each channel the contrast, four numbers that
tell T1 from FLAIR. In T1 the flattest tissue, white matter, is brighter than what surrounds it, and the edges, cortex
beside fluid, are darker; in FLAIR it is the other way round. Neither scanner units nor lesions change that much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage as ndi

from .channels import channel_names

Description = dict[str, Any]

LEVELS = (1, 5, 25, 50, 75, 95, 99)  # percent
MOST_SLICES = 12
FEW_PATIENTS = 10  # no spread of contrasts can be told from less


def contrast(channel: np.ndarray, organ: np.ndarray, pixel: Sequence[float]) -> list[float] | None:
    """How bright flat and edgy tissue is against its surroundings.

    Inside the organ, 6 mm below its surface, voxels are sorted by the slope of the image (smoothed with 1.5 mm) into
    five equal classes. Of the four flatter ones it is the median of image minus local mean (20 mm), in multiples of
    the interquartile range of that difference. Brighter, darker, stretched or shifted images have the same.

    Args:
        channel: `[H, W, N]`, axial slices.
        organ: bool `[H, W, N]`.
        pixel: millimeters of the first two axes.

    Returns:
        Four numbers, from the flattest tissue to the edges; None where there is too little organ or no difference.
    """
    core = ndi.binary_erosion(organ, np.ones((3, 3, 1)), iterations=max(1, round(6.0 / float(np.mean(pixel)))))
    if core.sum() < 100:
        return None
    channel = np.clip(channel.astype(np.float32), *np.percentile(channel[organ], (1, 99)))
    across, down = np.gradient(_smoothed(channel, organ, 1.5, pixel), *pixel, axis=(0, 1))
    slope = np.hypot(across, down)[core]
    above = (channel - _smoothed(channel, organ, 20.0, pixel))[core]
    spread = float(np.subtract(*np.percentile(above, (75, 25))))
    flatness = np.digitize(slope, np.percentile(slope, (20, 40, 60, 80)))
    parts = [above[flatness == i] for i in range(4)]
    if spread <= 0 or not all(map(len, parts)):
        return None
    return [float(np.median(part)) / spread for part in parts]


def _smoothed(channel: np.ndarray, organ: np.ndarray, sigma_mm: float, pixel: Sequence[float]) -> np.ndarray:
    """Mean of the organ's voxels around, in-plane."""
    sigma = (sigma_mm / pixel[0], sigma_mm / pixel[1], 0.0)
    weight = ndi.gaussian_filter(organ.astype(np.float32), sigma, truncate=3.0)
    return ndi.gaussian_filter(channel * organ, sigma, truncate=3.0) / np.maximum(weight, 1e-3)


def describe_case(
    image: np.ndarray,
    organ: np.ndarray,
    *,
    spacing: Sequence[float],
    native_spacing: Sequence[float],
    window: Sequence[float] | None = None,
) -> Description:
    """Describe one case as the preprocessing has it after the organ mask, before intensities are scaled.

    Args:
        image: `[C, H, W, D]`, axial slices along the last axis, raw intensities.
        organ: bool `[H, W, D]`, not empty.
        spacing: millimeters of the three axes.
        native_spacing: the same, before any resampling.
        window: `[low, high]` that is scaled to [0, 1] afterwards; None: intensities are scaled by the organ's own,
            which only makes sense of those that are not negative.

    Returns:
        `spacing` (native), `slices`, `organ_ml`, and for each channel `quantiles` (at `LEVELS`), `outside` (share of
        the organ's voxels that are not in the window, or negative), `contrast`, and `negative` (share of the whole
        image's voxels that are, by more than a twentieth of the organ's median). Intensities are those of some large
        slices.
    """
    thin = max(1, int(1.5 / min(spacing[:2])))
    pixel, organ = (spacing[0] * thin, spacing[1] * thin), organ[::thin, ::thin]
    area = organ.sum(axis=(0, 1))
    planes = np.flatnonzero((area > 0) & (area >= 0.3 * area.max()))
    planes = planes[np.linspace(0, len(planes) - 1, min(MOST_SLICES, len(planes))).round().astype(int)]
    box = ndi.find_objects(organ[..., planes].astype(np.uint8))[0]
    some, within = image[:, ::thin, ::thin][..., planes][(slice(None), *box)], organ[..., planes][box]
    (low, high), inside = window or (0.0, np.inf), [channel[within] for channel in some]
    return {
        "spacing": [round(float(s), 4) for s in native_spacing],
        "slices": len(area),
        "organ_ml": round(float(area.sum()) * pixel[0] * pixel[1] * spacing[2] / 1000.0, 3),
        "quantiles": [[_short(q) for q in np.percentile(values, LEVELS)] for values in inside],
        "outside": [round(float(((values < low) | (values > high)).mean()), 4) for values in inside],
        "contrast": [contrast(channel, within, pixel) for channel in some],
        "negative": [
            round(float((channel < -0.05 * np.median(np.abs(values))).mean()), 4)
            for channel, values in zip(image, inside, strict=True)
        ],
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def summarize(
    cases: Sequence[Description],
    patients: Sequence[str],
    *,
    channels: Sequence[str] | None = None,
    window: Sequence[float] | None = None,
) -> Description:
    """What a training set looked like.

    Args:
        cases: as `describe_case` gives them.
        patients: of each case. Where a patient's organ was cut into parts, each a case, what is whole later is as
            large as all of them: the upper end of `organ_ml` is the largest sum of a patient; of pictures, which are
            no parts of one, it is that of a picture.
        channels: names of the modalities, see `channel_names`.
        window: see `describe_case`.

    Returns:
        Plain numbers: lowest, median and highest over the cases; `outside` and `negative` are the highest; `contrast`
        of each channel is mean, covariance and `limit`, None with fewer than `FEW_PATIENTS` patients.
    """
    slices = [case.get("slices", 0) for case in cases]
    organs: dict[Any, float] = defaultdict(float)
    for case, organ in zip(cases, range(len(cases)) if set(slices) == {1} else patients, strict=True):
        organs[organ] += case["organ_ml"]
    quantiles = np.array([case["quantiles"] for case in cases])  # [cases, C, LEVELS]
    count = quantiles.shape[1]
    return {
        "cases": len(cases),
        "patients": len(set(patients)),
        "channels": channel_names(channels, count),
        "window": None if window is None else [float(w) for w in window],
        "spacing": _range(np.array([case["spacing"] for case in cases])),
        "slices": _range(np.array(slices)),
        "organ_ml": _range(np.array([case["organ_ml"] for case in cases])) | {"max": _short(max(organs.values()))},
        "levels": list(LEVELS),
        "quantiles": [_range(quantiles[:, i]) for i in range(count)],
        **{share: [max(case[share][i] for case in cases) for i in range(count)] for share in ("outside", "negative")},
        "contrast": [_spread([case["contrast"][i] for case in cases], patients) for i in range(count)],
    }


def _range(values: np.ndarray) -> dict[str, Any]:
    """Lowest, median and highest along the first axis."""
    found = {"min": values.min(0), "median": np.median(values, axis=0), "max": values.max(0)}
    return {name: [_short(v) for v in part] if part.ndim else _short(part) for name, part in found.items()}


def _spread(rows: Sequence[list[float] | None], patients: Sequence[str]) -> dict[str, Any] | None:
    """Mean and covariance of contrasts, and the distance that 95 % keep from the other patients'."""
    own = np.array([p for row, p in zip(rows, patients, strict=True) if row is not None])
    if len(set(own)) < FEW_PATIENTS:
        return None
    known = np.array([row for row in rows if row is not None])
    apart = np.concatenate([distances(known[own == p], *_moments(known[own != p])) for p in sorted(set(own))])
    mean, covariance = _moments(known)
    return {
        "mean": [_short(m) for m in mean],
        "covariance": [[_short(c) for c in row] for row in covariance],
        "limit": _short(float(np.quantile(apart, 0.95))),
    }


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.atleast_2d(np.cov(rows.T))
    return rows.mean(0), covariance + np.diag(0.05 * np.diag(covariance) + 1e-6)


def distances(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Mahalanobis distance per dimension, `[N]` of rows `[N, D]` from a mean `[D]` with a covariance `[D, D]`."""
    apart = rows - mean
    return np.sqrt(np.einsum("ij,jk,ik->i", apart, np.linalg.inv(covariance), apart) / rows.shape[1])
