"""The planes of a body at many angles: which of them meet the organ, and what they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common.radon import by_azimuth, oblique_slices, plane_offsets, planes_through, sample_planes, solid_angles

from .geometry import Body


class Planes:
    """M + 2 parallel planes in each of L directions.

    Args:
        normals: `[L, 3]`, unit length.
        num_slices: M.
        size: pixels of a plane's side.
        meridians: the directions are those of the `latitude` layout of `common.radon.directions`: those of a meridian
            are cut from one turned copy of the volume, and weighed by their solid angles.

    Attributes:
        weights: `[L]` solid angles; None where all weigh the same.
    """

    def __init__(self, normals: Tensor, *, num_slices: int, size: int, meridians: bool = False) -> None:
        self.normals = normals
        self.num_slices = num_slices
        self.size = size
        self.meridians = meridians
        self.weights = solid_angles(normals) if meridians and len(normals) > 2 else None

    def hits_organ(self, body: Body) -> Tensor:
        """Which planes meet the organ, bool `[L, M + 2]`."""
        return planes_through(body.inside, self.normals.to(body.volume.device), count=self.num_slices, **body.extent)

    def cut(self, body: Body, hits_organ: Tensor, *, title: str, progress: bool) -> Iterator[tuple[slice, Tensor]]:
        """The planes that meet the organ, some directions at a time.

        Args:
            body: what is cut.
            hits_organ: bool `[L, M + 2]`.
            title: of the progress bar.
            progress: show it.

        Yields:
            Which directions, and their planes `[N, C, size, size]`, of which there may be none.
        """
        normals = self.normals.to(body.volume.device)
        offsets = plane_offsets(self.num_slices, body.radius).to(normals)
        options: dict[str, Any] = {"size": self.size, **body.extent}
        parts = by_azimuth(self.normals) if self.meridians else [slice(k, k + 8) for k in range(0, len(normals), 8)]
        for part in tqdm(parts, desc=title, unit="run", leave=False, disable=not progress):
            hit = hits_organ[part]
            if self.meridians:
                yield part, oblique_slices(body.volume, normals[part], count=self.num_slices, **options)[hit]
            else:
                which, plane = hit.nonzero(as_tuple=True)
                yield part, sample_planes(body.volume, normals[part][which], offsets[plane], **options)
