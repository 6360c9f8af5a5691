"""Where the planes of a volume lie: the organ's box, its extent in mm, and the planes that meet it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.radon import half_diagonal, paper_geometry

GEOMETRIES = ("organ", "paper")
Geometry = Literal["organ", "paper"]


@dataclass(frozen=True)
class Body:
    """What planes are cut from, ready for the functions of `common.radon`.

    Attributes:
        volume: `[C, D, H, W]`, 0 outside the organ.
        inside: `[D, H, W]` bool, the organ.
        spacing: of the three axes.
        radius: R, in the unit of the spacing.
        box: where the volume lies in the image.
    """

    volume: Tensor
    inside: Tensor
    spacing: tuple[float, float, float]
    radius: float
    box: tuple[slice, slice, slice]

    def pixel_cm2(self, size: int) -> float:
        """Area of a pixel of planes of `size × size`, for spacings in millimeters."""
        return (0.2 * self.radius / (size - 1)) ** 2

    def extreme_points(self) -> Tensor:
        """Both ends of the organ's columns along the last axis, `[P, 3]` from the center: all extremes are theirs."""
        column = self.inside.any(dim=2).nonzero()
        rows = self.inside[column[:, 0], column[:, 1]].to(torch.uint8)
        first, last = rows.argmax(dim=1), rows.shape[1] - 1 - rows.flip(1).argmax(dim=1)
        ends = torch.cat([torch.cat((column, end[:, None]), dim=1) for end in (first, last)])
        center = 0.5 * (torch.as_tensor(self.inside.shape, device=ends.device) - 1)
        return (ends - center) * torch.as_tensor(self.spacing, device=ends.device)


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
    steps = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    if geometry == "paper":
        cube = paper_geometry(inside.shape)
        sides: tuple[float, float, float] = cube["spacing"]  # type: ignore[assignment]
        return Body(volume, inside, sides, float(cube["radius"]), (slice(None), slice(None), slice(None)))  # type: ignore[arg-type]
    ranges = [torch.nonzero(inside.any(dim=a).any(dim=b)).flatten() for a, b in ((1, 1), (0, 1), (0, 0))]
    x, y, z = (slice(int(r[0]), int(r[-1]) + 1) for r in ranges)
    body = Body(volume[:, x, y, z], inside[x, y, z], steps, 1.0, (x, y, z))
    reach = float(body.extreme_points().norm(dim=1).max()) + half_diagonal((1, 1, 1), steps)
    return Body(body.volume, body.inside, steps, max(reach, radius or 0.0), (x, y, z))
