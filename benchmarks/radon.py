"""What slicing and reconstruction cost beside their naive forms: `python -m benchmarks radon`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from common.radon import (
    MapReconstruction,
    directions,
    half_diagonal,
    oblique_slices,
    plane_offsets,
    reconstruct,
    sample_planes,
)


def benchmark_radon(
    shape: Sequence[int] = (128, 128, 128),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    num_directions: int = 2000,
    num_slices: int = 100,
    slice_size: int = 224,
    map_size: int = 56,
    repeats: int = 3,
    threads: int = 0,
) -> dict[str, float]:
    """Time slicing and backprojection, and correlate the fast backprojections with the direct one.

    The naive forms take a few directions and are scaled up to all. The profiles are those of random balls with noise
    of 1 % of the largest; correlations are taken over every third voxel of each axis.

    Args:
        shape: voxels of the volume.
        spacing: mm of its axes.
        num_directions: L.
        num_slices: M.
        slice_size: pixels of a slice's side.
        map_size: cells of a class activation map's side.
        repeats: the fastest counts.
        threads: CPU threads; 0 leaves torch's default.

    Returns:
        Seconds of the wall clock and of the CPU for each row printed, and the correlations.
    """
    if threads:
        torch.set_num_threads(threads)
    normals = directions(num_directions)
    profiles = _ball_profiles(normals, num_slices, half_diagonal(shape, spacing))
    result: dict[str, float] = {}

    def row(name: str, unit: str, function: Callable[[], object], scale: float = 1.0) -> None:
        wall, cpu = (scale * seconds for seconds in _fastest(function, repeats))
        result.update({f"{name} s": wall, f"{name} CPU-s": cpu})
        print(f"{name:45s} {wall:9.4f} s {cpu:9.4f} CPU-s  {unit}")

    print(f"volume {tuple(shape)}, L = {len(normals)}, M = {num_slices}, {torch.get_num_threads()} threads")
    few = min(8, len(normals))
    row(
        "backprojection, direct (naive)",
        "a volume",
        lambda: reconstruct(profiles[:few], normals[:few], shape, method="direct", spacing=spacing),
        scale=len(normals) / few,
    )
    # Every third voxel, on the fine grid's own positions.
    sparse = [max(n // 3 - (n // 3 - n) % 2, 1) for n in shape]
    radius = half_diagonal(shape, spacing)
    steps = [3.0 * d for d in spacing]
    reference = reconstruct(profiles, normals, sparse, method="direct", spacing=steps, radius=radius)
    for backend in ("torch", "finufft") if find_spec("finufft") else ("torch",):

        def fast(backend: str = backend) -> torch.Tensor:
            return reconstruct(profiles, normals, shape, backend=backend, spacing=spacing)

        row(f"backprojection, fourier, {backend}", "a volume", fast)
        starts = [(n - 1 - 3 * (m - 1)) // 2 for n, m in zip(shape, sparse, strict=True)]
        picked = fast()[tuple(slice(s, s + 3 * m - 2, 3) for s, m in zip(starts, sparse, strict=True))]
        pair = torch.stack((picked.flatten(), reference.flatten()))
        result[f"correlation {backend}"] = torch.corrcoef(pair)[0, 1].item()
        print(f"{'  correlation with direct':45s} {result[f'correlation {backend}']:9.4f}")

    volume = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    options = {"size": slice_size, "spacing": spacing}
    offsets = plane_offsets(num_slices, radius)
    meridian = directions(num_directions, layout="latitude")[: min(10, num_directions)]
    row(
        "slices, one at a time (naive)",
        "a direction",
        lambda: [sample_planes(volume, normals[:1], s[None], **options) for s in offsets],  # type: ignore[arg-type]
    )
    row(
        "slices, any directions",
        "a direction",
        lambda: oblique_slices(volume, normals[0], count=num_slices, **options),  # type: ignore[arg-type]
    )
    row(
        "slices, latitude layout",
        "a direction",
        lambda: oblique_slices(volume, meridian, count=num_slices, **options),  # type: ignore[arg-type]
        scale=1 / len(meridian),
    )
    maps = torch.rand(few, num_slices + 2, map_size, map_size)
    sums = MapReconstruction(shape, size=slice_size, spacing=spacing)
    row(f"maps of {map_size}, averaged and tomographic", "a direction", lambda: sums.add(normals[:few], maps), 1 / few)
    return result


def _ball_profiles(normals: torch.Tensor, count: int, radius: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    offsets = plane_offsets(count, radius)
    profiles = torch.zeros(len(normals), count + 2)
    for k in range(8):
        center = (torch.rand(3, generator=generator) - 0.5) * radius
        reach = radius * (0.06 + 0.02 * k)
        profiles += (reach**2 - (offsets - (normals @ center)[:, None]) ** 2).clamp(min=0)
    return profiles + 0.01 * profiles.max() * torch.randn(profiles.shape, generator=generator)


def _fastest(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall-clock and CPU seconds of some calls, after one to warm up."""
    function()
    spent = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(w for w, _ in spent), min(c for _, c in spent)
