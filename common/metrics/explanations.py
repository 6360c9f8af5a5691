"""How far two explanations of one decision agree, and how much the decision hangs on what they mark.

Maps are `[H, W]`, larger where there is more evidence; only positions `inside` (bool, `[H, W]`) count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr


def rank_correlation(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> float:
    """Spearman's correlation of two maps; NaN where one of them is constant."""
    a, b = first[inside], second[inside]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def top_region(heat: np.ndarray, inside: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The hottest `share` of the positions inside, at least one; among equals the first in reading order."""
    positions = np.flatnonzero(inside)
    count = min(len(positions), max(1, round(share * len(positions))))
    order = np.argsort(-heat.ravel()[positions], kind="stable")
    region = np.zeros(inside.shape, dtype=bool)
    region.ravel()[positions[order[:count]]] = True
    return region


def points_at(heat: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> bool:
    """The pointing game: whether the hottest position lies in the true mask (Zhang et al., arXiv:1608.00507)."""
    return bool((top_region(heat, inside, 0.0) & truth).any())


def perturbation_curve(
    score: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    heat: np.ndarray,
    inside: np.ndarray,
    *,
    insert: bool = False,
    fill: float = 1.0,
    steps: int = 10,
) -> np.ndarray:
    """Scores while the hottest positions are removed first (deletion) or brought back first (insertion).

    A faithful map makes the score fall early in deletion and rise early in insertion (Petsiuk et al.,
    arXiv:1806.07421).

    Args:
        score: of images `[N, C, H, W]`, `[N]`.
        image: `[C, H, W]`.
        heat, inside: see above.
        insert: start from the image whose inside is `fill`, and bring positions back.
        fill: what removed positions hold; 1 is the organ's median.
        steps: equal shares of the positions inside.

    Returns:
        `[steps + 1]`, from nothing changed to everything.

    Example:
        >>> image = np.array([[[1.0, 3.0]]])
        >>> total = lambda images: images.sum(axis=(1, 2, 3))
        >>> perturbation_curve(total, image, image[0], np.ones((1, 2), bool), fill=0.0, steps=2)
        array([4., 1., 0.])
    """
    positions = np.flatnonzero(inside)
    order = positions[np.argsort(-heat.ravel()[positions], kind="stable")]
    empty = image.copy()
    empty.reshape(len(image), -1)[:, order] = fill
    start, end = (empty, image) if insert else (image, empty)
    images = np.repeat(start[None], steps + 1, axis=0)
    flat = images.reshape(steps + 1, len(image), -1)
    for step in range(1, steps + 1):
        changed = order[: round(step / steps * len(order))]
        flat[step][:, changed] = end.reshape(len(image), -1)[:, changed]
    return score(images)


def area_under(curve: np.ndarray) -> float:
    """Area under a curve of equal steps whose whole width is 1, by trapezoids.

    Example:
        >>> area_under(np.array([1.0, 0.0, 0.0]))
        0.25
    """
    return float((curve[1:] + curve[:-1]).mean() / 2)
