"""What weights saw in training, and whether a case looks like it: pure functions, images and organ masks only.

A description is a dict of plain numbers for JSON, the same of a case in training and at inference. Its parts: spacing,
volume of the organ, quantiles of the raw intensities inside it, and for each channel the contrast, four numbers that
tell T1 from FLAIR. In T1 the flattest tissue, white matter, is brighter than what surrounds it, and the edges, cortex
beside fluid, are darker; in FLAIR it is the other way round. Neither scanner units nor lesions change that much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage as ndi

from .channels import channel_names

Description = dict[str, Any]

LEVELS = (1, 5, 25, 50, 75, 95, 99)  # percent
MOST_SLICES = 12
# In how many multiples of what was seen a case may lie, and still be as in training.
# In plane volumes are resampled, or all that is seen has another size; slices of 1 mm do well where 5 mm were seen.
IN_PLANE, NATIVE_IN_PLANE, BETWEEN_SLICES, SQUARE = 3.0, 1.3, 6.0, 1.5
ORGAN_VOLUME, IMPOSSIBLE_VOLUME = 1.5, 3.0
CONTRAST = 1.25  # of the distance that 95 % of the training's own cases keep, each left out in turn
FEW_PATIENTS = 10  # no spread of contrasts can be told from less
STRAY = 0.05  # share of voxels outside of a range in which all of the training's lay
NOTHING_OUTSIDE = 0.001
FILLED = 0.1  # share of its window that training must fill before values inside it mean anything


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
        `spacing` (native), `organ_ml`, and for each channel `quantiles` (at `LEVELS`), `outside` (share of the organ's
        voxels that are not in the window, or negative), `contrast`, and `negative` (share of the whole image's voxels
        that are, by more than a twentieth of the organ's median). Intensities are those of some large slices.
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
            large as all of them: the upper end of `organ_ml` is the largest sum of a patient.
        channels: names of the modalities, see `channel_names`.
        window: see `describe_case`.

    Returns:
        Plain numbers: lowest, median and highest over the cases; `outside` and `negative` are the highest; `contrast`
        of each channel is mean, covariance and `limit`, None with fewer than `FEW_PATIENTS` patients.
    """
    volumes: dict[str, float] = defaultdict(float)
    for case, patient in zip(cases, patients, strict=True):
        volumes[patient] += case["organ_ml"]
    quantiles = np.array([case["quantiles"] for case in cases])  # [cases, C, LEVELS]
    count = quantiles.shape[1]
    return {
        "cases": len(cases),
        "patients": len(volumes),
        "channels": channel_names(channels, count),
        "window": None if window is None else [float(w) for w in window],
        "spacing": _range(np.array([case["spacing"] for case in cases])),
        "organ_ml": _range(np.array([case["organ_ml"] for case in cases])) | {"max": _short(max(volumes.values()))},
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
    apart = np.concatenate([_distances(known[own == p], *_moments(known[own != p])) for p in sorted(set(own))])
    mean, covariance = _moments(known)
    return {
        "mean": [_short(m) for m in mean],
        "covariance": [[_short(c) for c in row] for row in covariance],
        "limit": _short(float(np.quantile(apart, 0.95))),
    }


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.atleast_2d(np.cov(rows.T))
    return rows.mean(0), covariance + np.diag(0.05 * np.diag(covariance) + 1e-6)


def _distances(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Mahalanobis distance per dimension."""
    apart = rows - mean
    return np.sqrt(np.einsum("ij,jk,ik->i", apart, np.linalg.inv(covariance), apart) / rows.shape[1])


def compare(
    case: Description, seen: Description, *, window: Sequence[float] | None = None
) -> tuple[list[str], list[str]]:
    """Hold a case against what was seen in training.

    Args:
        case: of `describe_case`.
        seen: of `summarize`; with `native_pixels` true where images were not resampled in training.
        window: of this run, perhaps another than the training's, where the images are in other units.

    Returns:
        What is certainly wrong, and what is merely unlike; texts without the file's name.
    """
    names = channel_names(seen["channels"], len(seen["quantiles"]))
    seen = {**seen, "channels": names}
    if len(case["quantiles"]) != len(names):
        return [f"{len(case['quantiles'])} channel(s), but training had {len(names)}: {', '.join(names)}"], []
    if (window is None) != (seen["window"] is None):
        own, before = (f"by {'the organ' if w is None else f'the window {list(w)}'}" for w in (window, seen["window"]))
        return [f"intensities are scaled {own}, in training {before}"], []
    errors = [text for i in range(len(names)) if (text := _out_of_range(case, seen, i, window))]
    strange, volume = _strange_contrasts(case, seen), _strange_volume(case, seen)
    largest = seen["organ_ml"]["max"]
    # Each alone has harmless causes, and so has a small organ: a child's, or one in part.
    if case["organ_ml"] > largest * (ORGAN_VOLUME if strange else IMPOSSIBLE_VOLUME):
        return [*errors, f"{'; '.join([volume, *strange])}: another body part or kind of image, or a wrong spacing"], []
    warnings = [*([volume] if volume else []), *strange, *_strange_values(case, seen, window)]
    warnings += [] if errors else [text for i in range(len(names)) if (text := _strange_median(case, seen, i, window))]
    return errors, [*warnings, *_strange_spacing(case, seen)]


def _scaled(values: Any, window: Sequence[float] | None) -> np.ndarray:
    low, high = window or (0.0, 1.0)
    return (np.asarray(values, dtype=float) - low) / (high - low)


def _span(before: Mapping[str, Any], window: Sequence[float]) -> np.ndarray:
    """Lowest and highest intensity of the training, in units of its window."""
    return _scaled([before["min"][0], before["max"][-1]], window)


def _out_of_range(case: Description, seen: Description, i: int, window: Sequence[float] | None) -> str:
    """Why intensities cannot be in the units of the training's; empty if they can."""
    own, before = case["quantiles"][i], seen["quantiles"][i]
    outside, usual = case["outside"][i], seen["outside"][i]
    trained = f"{before['min'][0]:g} to {before['max'][-1]:g}"
    found = f"5 to 95 % of them are {own[1]:g} to {own[-2]:g}"
    if window is None:
        if usual <= NOTHING_OUTSIDE and outside > STRAY:
            return f"{outside:.0%} of the organ's voxels are negative ({found}); training saw {trained}"
        return ""
    span = _span(before, seen["window"])
    beyond = 1.0 - float(np.diff(np.interp(span, _scaled(own, window), np.array(LEVELS) / 100.0))[0])
    allowed = STRAY if usual <= NOTHING_OUTSIDE else max(0.5, (1.0 + usual) / 2)
    if outside <= allowed and (span[1] - span[0] < FILLED or beyond <= 0.5):
        return ""
    where, share = ("the window", outside) if outside > allowed else ("what training saw", beyond)
    return (
        f"{share:.0%} of the organ's voxels lie outside of {where} ({found}; window [{window[0]:g}, {window[1]:g}]). "
        f"The weights were trained with the window {[float(w) for w in seen['window']]} on values of {trained}: other "
        "units, or Hounsfield units with an offset? Give the window that brings these images to that scale by --window"
    )


def _strange_median(case: Description, seen: Description, i: int, window: Sequence[float] | None) -> str:
    if window is None:
        return ""
    middle = LEVELS.index(50)
    own, before = _scaled(case["quantiles"][i][middle], window), seen["quantiles"][i]
    low = _scaled(before["min"][middle - 1], seen["window"])
    high = _scaled(before["max"][middle + 1], seen["window"])
    if low <= own <= high or float(np.diff(_span(before, seen["window"]))[0]) < FILLED:
        return ""
    return (
        f"median inside the organ {case['quantiles'][i][middle]:g}; in training {before['min'][middle]:g} to "
        f"{before['max'][middle]:g} with the window {seen['window']}"
    )


def _strange_values(case: Description, seen: Description, window: Sequence[float] | None) -> list[str]:
    found = [f"nearly all of the organ is {own[1]:g}: a mask?" for own in case["quantiles"] if own[1] == own[-2]]
    count = len(case["quantiles"])
    shares = zip(case.get("negative", [0.0] * count), seen.get("negative", [0.0] * count), strict=True)
    for own, usual in shares if window is None else ():
        if own > usual + STRAY:
            found.append(f"{own:.0%} of the voxels are negative, in training {usual:.0%}: standardized intensities?")
    return found


def _strange_volume(case: Description, seen: Description) -> str:
    own, before = case["organ_ml"], seen["organ_ml"]
    if before["min"] / ORGAN_VOLUME <= own <= before["max"] * ORGAN_VOLUME:
        return ""
    return f"organ of {own:.0f} ml, in training {before['min']:.0f} to {before['max']:.0f} ml"


def _strange_spacing(case: Description, seen: Description) -> list[str]:
    native, found = seen.get("native_pixels", False), []
    for axis, factor in enumerate((*[NATIVE_IN_PLANE if native else IN_PLANE] * 2, BETWEEN_SLICES)):
        own, low, high = case["spacing"][axis], seen["spacing"]["min"][axis], seen["spacing"]["max"][axis]
        if not low / factor <= own <= high * factor:
            text = f"{'distance of slices' if axis == 2 else 'pixels'} {own:g} mm, in training {low:g} to {high:g} mm"
            if native and axis < 2:
                text += f", and the weights see them as they are: --spacing [{high:g},{high:g},-1.0] resamples"
            found.append(text)
    long, *usual = (max(s[:2]) / min(s[:2]) for s in (case["spacing"], *(seen["spacing"][e] for e in ("min", "max"))))
    if not found and long > SQUARE * max(usual):
        found.append(f"pixels {case['spacing'][0]:g} x {case['spacing'][1]:g} mm, {long:.1f} times longer than wide")
    return list(dict.fromkeys(found))


def _strange_contrasts(case: Description, seen: Description) -> list[str]:
    """Channels that do not look like what was seen as that channel, with the one that they look like, if any."""
    found = []
    for own, name, before in zip(case["contrast"], seen["channels"], seen["contrast"], strict=True):
        if (apart := _apart(own, before)) is None or apart <= CONTRAST:
            continue
        others = zip(seen["channels"], (_apart(own, other) for other in seen["contrast"]), strict=True)
        like = [other for other, far in others if far is not None and far <= 1.0]
        swapped = f", but like {like[0]!r}: are modalities swapped?" if like else ""
        found.append(f"contrast unlike {name!r} of the training ({apart:.1f} times the usual distance){swapped}")
    return found


def _apart(own: list[float] | None, before: Mapping[str, Any] | None) -> float | None:
    """Distance of contrasts in multiples of the limit; None where one is unknown."""
    if own is None or before is None:
        return None
    moments = np.array(before["mean"]), np.array(before["covariance"])
    return float(_distances(np.array([own]), *moments)[0]) / max(before["limit"], 1e-6)
