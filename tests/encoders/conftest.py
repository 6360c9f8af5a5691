from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.encoders import Encoder, encoder


@pytest.fixture(scope="session")
def lite() -> Encoder:
    """EfficientNet-Lite0 with random weights."""
    torch.manual_seed(0)
    return encoder("efficientnet_lite0", weights=None)


def image(*shape: int, seed: int = 0) -> Tensor:
    """Random pixels in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
