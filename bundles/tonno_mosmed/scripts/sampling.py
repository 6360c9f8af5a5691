"""Training data of ToNNO: planes at random angles through volumes, each with the label of its volume (Section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset, Sampler

import common.training as training
from common.data import (
    VolumeCache,
    in_turns,
    matched_weights,
    runs,
    slice_classes,
    stratified_weights,
)
from common.data.cache import warn_of_memory
from common.data.slices import augmented, read_with_doubts, say_doubts
from common.engines import weighted_sampler
from common.features import case_files
from common.images import spacing_of
from common.radon import extreme_points, plane_basis, sample_planes

from .geometry import Geometry, check_depth, crop_to_organ
from .stored import Bodies, Volume, stored_volumes


def random_planes(points: Tensor, count: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Planes that meet the convex hull of some points: normals uniform on the sphere, offsets uniform in the hull.

    Args:
        points: `[P, 3]`.
        count: N.
        generator: source of randomness; by default torch's.

    Returns:
        Normals `[N, 3]` and offsets `[N]`.
    """
    normals = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    span = points @ normals.T
    return normals, torch.lerp(span.amin(0), span.amax(0), torch.rand(count, generator=generator))


def random_axes(
    normals: Tensor, *, scale: float = 0.0, shear: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """In-plane axes at a random angle; their lengths scale the slice, the angle between them shears it (Section 3.3).

    Args:
        normals: `[N, 3]`, unit length.
        scale: the length of each axis is uniform in `1 ± scale`.
        shear: each axis leans by up to this angle, in radians.
        generator: source of randomness; by default torch's.

    Returns:
        u and v, each `[N, 3]`, perpendicular to the normals.
    """
    u, v = plane_basis(normals)
    angle = 2 * torch.pi * torch.rand(len(normals), 1, generator=generator)
    axes = []
    for turn in (0.0, 0.5 * torch.pi):
        stretch, lean = 2 * torch.rand(2, len(normals), 1, generator=generator) - 1
        towards = angle + turn + shear * lean
        axes.append((1 + scale * stretch) * (torch.cos(towards) * u + torch.sin(towards) * v))
    return axes[0], axes[1]


def stacks(case: dict, depth: int, min_slices: int, max_slices: int | None) -> list[tuple[int, int, int]]:
    """`(start, stop, label)` of the volumes that a case is cut into: itself, or its stacks of slices of equal label."""
    labels = slice_classes(case, depth)
    if not isinstance(case.get("cls"), list) and "cls" in case:
        return [(0, depth, labels[0])]
    return runs([int(label > 0) for label in labels], min_slices=min_slices, max_slices=max_slices)


def labeled_stacks(
    case: dict, image: Tensor, *, min_slices: int, max_slices: int | None
) -> Iterator[tuple[Tensor, int]]:
    """The volumes of `stacks`, cut from the image `[C, D, H, W]` of a case, with their labels."""
    for start, stop, label in stacks(case, image.shape[-1], min_slices, max_slices):
        yield image[..., start:stop], label


def make_volumes(
    case: dict,
    *,
    preprocessing: Callable,
    volumes: Callable[[dict, Tensor], Iterable[tuple[Tensor, int]]],
    organ_channel: bool,
    geometry: Geometry,
    radius: float | None,
) -> list[Volume]:
    """The volumes of a case that hold some organ; see `PlaneDataset`."""
    made = []
    whole, doubts = read_with_doubts(case, preprocessing)
    check_depth(whole)
    for image, label in volumes(case, whole):
        body = crop_to_organ(image, spacing_of(image), organ_channel=organ_channel, geometry=geometry, radius=radius)
        if body is not None:
            points = extreme_points(body.inside, body.spacing)
            half = replace(body, volume=body.volume.half())
            made.append(Volume(half, points, int(label > 0), float(body.inside.sum()), doubts))
    return made


class PlaneDataset(Dataset):
    """Planes of preprocessed volumes, in half precision: held in memory, or in a cache on disk.

    An item is `{"image": [N, C, size, size] float32, "cls": [N] float32}`: N planes of one volume at random angles,
    all with the volume's label. A case with one label per slice is cut into stacks of equal label, each a volume.

    Args:
        data: cases with `image` and `cls` (an int for the volume, or one per slice, inferior to superior).
        preprocessing: gives `image` `[C, D, H, W]` with W running inferior to superior.
        planes: N, the paper's M_train.
        size: pixels of a plane's side.
        augment: transform of one plane, `{"image": [C, size, size]}`.
        scale, shear: see `random_axes`.
        fixed: the same planes each time, not augmented: for validation.
        organ_channel, geometry, radius: see `crop_to_organ`.
        min_slices, max_slices: of stacks, see `common.data.runs`.
        volumes: function of a case and its preprocessed image that gives the volumes to hold, each with its label, in
            place of those stacks.
        cache_dir: folder of a `common.data.VolumeCache`, for volumes that do not fit into memory, and for a second run
            that does not preprocess them again; None: in memory.
        progress: show a progress bar while reading.

    Attributes:
        bodies, extremes, classes, cases: the volumes with an organ, points of each organ between which planes meet
            it, their labels, and the cases that they are of.
        sizes: voxels of each organ.

    Raises:
        ValueError: a case without `cls`, with another number of labels than slices, or of a single slice.
        RuntimeError: no volume with an organ is left.
    """

    def __init__(
        self,
        data: Sequence[dict],
        preprocessing: Callable,
        *,
        planes: int = 16,
        size: int = 224,
        augment: Callable | None = None,
        scale: float = 0.0,
        shear: float = 0.0,
        fixed: bool = False,
        organ_channel: bool = True,
        geometry: Geometry = "organ",
        radius: float | None = None,
        min_slices: int = 4,
        max_slices: int | None = 8,
        volumes: Callable[[dict, Tensor], Iterable[tuple[Tensor, int]]] | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.planes = planes
        self.size = size
        self.augment = augment
        self.scale = scale
        self.shear = shear
        self.fixed = fixed
        volumes = volumes or partial(labeled_stacks, min_slices=min_slices, max_slices=max_slices)
        self._make = partial(
            make_volumes,
            preprocessing=preprocessing,
            volumes=volumes,
            organ_channel=organ_channel,
            geometry=geometry,
            radius=radius,
        )
        read = self._read(data, VolumeCache(cache_dir, self._make) if cache_dir else None, progress)
        together = [(case, volume) for case, found in zip(data, read, strict=True) for volume in found]
        self.bodies = Bodies(volume.body for _, volume in together)
        self.extremes = [volume.extremes for _, volume in together]
        self.classes = [volume.label for _, volume in together]
        self.sizes = [volume.size for _, volume in together]
        self.cases = [case for case, _ in together]
        if not self.bodies:
            raise RuntimeError("no volume is left to train on: are the images empty, or is the organ mask?")

    def _read(self, data: Sequence[dict], cache: VolumeCache | None, progress: bool) -> list[list[Volume]]:
        """The volumes of each case."""
        read: dict[int, list[Volume]] = {}
        for index in in_turns(data, progress=progress):
            case = data[index]
            make = partial(self._make, case)
            found = stored_volumes(cache, self._files(case), make, case.get("cls")) if cache else make()
            say_doubts(case, found[0].doubts if found else "")
            read[index] = found
            if cache is None and len(read) == 1:
                warn_of_memory([part for v in found for part in (v.body.volume, v.body.inside)], len(data))
        if cache is not None and progress:
            print(cache.report())
        return [read[index] for index in range(len(data))]

    def _files(self, case: dict) -> list[Path]:
        """All that the volumes of a case are made from; a mask only where it gives the label."""
        return case_files(case, ("image", "organ") if case.get("cls") is not None else ("image", "organ", "label"))

    def __len__(self) -> int:
        return len(self.bodies)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        normals, offsets = random_planes(self.extremes[index], self.planes, generator=generator)
        image = self._cut(index, normals, offsets, generator)
        return {"image": self._augmented(image), "cls": torch.full((self.planes,), float(self.classes[index]))}

    def _cut(self, index: int, normals: Tensor, offsets: Tensor, generator: torch.Generator | None) -> Tensor:
        """Planes `[N, C, size, size]` of a volume, turned, scaled and sheared at random within themselves."""
        body = self.bodies[index]
        scale, shear = (0.0, 0.0) if self.fixed else (self.scale, self.shear)
        u, v = random_axes(normals, scale=scale, shear=shear, generator=generator)
        return sample_planes(body.volume.float(), normals, offsets, size=self.size, u=u, v=v, **body.extent)

    def _augmented(self, image: Tensor) -> Tensor:
        """The planes, each augmented by itself; what is air stays air."""
        if self.augment is None or self.fixed:
            return image
        items: list[Any] = [augmented(self.augment, {"image": plane}) for plane in image]
        changed = torch.stack([convert_to_tensor(item["image"], track_meta=False) for item in items])
        return changed * (image != 0)


def balanced_sampler(
    dataset: PlaneDataset, *, num_samples: int, match_size: bool = True, bins: int = 10, stratify_by: Sequence[str] = ()
) -> Sampler:
    """Draw volumes with replacement, positives and negatives 1:1.

    Args:
        dataset: the planes.
        num_samples: volumes per epoch, over all processes of a distributed run.
        match_size: draw negatives whose organ is as large as the positives': in stacks, the end of an organ gives
            itself away as small and healthy.
        bins: of size.
        stratify_by: in place of sizes, match what else is known of the cases, e.g. `side`, and draw patients alike; see
            `common.data.stratified_weights`.
    """
    if stratify_by:
        positive = [bool(label) for label in dataset.classes]
        weights = stratified_weights(dataset.cases, positive, stratify_by=stratify_by)
    else:
        sizes = torch.tensor(dataset.sizes)
        positions = sizes / sizes.max() if match_size else torch.zeros_like(sizes)
        weights = matched_weights(dataset.classes, positions.tolist(), bins=bins)
    return weighted_sampler(dataset, weights.tolist(), num_samples)


def prepare_batch(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """`(image [B N, C, h, w], cls [B N, 1])` of a batch of B volumes with N planes each."""
    flat = {"image": batch["image"].flatten(0, 1), "cls": batch["cls"].flatten()[:, None]}
    return training.prepare_batch(flat, device, non_blocking)


def prepare_masks(
    batch: dict, device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(image [B N, C, h, w], target)` for `common.losses.MaskLoss`: each plane on its own, with its pseudo-mask."""
    image, cls = prepare_batch(batch, device, non_blocking)
    pseudo = batch["pseudo"].flatten(0, 1).to(device, non_blocking=non_blocking)
    organ = (image != 0).any(dim=1, keepdim=True).float()
    target = {"cls": cls, "bag": torch.full((len(image),), -1), "counts": torch.ones(len(image), device=device)}
    return image, target | {"pseudo": pseudo, "organ": organ}
