"""Second round: planes of whole volumes, each with a label of its own from the masks that the first round wrote.

A volume's label is wrong for the planes that miss the finding. The supervision stays that label: it says which slices
may hold a pseudo-mask at all. With the true masks in their place the same training is the upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from torch import Tensor

from common.data import slice_classes, true_masks
from common.features import case_files
from common.images import meta_tensor, read_volume, spacing_of
from common.masks import refine_by_intensity
from common.radon import extreme_points

from .sampling import PlaneDataset, random_planes


def _heatmap(case: Mapping[str, Any], pseudo_dir: str | Path) -> Path:
    return Path(pseudo_dir) / f"{case['case']}_heatmap.nii.gz"


def with_pseudo_mask(
    case: Mapping[str, Any],
    image: MetaTensor,
    *,
    pseudo_dir: str | Path,
    threshold: float,
    refine: Mapping[str, Any] | None,
) -> list[tuple[Tensor, int]]:
    """The whole volume of a case with its pseudo-mask as one more channel before the organ, and whether there is one.

    The mask rides along so that planes of it are cut with those of the image. A volume labeled positive in which none
    is found is left out.
    """
    heat = meta_tensor(read_volume(_heatmap(case, pseudo_dir)))
    heat = ResampleToMatch(mode="bilinear")(heat, image)[0].numpy()
    volume = image.numpy()
    organ = volume[-1] > 0.5
    positive = np.array(slice_classes(case, volume.shape[-1])) > 0
    mask = (heat > threshold) & organ & positive
    if refine is not None:
        mask = refine_by_intensity(mask, volume[0], organ, spacing=spacing_of(image), **refine)
    return _masked(image, torch.as_tensor(mask[None])) if mask.any() or not positive.any() else []


def with_true_mask(case: dict, image: MetaTensor) -> list[tuple[Tensor, int]]:
    """As `with_pseudo_mask`, with the mask of the case: nothing in slices labeled 0."""
    return _masked(image, true_masks(case, image)["pseudo"])


def _masked(image: MetaTensor, mask: Tensor) -> list[tuple[Tensor, int]]:
    return [(torch.cat([image[:-1], mask.to(image.dtype), image[-1:]]), int(mask.any()))]


def pairs_of_planes(area: Tensor, organ: Tensor, *, count: int, min_area: float) -> Tensor:
    """Planes that meet a mask, each followed by one that misses it with the most similar share of the organ.

    Args:
        area: `[N]` of the mask in each plane.
        organ: `[N]` of the organ in each plane.
        count: pairs; the first planes are taken.
        min_area: of a plane that meets it; where too few have as much, the largest.

    Returns:
        Indices `[2 count]`, negatives drawn twice where they are few. Where no plane meets the mask, or all do, the
        first planes.
    """
    hit, missed = (area > 0).nonzero().flatten(), (area == 0).nonzero().flatten()
    if not len(hit) or not len(missed):
        return torch.arange(2 * count)
    # Stable: those that are large enough keep their random order, the others follow by size.
    order = torch.where(area[hit] >= min_area, torch.inf, area[hit]).argsort(descending=True, stable=True)
    positives = hit[order[torch.arange(count) % len(hit)]]
    free = organ[missed].float()
    negatives = []
    for plane in positives.tolist():
        nearest = int((free - organ[plane]).abs().argmin())
        negatives.append(int(missed[nearest]))
        if bool(free.isfinite().sum() > 1):
            free[nearest] = torch.inf
    return torch.stack([positives, torch.tensor(negatives)], dim=1).flatten()


class MaskedPlaneDataset(PlaneDataset):
    """Planes of whole volumes, half of which meet the volume's mask and are positive, half miss it.

    Planes that only graze it are left out. Every negative has as much of the organ in it as a positive of the same
    volume, as far as can be: near its rim an organ is small and healthy. Without a mask all planes are negative.

    Items are those of `PlaneDataset`, and `pseudo` `[planes, 1, size, size]`, the mask.

    Args:
        data: cases with `case`, `image` and `cls`.
        preprocessing: see `PlaneDataset`.
        volumes: gives a case's volume with the mask before the organ, and whether there is one; by default the true
            one, the upper bound of what labels teach.
        min_area_cm2: of the mask in a positive plane; a negative one has none.
        candidates: planes that are cut for one that is kept.
        options: of `PlaneDataset`; cases are not cut into stacks.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        volumes: Callable[[dict, Any], list[tuple[Tensor, int]]] = with_true_mask,
        min_area_cm2: float = 1.0,
        candidates: int = 6,
        **options: Any,
    ) -> None:
        super().__init__(data, preprocessing, volumes=volumes, **options)
        self.min_area_cm2 = min_area_cm2
        self.candidates = candidates
        # Where no mask is, all planes are negative, wherever they are drawn from.
        self.targets = [
            extreme_points(body.volume[-1] > 0.5 if label else body.inside, body.spacing)
            for body, label in zip(self.bodies, self.classes, strict=True)
        ]

    def _files(self, case: dict) -> list[Path]:
        return [*super()._files(case), *self._mask_files(case)]

    def _mask_files(self, case: dict) -> list[Path]:
        return case_files(case, ("label",))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        pairs = -(-self.planes // 2)
        drawn = [
            random_planes(points, self.candidates * pairs, generator=generator)
            for points in (self.targets[index], self.extremes[index])
        ]
        normals, offsets = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        cut = self._cut(index, normals, offsets, generator)
        image, mask = cut[:, :-1], cut[:, -1]
        area = mask.sum(dim=(1, 2)) * self.bodies[index].pixel_cm2(self.size)
        organ = (image != 0).any(dim=1).sum(dim=(1, 2))
        chosen = pairs_of_planes(area, organ, count=pairs, min_area=self.min_area_cm2)[: self.planes]
        return {
            "image": self._augmented(image[chosen]),
            "cls": (area[chosen] > 0).float(),
            "pseudo": mask[chosen][:, None],
        }


class PseudoPlaneDataset(MaskedPlaneDataset):
    """The same of pseudo-masks: the first round's heatmap, cut in the slices labeled positive, refined by intensity.

    Where no slice is positive all planes are negative; a volume labeled positive in which no pseudo-mask is found is
    left out. True masks are not even read.

    Args:
        data, preprocessing, options: see `MaskedPlaneDataset`.
        pseudo_dir: folder with `<case>_heatmap.nii.gz`, as `inference.json` writes them.
        threshold: of the heatmap.
        refine: options of `common.masks.refine_by_intensity`; None leaves the thresholded map.

    Raises:
        FileNotFoundError: the folder lacks the heatmap of a case.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        pseudo_dir: str | Path,
        threshold: float,
        refine: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        missing = [str(path) for path in (_heatmap(case, pseudo_dir) for case in data) if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(data)} heatmaps do not exist, e.g. {missing[0]}: write them with "
                "inference.json, --datalist and --section training"
            )
        self.pseudo_dir = pseudo_dir
        volumes = partial(with_pseudo_mask, pseudo_dir=pseudo_dir, threshold=threshold, refine=refine)
        super().__init__(data, preprocessing, volumes=volumes, **options)

    def _mask_files(self, case: dict) -> list[Path]:
        return [_heatmap(case, self.pseudo_dir)]
