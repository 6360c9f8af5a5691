"""From an image file to what a network sees: reading and checks, organ mask, normalization."""

from .checking import CheckSeend, read_seen
from .loading import LoadCased, check_image
from .lungs import learned_lung_mask, lung_mask
from .organ import (
    ORGANS,
    brain_mask,
    head_mask,
    normalize_by_median,
    normalize_by_mode,
    organ_mask,
)
from .seen_writer import SeenWriter
from .spacing import SpacingByAxesd
from .supervision import supervision_of
from .transforms import NormalizeByOrgand, OrganMaskd
from .windows import within_window

__all__ = [
    "ORGANS",
    "CheckSeend",
    "LoadCased",
    "NormalizeByOrgand",
    "OrganMaskd",
    "SeenWriter",
    "SpacingByAxesd",
    "brain_mask",
    "check_image",
    "head_mask",
    "learned_lung_mask",
    "lung_mask",
    "normalize_by_median",
    "normalize_by_mode",
    "organ_mask",
    "read_seen",
    "supervision_of",
    "within_window",
]
