"""From maps to masks: morphology, thresholds, refinement by intensity, and the baselines that need no map."""

from .baselines import BaselineMasksd, Thresholds, fit_baselines, intensity_grid
from .from_labels import (
    OF_LUNGS,
    choose_gate,
    healthy_intensity,
    heat_threshold,
    in_multiples,
    pseudo_refine,
    reached_level,
    smallest_volume,
    volume_gate,
)
from .morphology import (
    clean,
    each_slice,
    hottest_component,
    largest_component,
    least_voxels,
    smooth_in_organ,
    volume_ml,
    without_thin,
)
from .refine import gate_slices, refine_by_intensity, refine_options, smooth_along_slices, smooth_in_plane
from .thresholds import NO_EVIDENCE, best_threshold, multi_otsu, otsu, threshold_grid
from .transforms import MapsToMaskd

__all__ = [
    "NO_EVIDENCE",
    "OF_LUNGS",
    "BaselineMasksd",
    "MapsToMaskd",
    "Thresholds",
    "best_threshold",
    "choose_gate",
    "clean",
    "each_slice",
    "fit_baselines",
    "gate_slices",
    "healthy_intensity",
    "heat_threshold",
    "hottest_component",
    "in_multiples",
    "intensity_grid",
    "largest_component",
    "least_voxels",
    "multi_otsu",
    "otsu",
    "pseudo_refine",
    "reached_level",
    "refine_by_intensity",
    "refine_options",
    "smallest_volume",
    "smooth_along_slices",
    "smooth_in_organ",
    "smooth_in_plane",
    "threshold_grid",
    "volume_gate",
    "volume_ml",
    "without_thin",
]
