"""From a 2D classifier to the heatmap of a volume: ToNNO, its two CAM variants, and the single-view CAMs beside them.

Source: Schmidt-Mengin et al., "ToNNO: Tomographic Reconstruction of a Neural Network's Output for Weakly Supervised
Segmentation of 3D Medical Images", CVPR 2024, arXiv:2404.13103.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

import common.cam
from common.checkpoint import unwrapped
from common.radon import (
    MapReconstruction,
    directions,
    oblique_slices,
    plane_basis,
    plane_offsets,
    planes_through,
    reconstruct,
    sample_planes,
    solid_angles,
)

from .geometry import GEOMETRIES, Body, Geometry, crop_to_organ

CAMS = {"layercam": "LayerCAM", "gradcam": "GradCAM", "gradcampp": "GradCAMpp"}
METHODS = ("tonno", *CAMS, "averaged_cam", "tomographic_cam")
Method = Literal["tonno", "layercam", "gradcam", "gradcampp", "averaged_cam", "tomographic_cam"]


class ToNNOInferer(Inferer):
    """Heatmap and probability of volumes from a 2D classifier with one logit.

    Every method cuts the organ's box into planes, and leaves out those that do not meet the organ: what the network
    says of an empty slice is computed once.

    - `tonno`: the logits of M + 2 planes in each of L directions, reconstructed (Eq. 11).
    - `averaged_cam`, `tomographic_cam`: the planes' class activation maps, averaged (Eq. 12), or their second
      difference across the planes (Eq. 13).
    - `layercam`, `gradcam`, `gradcampp`: the maps of the axial slices, or the mean of those of the three axes.

    Args:
        method: one of those listed.
        cam_layer: resolution of the maps, 1 (finest) to as many as the network has `stages`.
        cam: of `averaged_cam` and `tomographic_cam`: `layercam`, `gradcam` or `gradcampp`.
        num_slices: M.
        num_directions: L, over half a sphere: a plane and its mirror image are the same.
        layout: `latitude` cuts planes some ten times faster, `fibonacci` is the paper's lattice.
        hemisphere: False for directions over the whole sphere, as in the paper.
        size: pixels of a plane's side.
        geometry, radius, organ_channel: see `scripts.geometry.crop_to_organ`.
        stack: cut the volume into overlapping stacks of so many slices along the last axis, each a volume of its own,
            as in training on stacks; where they overlap, heat and probability are the mean. None or 0: no stacks.
        views: of the single-view methods: `axial` or `three`.
        probability: `volume`: one for all slices of a volume; `slices`: that of the axial slice itself, which wants a
            network that learned from labels of planes (`train_refine.json`).
        quantile: a volume's probability is the sigmoid of this quantile of the logits of its planes; 1 is the maximum.
        batch_size: planes per forward.
        precision: `float32`, or `bfloat16` through autocast.
        compile: run the network through `torch.compile`; not for the CAMs, whose hooks it does not see.
        progress: show a bar with the time left for each volume.
        backend: of the backprojection, see `common.radon.reconstruct`.

    Raises:
        ValueError: an option that does not exist.
    """

    def __init__(
        self,
        *,
        method: Method = "tonno",
        cam_layer: int = 1,
        cam: str = "layercam",
        num_slices: int = 100,
        num_directions: int = 2000,
        layout: str = "latitude",
        hemisphere: bool = True,
        size: int = 224,
        geometry: Geometry = "organ",
        radius: float | None = None,
        organ_channel: bool = True,
        stack: int | None = None,
        views: Literal["axial", "three"] = "axial",
        probability: Literal["volume", "slices"] = "volume",
        quantile: float = 0.95,
        batch_size: int = 64,
        precision: Literal["float32", "bfloat16"] = "float32",
        compile: bool = False,
        progress: bool = True,
        backend: str = "torch",
    ) -> None:
        choices = {"method": (method, METHODS), "cam": (cam, tuple(CAMS)), "geometry": (geometry, GEOMETRIES)}
        choices |= {"views": (views, ("axial", "three")), "precision": (precision, ("float32", "bfloat16"))}
        choices |= {"probability": (probability, ("volume", "slices"))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if cam_layer < 1:
            raise ValueError(f"cam_layer counts from 1, got {cam_layer}")
        if stack is not None and stack < 0:
            raise ValueError(f"stack must be a number of slices, or 0 or null for the whole volume, got {stack}")
        self.method = method
        self.cam_layer = cam_layer
        self.cam = CAMS[method] if method in CAMS else CAMS[cam]
        self.num_slices = num_slices
        self.normals = directions(num_directions, hemisphere=hemisphere, layout=layout)
        self.weights = solid_angles(self.normals) if layout == "latitude" and len(self.normals) > 2 else None
        self.layout = layout
        self.size = size
        self.body_options: dict[str, Any] = {"geometry": geometry, "radius": radius, "organ_channel": organ_channel}
        self.stack = stack
        self.views = views
        self.probability = probability
        self.quantile = quantile
        self.batch_size = batch_size
        self.precision = precision
        self.compile = compile
        self.progress = progress
        self.backend = backend

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network.

        Args:
            inputs: `[B, C_in, D, H, W]`, a `MetaTensor` where the spacing is not 1 mm.
            network: `[N, C, h, w]` to one logit `[N, 1]`; for the CAMs with `stages`, names of its layers.

        Returns:
            `[B, 4, D, H, W]`: maps of class 0 (zero) and 1, then the probabilities of both, constant over a slice.
        """
        net = unwrapped(network)
        affines = torch.as_tensor(inputs.affine).reshape(-1, 4, 4) if hasattr(inputs, "affine") else torch.eye(4)[None]
        spacings = [affine_to_spacing(affine).tolist() for affine in affines]
        outputs = []
        for i, image in enumerate(inputs.as_subclass(Tensor)):
            maps, probability = self.volumes(image, spacings[min(i, len(spacings) - 1)], net)
            (heat,) = maps.values()
            shown = probability[:, None, None].expand(2, *heat.shape)
            outputs.append(torch.cat([torch.zeros_like(heat)[None], heat[None], shown]))
        return torch.stack(outputs)

    @torch.no_grad()
    def volumes(self, image: Tensor, spacing: Sequence[float], network: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Heatmaps `[D, H, W]` by name, and the probabilities `[2, W]` of the slices, of an image `[C, D, H, W]`.

        With `stack` these are means over the stacks that hold a slice.
        """
        depth = image.shape[-1]
        size = min(self.stack or depth, depth)
        totals = dict.fromkeys(self.names, image.new_zeros(image.shape[1:], dtype=torch.float32))
        totals = {name: total.clone() for name, total in totals.items()}
        probability, times = image.new_zeros((2, depth)).float(), image.new_zeros(depth).float()
        for start in sorted({*range(0, depth - size, max(size // 2, 1)), depth - size}):
            part = slice(start, start + size)
            times[part] += 1
            body = crop_to_organ(image[..., part], spacing, **self.body_options)
            if body is None:
                probability[0, part] += 1
                continue
            heats, logits = self.heatmaps(body, network)
            x, y, z = body.box
            positive = torch.zeros(size, device=image.device)
            if self.probability == "slices":
                positive[z] = self.slice_logits(body, network).sigmoid()
            else:
                positive[:] = torch.quantile(logits.float(), self.quantile).sigmoid()
            probability[:, part] += torch.stack([1 - positive, positive])
            for name, heat in heats.items():
                totals[name][..., part][x, y, z] += heat
        return {name: total / times for name, total in totals.items()}, probability / times

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of `heatmaps`."""
        return (self.method,)

    def heatmaps(self, body: Body, network: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Heatmaps `[D, H, W]` of a body, 0 outside the organ, and the logits `[N]` of its planes."""
        if self.method in CAMS:
            (heat,), logits = self.single_views(body, network, (self.cam_layer,))
            return {self.method: heat}, logits
        if self.method == "tonno":
            profiles, hits_organ = self.profiles(body, network)
            return {"tonno": self.reconstructed(body, profiles)}, profiles[hits_organ]
        kind = self.method.removesuffix("_cam")
        (volume,), profiles, hits_organ = self.map_volumes(body, network, (self.cam_layer,), kinds=(kind,))
        return {self.method: volume[kind]}, profiles[hits_organ]

    def profiles(self, body: Body, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits `[L, M + 2]` of all planes, and which of them meet the organ."""
        run = torch.compile(network) if self.compile else network
        hits_organ = self._hits_organ(body)
        values = self._logits(run, self._air(body)).expand(hits_organ.shape).clone()
        for part, images in self._planes(body, hits_organ):
            if len(images):
                logits = [self._logits(run, chunk) for chunk in images.split(self.batch_size)]
                values[part] = values[part].masked_scatter(hits_organ[part], torch.cat(logits))
        return values, hits_organ

    def reconstructed(self, body: Body, profiles: Tensor) -> Tensor:
        """The volume `[D, H, W]` that profiles `[L, M + 2]` come from, 0 outside the organ."""
        heat = reconstruct(
            profiles,
            self.normals.to(profiles),
            body.inside.shape,
            spacing=body.spacing,
            radius=body.radius,
            weights=None if self.weights is None else self.weights.to(profiles),
            backend=self.backend,
        )
        return heat * body.inside

    def map_volumes(
        self, body: Body, network: nn.Module, layers: Sequence[int], *, kinds: Sequence[str]
    ) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
        """Averaged and tomographic CAMs of several layers at the price of one, and what `profiles` returns."""
        cam = self._cam(network, layers)
        sums = [
            MapReconstruction(
                body.inside.shape,
                size=self.size,
                kinds=tuple(kinds),
                spacing=body.spacing,
                radius=body.radius,
                first_cell=first_cell(network, name, self.size, body.volume.shape[0]),
                inside=body.inside,
                device=body.volume.device,
            )
            for name, _ in cam.layers
        ]
        air, logit = self._maps(cam, self._air(body))
        hits_organ = self._hits_organ(body)
        values = logit.expand(hits_organ.shape).clone()
        for part, images in self._planes(body, hits_organ):
            if len(images):
                chunks = [self._maps(cam, chunk) for chunk in images.split(self.batch_size)]
                values[part] = values[part].masked_scatter(hits_organ[part], torch.cat([chunk[1] for chunk in chunks]))
            weights = None if self.weights is None else self.weights[part]
            for k, layer in enumerate(sums):
                maps = air[k].expand(*hits_organ[part].shape, *air[k].shape[1:]).clone()
                if len(images):
                    maps[hits_organ[part]] = torch.cat([chunk[0][k] for chunk in chunks])
                layer.add(self.normals[part], maps, weights)
        return [layer.result() for layer in sums], values, hits_organ

    def single_views(self, body: Body, network: nn.Module, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """For each layer the maps of the slices along the last axis, or the mean of those along each axis."""
        cam = self._cam(network, layers)
        axes = (2,) if self.views == "axial" else (0, 1, 2)
        views = [self._view(body, cam, axis) for axis in axes]
        heats = [torch.stack(same).mean(0) * body.inside for same in zip(*(v[0] for v in views), strict=True)]
        return heats, torch.cat([v[1] for v in views])

    def slice_logits(self, body: Body, network: nn.Module) -> Tensor:
        """Logits `[W]` of the slices along the last axis."""
        images = self._slices(body, 2)
        return torch.cat([self._logits(network, chunk) for chunk in images.split(self.batch_size)])

    def _slices(self, body: Body, axis: int) -> Tensor:
        """The slices across one axis, `[N, C, size, size]`."""
        count = body.inside.shape[axis]
        normal = torch.eye(3, device=body.volume.device)[axis]
        offsets = (torch.arange(count, device=body.volume.device) - 0.5 * (count - 1)) * body.spacing[axis]
        options: dict[str, Any] = {"size": self.size, "spacing": body.spacing, "radius": body.radius}
        return sample_planes(body.volume, normal.expand(count, 3), offsets, **options)

    def _view(self, body: Body, cam: Any, axis: int) -> tuple[list[Tensor], Tensor]:
        """Maps of the slices across one axis on the body's grid `[D, H, W]`, for each layer, and the slices' logits."""
        device, shape = body.volume.device, body.inside.shape
        normal = torch.eye(3, device=device)[axis]
        lines = [(torch.arange(n, device=device) - 0.5 * (n - 1)) * d for n, d in zip(shape, body.spacing, strict=True)]
        parts = [self._maps(cam, chunk) for chunk in self._slices(body, axis).split(self.batch_size)]
        # A voxel of a slice reads its map at (u, v), which are the other two axes up to sign and order.
        points = torch.stack(
            torch.meshgrid(*(line[:1] if a == axis else line for a, line in enumerate(lines)), indexing="ij"), -1
        )
        in_plane = torch.stack([points.squeeze(axis) @ w for w in reversed(plane_basis(normal))], dim=-1)  # v, u
        pixels = in_plane * (max(self.size - 1, 1) / (2 * body.radius)) + 0.5 * (self.size - 1)
        heats = []
        for k, (name, _) in enumerate(cam.layers):
            maps = torch.cat([part[0][k] for part in parts])
            side = self.size / maps.shape[-1]
            first = first_cell(cam.network, name, self.size, body.volume.shape[0])
            grid = (2 * (pixels - first) / side + 1) / maps.shape[-1] - 1
            grid = grid.expand(len(maps), *grid.shape)
            read = F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=False)
            heats.append(read[:, 0].movedim(0, axis))
        return heats, torch.cat([part[1] for part in parts])

    def _hits_organ(self, body: Body) -> Tensor:
        options: dict[str, Any] = {"spacing": body.spacing, "radius": body.radius}
        return planes_through(body.inside, self.normals.to(body.volume.device), count=self.num_slices, **options)

    def _planes(self, body: Body, hits_organ: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The planes that meet the organ, some directions at a time: which directions, and `[N, C, size, size]`."""
        normals = self.normals.to(body.volume.device)
        offsets = plane_offsets(self.num_slices, body.radius).to(normals)
        options: dict[str, Any] = {"size": self.size, "spacing": body.spacing, "radius": body.radius}
        for part in tqdm(self._runs(), desc=self.method, unit="run", leave=False, disable=not self.progress):
            if self.layout == "latitude":
                yield (
                    part,
                    oblique_slices(body.volume, normals[part], count=self.num_slices, **options)[hits_organ[part]],
                )
            else:
                which, plane = hits_organ[part].nonzero(as_tuple=True)
                yield part, sample_planes(body.volume, normals[part][which], offsets[plane], **options)

    def _runs(self) -> list[slice]:
        """Directions that are cut together: up to 8, of one meridian in the `latitude` layout."""
        length = 8
        if self.layout == "latitude":
            _, v = plane_basis(self.normals)
            new = ((v[1:] - v[:-1]).abs().amax(dim=1) > 1e-5).nonzero().flatten() + 1
            length = int(new[0]) if len(new) else len(self.normals)
        return [slice(k, min(k + length, len(self.normals))) for k in range(0, len(self.normals), length)]

    def _air(self, body: Body) -> Tensor:
        return body.volume.new_zeros(1, body.volume.shape[0], self.size, self.size)

    def _cam(self, network: nn.Module, layers: Sequence[int]) -> Any:
        stages: Sequence[str] = getattr(network, "stages", ())
        if max(layers) > len(stages):
            raise ValueError(
                f"cam_layer {max(layers)} does not exist: {type(network).__name__} has {len(stages)} stages"
            )
        return getattr(common.cam, self.cam)(network, [stages[layer - 1] for layer in layers])

    def _autocast(self, device: torch.device) -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _logits(self, network: Any, images: Tensor) -> Tensor:
        with self._autocast(images.device):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        return one_logit(logits)

    def _maps(self, cam: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
        with self._autocast(images.device):
            maps = cam(images.contiguous(memory_format=torch.channels_last), target=1)
        return maps, one_logit(cam.logits)


def one_logit(logits: Tensor) -> Tensor:
    """`[N]` of `[N, 1]` or `[N]`, float32.

    Raises:
        ValueError: several logits.
    """
    if logits.dim() > 1 and logits.shape[1] != 1:
        raise ValueError(f"the network must give one logit for each slice (num_classes 1); got {list(logits.shape)}")
    return logits.reshape(len(logits)).float()


def first_cell(network: nn.Module, layer: str, size: int, channels: int) -> float:
    """Pixel that the center of a layer's first cell lies on, along either axis: padding decides it.

    Measured: the center of mass of the input that a cell in the middle depends on, extrapolated to the first cell.
    """
    found: list[Tensor] = []
    module = dict(network.named_modules())[layer]
    handle = module.register_forward_hook(lambda _, __, output: found.append(output))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    noise = torch.rand(8, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    was_training = network.training
    try:
        with torch.inference_mode(False), torch.enable_grad():
            image = noise.clone().requires_grad_()
            network.eval()(image)
            cells = found[0].shape[-1]
            middle = cells // 2
            (gradient,) = torch.autograd.grad(found[0][..., middle, middle].abs().sum(), image)
    finally:
        handle.remove()
        network.train(was_training)
    weight = gradient.square().sum(dim=(0, 1))
    pixels = torch.arange(size, device=device, dtype=weight.dtype)
    center = 0.5 * float((weight.sum(0) @ pixels + weight.sum(1) @ pixels) / weight.sum())
    return round(2 * (center - middle * size / cells)) / 2 if math.isfinite(center) else 0.5 * (size / cells - 1)
