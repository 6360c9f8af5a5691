"""The Radon transform of volumes: plane integrals, oblique slices, backprojection of what a network says of them."""

from .fourier import backproject_fourier
from .geometry import (
    INVERSION,
    LAYOUTS,
    Spacing,
    axis_spacing,
    check_normals,
    directions,
    extreme_points,
    full_precision,
    half_diagonal,
    paper_geometry,
    plane_basis,
    plane_offsets,
    plane_step,
    planes_through,
    relative_weights,
    second_difference,
    solid_angles,
)
from .maps import MapReconstruction, reconstruct_maps
from .reconstruction import plane_integrals, reconstruct
from .slices import by_azimuth, check_volume, oblique_slices, sample_planes, slice_size

__all__ = [
    "INVERSION",
    "LAYOUTS",
    "MapReconstruction",
    "Spacing",
    "axis_spacing",
    "backproject_fourier",
    "by_azimuth",
    "check_normals",
    "check_volume",
    "directions",
    "extreme_points",
    "full_precision",
    "half_diagonal",
    "oblique_slices",
    "paper_geometry",
    "plane_basis",
    "plane_integrals",
    "plane_offsets",
    "plane_step",
    "planes_through",
    "reconstruct",
    "reconstruct_maps",
    "relative_weights",
    "sample_planes",
    "second_difference",
    "slice_size",
    "solid_angles",
]
