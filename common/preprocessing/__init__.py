"""From an image file to what a network sees: checks, organ mask, normalization."""

from .organ import (
    ORGANS,
    brain_mask,
    head_mask,
    learned_lung_mask,
    lung_mask,
    normalize_by_median,
    normalize_by_mode,
    organ_mask,
)
from .transforms import CheckImaged, NormalizeByOrgand, OrganMaskd

__all__ = [
    "ORGANS",
    "CheckImaged",
    "NormalizeByOrgand",
    "OrganMaskd",
    "brain_mask",
    "head_mask",
    "learned_lung_mask",
    "lung_mask",
    "normalize_by_median",
    "normalize_by_mode",
    "organ_mask",
]
