"""From maps to masks: morphology, thresholds, refinement by intensity, and the baselines that need no map."""

from .baselines import BaselineMasksd, Thresholds, fit_baselines, intensity_grid
from .from_labels import choose_gate, heat_threshold, reached_level, smallest_volume, volume_gate
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
from .refine import gate_slices, refine_by_intensity, refine_options, smooth_along_slices
from .thresholds import NO_EVIDENCE, best_threshold, multi_otsu, otsu, threshold_grid
from .transforms import MapsToMaskd

__all__ = [
    "NO_EVIDENCE",
    "BaselineMasksd",
    "MapsToMaskd",
    "Thresholds",
    "best_threshold",
    "choose_gate",
    "clean",
    "each_slice",
    "fit_baselines",
    "gate_slices",
    "heat_threshold",
    "hottest_component",
    "intensity_grid",
    "largest_component",
    "least_voxels",
    "multi_otsu",
    "otsu",
    "reached_level",
    "refine_by_intensity",
    "refine_options",
    "smallest_volume",
    "smooth_along_slices",
    "smooth_in_organ",
    "threshold_grid",
    "volume_gate",
    "volume_ml",
    "without_thin",
]
