"""`MapsToMaskd` where numbers are at their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.masks import NO_EVIDENCE, MapsToMaskd


def volume(heat: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    """All organ, and a finding in every slice."""
    heat = heat.astype(np.float32)
    pred = np.stack([np.zeros_like(heat), heat, np.zeros_like(heat), np.ones_like(heat)])
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(np.ones((2, *heat.shape), np.float32), affine=affine), "pred": torch.as_tensor(pred)}


@pytest.mark.parametrize("least", [0.9, 1.0])
def test_a_mask_as_large_as_the_smallest_volume_stays(least):
    heat = np.zeros((10, 10, 2))
    heat[:5, :5] = 1.0  # 50 voxels of 20 microliters
    data = volume(heat, (2.0, 2.0, 5.0))
    assert MapsToMaskd(threshold=0.5, min_volume_ml=least)(data)["pred"].sum() == 50
    assert not MapsToMaskd(threshold=0.5, min_volume_ml=1.001)(data)["pred"].any()


def test_a_quantile_does_not_count_where_no_evidence_can_be():
    heat = np.full((10, 10, 1), NO_EVIDENCE)
    heat[5:9], heat[9] = 0.0, 1.0  # of the 50 that count, 40 and 10
    assert float(MapsToMaskd(binarize="quantile", mask_quantile=0.5)(volume(heat))["threshold"]) == 0.0
    assert MapsToMaskd(binarize="otsu")(volume(heat))["pred"].sum() == 10
