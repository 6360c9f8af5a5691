"""Thin slices made as quiet as thick ones, so that scans of both look alike to the encoder."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage as ndi

from common.images import as_array, spacing_of


class SmoothAcrossSlicesd(MapTransform):
    """Gaussian across the slices (the last axis), in millimeters: it changes thick slices little and thin ones much.

    Args:
        keys: images `[C, H, W, D]`.
        sigma_mm: of the Gaussian; 0 changes nothing. Below 0.4 slices nothing is changed either.
    """

    def __init__(self, keys: KeysCollection, *, sigma_mm: float = 2.0) -> None:
        super().__init__(keys)
        if sigma_mm < 0:
            raise ValueError(f"sigma_mm must not be negative, got {sigma_mm}")
        self.sigma_mm = sigma_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            sigma = self.sigma_mm / spacing_of(image)[2]
            if sigma > 0.4 and image.shape[-1] > 1:
                smooth = ndi.gaussian_filter1d(as_array(image).astype("float32"), sigma, axis=-1, mode="nearest")
                data[key] = image.clone()
                data[key].copy_(torch.as_tensor(smooth))
        return data
