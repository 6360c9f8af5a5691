"""Small heads of INSIGHT with known weights, and features for them."""

from __future__ import annotations

import torch

from tests.bundles.conftest import load_script

networks = load_script("insight_ct", "networks")


def small(*, seed=0, **options):
    torch.manual_seed(seed)
    return networks.InsightHead(6, **({"num_labels": 2, "width": 8} | options)).eval()


def features(tiles=5, size=7, channels=6, seed=1):
    return torch.randn(tiles, channels, size, size, generator=torch.Generator().manual_seed(seed))


def half_inside(tiles=5, size=7):
    return (torch.rand(tiles, 1, size, size, generator=torch.Generator().manual_seed(2)) > 0.5).float()
