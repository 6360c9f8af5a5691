"""From heatmaps to masks where no threshold could be fitted, and without specks: what `MapsToMaskd` leaves out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection

from common.binarize import clean, otsu
from common.transforms import MapsToMaskd

LABEL_FREE = ("otsu", "quantile")


class VolumeMasksd(MapsToMaskd):
    """`MapsToMaskd` with thresholds of the volume's own heat, and a least size of components.

    Args:
        keys: the inferer's output, see `MapsToMaskd`.
        binarize: `fixed`, `multi_otsu`, or without any fitted threshold `otsu` (of the heat inside the organ) or
            `quantile`.
        quantile: of the heat inside the organ, for `quantile`.
        min_component_ml: smaller 3D components are dropped.
        options: of `MapsToMaskd`.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        binarize: Literal["fixed", "multi_otsu", "otsu", "quantile"] = "fixed",
        quantile: float = 0.98,
        min_component_ml: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(keys, binarize="fixed" if binarize in LABEL_FREE else binarize, **options)
        if not 0 <= quantile <= 1:
            raise ValueError(f"mask_quantile must lie in [0, 1], got {quantile}")
        self.binarize = binarize
        self.quantile = quantile
        self.min_component_ml = min_component_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = super().__call__(data)
        if self.binarize in LABEL_FREE:
            data["threshold"] = torch.tensor(self.threshold)
        return data

    def _seed(self, heat: np.ndarray, organ: np.ndarray) -> np.ndarray:
        if self.binarize not in LABEL_FREE or not organ.any():
            return super()._seed(heat, organ)
        level = otsu(heat, mask=organ) if self.binarize == "otsu" else np.quantile(heat[organ], self.quantile)
        self.threshold = float(level)
        return (heat > level) & organ

    def _mask(
        self, seed: np.ndarray, image: np.ndarray, organ: np.ndarray, spacing: tuple[float, float, float]
    ) -> np.ndarray:
        mask = super()._mask(seed, image, organ, spacing)
        return clean(mask, min_size=least_voxels(self.min_component_ml, spacing)) if mask.any() else mask


def least_voxels(millilitres: float, spacing: tuple[float, float, float]) -> int:
    """Voxels of the given spacing in mm that make up a volume, rounded up."""
    return math.ceil(millilitres * 1000 / math.prod(spacing))
