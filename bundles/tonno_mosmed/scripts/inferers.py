"""From a 2D classifier to the heatmap of a volume: ToNNO, its two CAM variants, and the single-view CAMs beside them.

Source: Schmidt-Mengin et al., "ToNNO: Tomographic Reconstruction of a Neural Network's Output for Weakly Supervised
Segmentation of 3D Medical Images", CVPR 2024, arXiv:2404.13103.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

import common.cam
from common.checkpoint import unwrapped
from common.images import spacing_of
from common.radon import MapReconstruction, directions, reconstruct

from .cells import first_cell, maps_on_body
from .geometry import GEOMETRIES, Body, Geometry, check_depth, crop_to_organ, overlapping_stacks, slices_across
from .networks import DrawnMap, highest_cm2
from .planes import Planes

CAMS = {"layercam": "LayerCAM", "gradcam": "GradCAM", "gradcampp": "GradCAMpp", "scorecam": "ScoreCAM"}
DRAWN = "drawn"
METHODS = ("tonno", *CAMS, "averaged_cam", "tomographic_cam")
Method = Literal["tonno", "layercam", "gradcam", "gradcampp", "scorecam", "averaged_cam", "tomographic_cam"]


class ToNNOInferer(Inferer):
    """Heatmap and probability of volumes from a 2D classifier with one logit.

    Every method cuts the organ's box into planes, and leaves out those that do not meet the organ: what the network
    says of an empty slice is computed once.

    - `tonno`: the logits of M + 2 planes in each of L directions, reconstructed (Eq. 11).
    - `averaged_cam`, `tomographic_cam`: the planes' class activation maps, averaged (Eq. 12), or their second
      difference across the planes (Eq. 13).
    - `layercam`, `gradcam`, `gradcampp`, `scorecam`: the maps of the axial slices, or the mean of those of the three
      axes. The last costs a forward for each channel of the layer.

    Args:
        method: one of those listed.
        cam_layer: resolution of the maps, 1 (finest) to as many as the network has `stages`.
        cam: of `averaged_cam` and `tomographic_cam`: `layercam`, `gradcam`, `gradcampp`, `scorecam`, or `drawn`, in
            place of an activation map the one that a network with a `map_width` draws, whatever the layer.
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
            network that learned from labels of planes (`train_refine.json`); `map`: the mean of the heatmap's highest
            cm² in a slice, for maps that are drawn.
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
        probability: Literal["volume", "slices", "map"] = "volume",
        quantile: float = 0.95,
        batch_size: int = 64,
        precision: Literal["float32", "bfloat16"] = "float32",
        compile: bool = False,
        progress: bool = True,
        backend: str = "torch",
    ) -> None:
        choices = {"method": (method, METHODS), "cam": (cam, (*CAMS, DRAWN)), "geometry": (geometry, GEOMETRIES)}
        choices |= {"views": (views, ("axial", "three")), "precision": (precision, ("float32", "bfloat16"))}
        choices |= {"probability": (probability, ("volume", "slices", "map"))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if cam_layer < 1:
            raise ValueError(f"cam_layer counts from 1, got {cam_layer}")
        if probability == "map" and (cam != DRAWN or method != "averaged_cam"):
            raise ValueError("probability 'map' is read off a map of probabilities: averaged_cam with cam 'drawn'")
        if stack is not None and stack < 0:
            raise ValueError(f"stack must be a number of slices, or 0 or null for the whole volume, got {stack}")
        self.method = method
        self.cam_layer = cam_layer
        self.cam = CAMS[method] if method in CAMS else CAMS.get(cam, DRAWN)
        normals = directions(num_directions, hemisphere=hemisphere, layout=layout)
        self.planes = Planes(normals, num_slices=num_slices, size=size, meridians=layout == "latitude")
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
        outputs = []
        for image in inputs:
            if self.method not in CAMS or self.views != "axial":
                check_depth(image)
            maps, probability = self.volumes(image.as_subclass(Tensor), spacing_of(image), net)
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
        totals = {name: image.new_zeros(image.shape[1:], dtype=torch.float32) for name in self.names}
        probability, times = image.new_zeros((2, depth)).float(), image.new_zeros(depth).float()
        for part in overlapping_stacks(depth, self.stack):
            times[part] += 1
            body = crop_to_organ(image[..., part], spacing, **self.body_options)
            if body is None:
                probability[0, part] += 1
                continue
            heats, logits = self.heatmaps(body, network)
            x, y, z = body.box
            positive = torch.zeros_like(times[part])
            if self.probability == "slices":
                slices = slices_across(body, 2, self.size)
                positive[z] = self._logits(network, slices).sigmoid()
            elif self.probability == "volume" and len(logits):  # a plane may pass by an organ of a few voxels
                positive[:] = torch.quantile(logits.float(), self.quantile).sigmoid()
            probability[:, part] += torch.stack([1 - positive, positive])
            for name, heat in heats.items():
                totals[name][..., part][x, y, z] += heat
        heats = {name: total / times for name, total in totals.items()}
        if self.probability == "map":
            positive = highest_cm2(heats[self.method], spacing)
            return heats, torch.stack([1 - positive, positive])
        return heats, probability / times

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of `heatmaps`."""
        return (self.method,)

    def heatmaps(self, body: Body, network: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Heatmaps `[D, H, W]` of a body, 0 outside the organ, and the logits `[N]` of its planes."""
        if self.method in CAMS:
            axes = (2,) if self.views == "axial" else (0, 1, 2)
            (heat,), logits = self.single_views(body, network, (self.cam_layer,), axes=axes)
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
        hits_organ = self.planes.hits_organ(body)
        values = self._logits(run, self._air(body)).expand(hits_organ.shape).clone()
        for part, images in self._cut(body, hits_organ):
            if len(images):
                values[part] = values[part].masked_scatter(hits_organ[part], self._logits(run, images))
        return values, hits_organ

    def reconstructed(self, body: Body, profiles: Tensor) -> Tensor:
        """The volume `[D, H, W]` that profiles `[L, M + 2]` come from, 0 outside the organ."""
        heat = reconstruct(
            profiles,
            self.planes.normals.to(profiles),
            body.inside.shape,
            weights=None if self.planes.weights is None else self.planes.weights.to(profiles),
            backend=self.backend,
            **body.extent,
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
                first_cell=None
                if self.cam == DRAWN  # as its training had it
                else first_cell(network, name, self.size, body.volume.shape[0]),
                inside=body.inside,
                device=body.volume.device,
                **body.extent,
            )
            for name, _ in cam.layers
        ]
        air, logit = self._maps(cam, self._air(body))
        hits_organ = self.planes.hits_organ(body)
        values = logit.expand(hits_organ.shape).clone()
        for part, images in self._cut(body, hits_organ):
            maps = [nothing.expand(*hits_organ[part].shape, *nothing.shape[1:]).clone() for nothing in air]
            if len(images):
                seen, logits = self._maps(cam, images)
                values[part] = values[part].masked_scatter(hits_organ[part], logits)
                for whole, some in zip(maps, seen, strict=True):
                    whole[hits_organ[part]] = some
            weights = None if self.planes.weights is None else self.planes.weights[part]
            for layer, whole in zip(sums, maps, strict=True):
                layer.add(self.planes.normals[part], whole, weights)
        return [layer.result() for layer in sums], values, hits_organ

    def single_views(
        self, body: Body, network: nn.Module, layers: Sequence[int], *, axes: Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """For each layer the mean over the axes of the maps of the slices across them, and the slices' logits."""
        cam = self._cam(network, layers)
        views = [self._maps(cam, slices_across(body, axis, self.size)) for axis in axes]
        heats = []
        for k, (name, _) in enumerate(cam.layers):
            first = first_cell(network, name, self.size, body.volume.shape[0])
            read = [
                maps_on_body(maps[k], body, axis, size=self.size, first=first)
                for axis, (maps, _) in zip(axes, views, strict=True)
            ]
            heats.append(torch.stack(read).mean(0) * body.inside)
        return heats, torch.cat([logits for _, logits in views])

    def _cut(self, body: Body, hits_organ: Tensor) -> Iterator[tuple[slice, Tensor]]:
        return self.planes.cut(body, hits_organ, title=self.method, progress=self.progress)

    def _air(self, body: Body) -> Tensor:
        """A plane that does not meet the organ."""
        return body.volume.new_zeros(1, body.volume.shape[0], self.size, self.size)

    def _cam(self, network: nn.Module, layers: Sequence[int]) -> Any:
        if self.cam == DRAWN:
            return DrawnMap(network)
        stages: Sequence[str] = getattr(network, "stages", ())
        if max(layers) > len(stages):
            raise ValueError(
                f"cam_layer {max(layers)} does not exist: {type(network).__name__} has {len(stages)} stages"
            )
        return getattr(common.cam, self.cam)(network, [stages[layer - 1] for layer in layers])

    def _autocast(self, device: torch.device) -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _logits(self, network: Any, images: Tensor) -> Tensor:
        """Logits `[N]` of planes."""
        logits = []
        for batch in images.split(self.batch_size):
            with self._autocast(images.device):
                logits.append(one_logit(network(batch.contiguous(memory_format=torch.channels_last))))
        return torch.cat(logits)

    def _maps(self, cam: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Class activation maps `[N, h, w]` of planes for each layer, and their logits `[N]`."""
        maps, logits = [], []
        for batch in images.split(self.batch_size):
            with self._autocast(images.device):
                maps.append(cam(batch.contiguous(memory_format=torch.channels_last), target=1))
            logits.append(one_logit(cam.logits))
        return [torch.cat(layer) for layer in zip(*maps, strict=True)], torch.cat(logits)


def one_logit(logits: Tensor) -> Tensor:
    """`[N]` of `[N, 1]` or `[N]`, float32.

    Raises:
        ValueError: several logits.
    """
    if logits.dim() > 1 and logits.shape[1] != 1:
        raise ValueError(f"the network must give one logit for each slice (num_classes 1); got {list(logits.shape)}")
    return logits.reshape(len(logits)).float()
