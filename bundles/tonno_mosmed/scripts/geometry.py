"""The body that planes are cut from: an organ's box, its extent in mm, and its slices across an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from common.images import file_of
from common.radon import extreme_points, half_diagonal, paper_geometry, sample_planes

Geometry = Literal["organ", "paper"]
GEOMETRIES = get_args(Geometry)


@dataclass(frozen=True)
class Body:
    """A volume with its organ and its extent.

    Attributes:
        volume: `[C, D, H, W]`, 0 outside the organ.
        inside: `[D, H, W]` bool, the organ.
        spacing: of the three axes.
        radius: R, in the unit of the spacing.
        box: where the volume lies in the image.
        unit_mm: millimeters of the unit of the spacing; in a cube the geometric mean of its three axes.
    """

    volume: Tensor
    inside: Tensor
    spacing: tuple[float, float, float]
    radius: float
    box: tuple[slice, slice, slice]
    unit_mm: float = 1.0

    @property
    def extent(self) -> dict[str, Any]:
        """`spacing` and `radius`, as the functions of `common.radon` take them."""
        return {"spacing": self.spacing, "radius": self.radius}

    def axis(self, number: int) -> Tensor:
        """Positions `[N]` of the voxels along an axis, from the center, in the unit of the spacing."""
        count = self.inside.shape[number]
        return (torch.arange(count, device=self.inside.device) - 0.5 * (count - 1)) * self.spacing[number]

    def pixel_cm2(self, size: int) -> float:
        """Area of a pixel of planes of `size × size`."""
        return (0.2 * self.radius * self.unit_mm / (size - 1)) ** 2


def crop_to_organ(
    image: Tensor,
    spacing: Sequence[float],
    *,
    organ_channel: bool = True,
    geometry: Geometry = "organ",
    radius: float | None = None,
) -> Body | None:
    """The part of an image that planes are cut from.

    Args:
        image: `[C, D, H, W]`; with `organ_channel` the last channel is the organ mask, else every voxel that is not 0
            counts as organ.
        spacing: mm of the three axes.
        geometry: `organ` crops to the organ's box, in mm; `paper` takes the whole image as the cube [-1, 1]³.
        radius: of `organ`: mm that planes and slices reach from the box's center, so that pixels have one size in all
            volumes; an organ that is larger widens it. None: as far as the organ reaches.

    Returns:
        The body, or None where there is no organ.

    Raises:
        ValueError: no such geometry.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry must be one of {GEOMETRIES}, got {geometry!r}")
    image = image.as_subclass(Tensor)
    inside = image[-1] > 0.5 if organ_channel else (image != 0).any(dim=0)
    if not bool(inside.any()):
        return None
    volume = (image[:-1] if organ_channel else image).float() * inside
    if geometry == "paper":
        cube: dict[str, Any] = paper_geometry(inside.shape)
        unit = float(np.prod(np.divide(spacing, cube["spacing"])) ** (1 / 3))
        return Body(volume, inside, cube["spacing"], cube["radius"], (slice(None), slice(None), slice(None)), unit)
    ranges = [torch.nonzero(inside.any(dim=a).any(dim=b)).flatten() for a, b in ((1, 1), (0, 1), (0, 0))]
    x, y, z = (slice(int(r[0]), int(r[-1]) + 1) for r in ranges)
    volume, inside = volume[:, x, y, z], inside[x, y, z]
    steps = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    reach = float(extreme_points(inside, steps).norm(dim=1).max()) + half_diagonal((1, 1, 1), steps)
    return Body(volume, inside, steps, max(reach, radius or 0.0), (x, y, z))


def overlapping_stacks(depth: int, size: int | None) -> list[slice]:
    """Stacks of `size` of `depth` slices, each half a stack after the one before; the last ends with the last slice.

    Args:
        depth: slices of the volume.
        size: slices of a stack; None, 0, or more than there are: all slices are one.
    """
    size = min(size or depth, depth)
    starts = sorted({*range(0, depth - size, max(size // 2, 1)), depth - size})
    return [slice(start, start + size) for start in starts]


def check_depth(image: Tensor) -> None:
    """Refuse an image `[C, D, H, W]` of a single slice, through which there are no planes at other angles.

    Raises:
        ValueError: naming the file, where the image knows it.
    """
    if image.shape[-1] < 2:
        raise ValueError(
            f"{file_of(image)}: a picture, or a volume of one slice; tonno_mosmed looks at planes at all angles "
            "through a volume. gp_unet_brats, ensemble_gradcam_brats and insight_ct take single slices"
        )


def slices_across(body: Body, axis: int, size: int) -> Tensor:
    """The body's slices across one axis, `[N, C, size, size]`: planes, of the same extent as those at any angle."""
    offsets = body.axis(axis)
    normals = torch.eye(3, device=offsets.device)[axis].expand(len(offsets), 3)
    return sample_planes(body.volume, normals, offsets, size=size, **body.extent)
