"""Where the cells of class activation maps lie on the planes that they belong to, and in the body."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.radon import plane_basis

from .geometry import Body


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


def maps_on_body(maps: Tensor, body: Body, axis: int, *, size: int, first: float) -> Tensor:
    """Maps of the slices across one axis on the body's grid, bilinear within a slice.

    Args:
        maps: `[N, h, w]` of `slices_across(body, axis, size)`.
        body, axis, size: of the slices.
        first: see `first_cell`.

    Returns:
        `[D, H, W]`.
    """
    lines = [body.axis(number) for number in range(3)]
    # A voxel of a slice reads its map at (u, v), which are the other two axes up to sign and order.
    points = torch.stack(
        torch.meshgrid(*(line[:1] if number == axis else line for number, line in enumerate(lines)), indexing="ij"), -1
    )
    normal = torch.eye(3, device=points.device)[axis]
    in_plane = torch.stack([points.squeeze(axis) @ w for w in reversed(plane_basis(normal))], dim=-1)  # v, u
    pixels = in_plane * (max(size - 1, 1) / (2 * body.radius)) + 0.5 * (size - 1)
    grid = (2 * (pixels - first) / (size / maps.shape[-1]) + 1) / maps.shape[-1] - 1
    read = F.grid_sample(maps[:, None], grid.expand(len(maps), *grid.shape), padding_mode="border", align_corners=False)
    return read[:, 0].movedim(0, axis)
