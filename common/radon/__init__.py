"""The 3D Radon transform: slices of a volume at any angle, their integrals, and its reconstruction (ToNNO).

Conventions of all functions here:

- A volume is `[D, H, W]` or `[C, D, H, W]`; components of normals and of in-plane axes run along the array axes in
  that order, which for MONAI's volumes are x, y, z. `spacing` is in mm of those axes and 1 by default; the origin is
  the volume's center.
- A plane (s, n) holds the points with `x · n = s`. A direction has M + 2 planes: M at `s_m = R (2m/(M-1) - 1)` and one
  more on either side for the second difference. R, `radius`, is by default half the volume's diagonal, which covers
  everything; give the same R to every call.
- Slices are square in mm whatever the spacing. The paper's unit cube is `**paper_geometry(shape)` in any call.
- Volumes are zero outside, so air must be 0.

The inversion formula is `f(x) = -1/(8π²) ∫ ∂²P/∂s² (x·n, n) dn` over the unit sphere. Three things differ from the
paper's equations, without which a reconstruction has the wrong scale or sign: the second difference of Eq. 9 is
divided by h², h = 2R/(M-1), not by 1/(M-1); plane integrals are sums of pixels times a pixel's area, not the means of
Eq. 5; and the constant c of Eq. 12, which is negative, has no place in an average of maps.
"""

from .geometry import (
    directions,
    extreme_points,
    half_diagonal,
    paper_geometry,
    plane_basis,
    plane_offsets,
    planes_through,
    solid_angles,
)
from .maps import MapReconstruction, reconstruct_maps
from .reconstruction import plane_integrals, reconstruct
from .slices import by_azimuth, oblique_slices, sample_planes

__all__ = [
    "MapReconstruction",
    "by_azimuth",
    "directions",
    "extreme_points",
    "half_diagonal",
    "oblique_slices",
    "paper_geometry",
    "plane_basis",
    "plane_integrals",
    "plane_offsets",
    "planes_through",
    "reconstruct",
    "reconstruct_maps",
    "sample_planes",
    "solid_angles",
]
