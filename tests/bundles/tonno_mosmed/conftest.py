from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

SHAPE, SPACING = (34, 30, 20), (1.0, 1.2, 1.5)


@pytest.fixture(scope="session")
def phantom() -> torch.Tensor:
    """An ellipsoid off the center with a bright spot, and its mask: `[2, D, H, W]`."""
    axes = [(torch.arange(n) - 0.5 * (n - 1)) * d for n, d in zip(SHAPE, SPACING, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    shell = (points - torch.tensor([1.5, -2.0, 1.0])) / torch.tensor([12.0, 12.0, 10.0])
    organ = (shell.norm(dim=-1) < 1).float()
    spot = torch.exp(-(points - torch.tensor([4.0, 2.0, -2.0])).square().sum(-1) / 18)
    soft = F.avg_pool3d((organ * (1 + 2 * spot))[None, None], 3, stride=1, padding=1)[0]
    return torch.cat([soft * organ, organ[None]])
