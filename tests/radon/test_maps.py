from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.radon import (
    MapReconstruction,
    directions,
    half_diagonal,
    oblique_slices,
    reconstruct,
    reconstruct_maps,
    solid_angles,
)

SHAPE, SPACING = (24, 22, 12), (1.0, 1.1, 2.0)


def phantom():
    """Small Gaussians of both signs of contrast, in mm."""
    axes = [(torch.arange(n) - 0.5 * (n - 1)) * d for n, d in zip(SHAPE, SPACING, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    blobs = [((4.0, -3.0, 2.0), 1.0), ((-5.0, 4.0, -4.0), 0.7), ((0.0, 6.0, 3.0), 0.5)]
    volume = torch.zeros(SHAPE)
    for center, height in blobs:
        volume += height * torch.exp(-(points - torch.tensor(center)).square().sum(-1) / (2 * 1.8**2))
    return volume


def pooled_maps(volume, normals, pool, *, count=40, size=64):
    """The "network" whose activation map is the slice itself, average-pooled: `[L, M + 2, h, w]`."""
    slices = oblique_slices(volume[None], normals, count=count, size=size, spacing=SPACING)[:, :, 0]
    return F.avg_pool2d(slices, pool)


def correlation(a, b):
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


def random_maps(count=6, planes=9, cells=(4, 5), seed=0):
    return torch.randn(count, planes, *cells, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [half_diagonal(SHAPE, SPACING), 9.0])  # with the second, voxels lie beyond R
def test_maps_of_one_cell_reconstruct_as_profiles_do(radius):
    normals = directions(30)
    maps = random_maps(30, 14, (1, 1))
    area = (2 * radius / 31 * 32) ** 2  # mm² of a slice of 32 pixels, the outer ones centered on ±R
    options = {"spacing": SPACING, "radius": radius}
    actual = reconstruct_maps([(normals, maps)], SHAPE, size=32, **options)
    expected = reconstruct(maps[:, :, 0, 0] * area, normals, SHAPE, method="direct", **options)
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_identity_maps_average_to_the_volume():
    volume, normals = phantom(), directions(36)
    averaged = reconstruct_maps(
        [(normals, pooled_maps(volume, normals, 1))], SHAPE, size=64, spacing=SPACING, kind="averaged"
    )
    assert correlation(averaged, volume) > 0.99
    assert ((averaged * volume).sum() / volume.square().sum()).item() == pytest.approx(0.93, abs=0.05)


def test_a_voxel_reads_all_three_of_its_coordinates():
    """A linear function of place is left as it is by trilinear interpolation, so its average is exact."""
    slope = torch.tensor([0.7, -1.1, 0.4])
    axes = [(torch.arange(n) - 0.5 * (n - 1)) * d for n, d in zip(SHAPE, SPACING, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    volume = points @ slope
    normals = directions(10)
    slices = oblique_slices(volume[None], normals, count=60, size=80, spacing=SPACING)[:, :, 0]
    inside = points.abs().amax(dim=-1) < 5
    averaged = reconstruct_maps([(normals, slices)], SHAPE, size=80, spacing=SPACING, kind="averaged")
    torch.testing.assert_close(averaged[inside], volume[inside], atol=1e-3, rtol=0)


def test_figure_4_averages_of_coarse_maps_blur_and_tomographic_ones_restore():
    volume, normals = phantom(), directions(144, layout="latitude")
    quality = {}
    for pool in (1, 4, 16, 32):
        sums = MapReconstruction(SHAPE, size=64, spacing=SPACING)
        for part, weights in zip(normals.split(12), solid_angles(normals).split(12), strict=True):
            sums.add(part, pooled_maps(volume, part, pool), weights)
        quality[pool] = {kind: correlation(v, volume) for kind, v in sums.result().items()}
    averaged = [q["averaged"] for q in quality.values()]
    assert averaged == sorted(averaged, reverse=True)
    assert averaged[0] > 0.99
    assert averaged[-1] < 0.6
    assert quality[1]["tomographic"] < 0.9  # fine maps: too sharp
    assert quality[16]["tomographic"] > 0.95
    assert quality[32]["tomographic"] > 0.9


def test_cells_of_strided_layers_sit_where_first_cell_says():
    volume, normals = phantom(), directions(60)
    slices = oblique_slices(volume[None], normals, count=40, size=64, spacing=SPACING)[:, :, 0]
    maps = slices[:, :, ::4, ::4]  # cell a is centered on pixel 4a, not 4a + 1.5
    options = {"size": 64, "spacing": SPACING, "kind": "averaged"}
    placed = reconstruct_maps([(normals, maps)], SHAPE, first_cell=0.0, **options)
    default = reconstruct_maps([(normals, maps)], SHAPE, **options)
    assert correlation(placed, volume) > 0.95
    assert correlation(placed, volume) > correlation(default, volume) + 0.03


def test_rectangular_slices_and_maps():
    volume, normals = phantom(), directions(20)
    slices = oblique_slices(volume[None], normals, count=40, size=(60, 80), spacing=SPACING)[:, :, 0]
    maps = F.avg_pool2d(slices, (1, 2))
    averaged = reconstruct_maps([(normals, maps)], SHAPE, size=(60, 80), spacing=SPACING, kind="averaged")
    assert correlation(averaged, volume) > 0.98


@pytest.mark.parametrize("kind", ["averaged", "tomographic"])
def test_chunks_add_up_to_the_whole(kind):
    normals, maps = directions(6), random_maps()
    options = {"size": 16, "spacing": SPACING, "kind": kind}
    whole = reconstruct_maps([(normals, maps)], SHAPE, **options)
    parts = reconstruct_maps(zip(normals.split(4), maps.split(4), strict=True), SHAPE, **options)
    torch.testing.assert_close(parts, whole)
    small = MapReconstruction(SHAPE, size=16, spacing=SPACING, kinds=(kind,), chunk=1000)
    small.add(normals, maps)
    torch.testing.assert_close(small.result()[kind], whole)


def test_weights_count_relative_to_each_other():
    normals, maps = directions(6), random_maps()
    weighted = MapReconstruction(SHAPE, size=16)
    weighted.add(normals[:3], maps[:3], torch.tensor([5.0, 0.0, 0.0]))
    weighted.add(normals[3:], maps[3:], torch.tensor([0.0, 0.0, 10.0]))
    repeated = MapReconstruction(SHAPE, size=16)
    repeated.add(normals[[0, 5, 5]], maps[[0, 5, 5]])
    for kind, volume in weighted.result().items():
        torch.testing.assert_close(volume, repeated.result()[kind])


def test_only_voxels_inside_are_computed():
    normals, maps = directions(6), random_maps()
    inside = phantom() > 0.2
    masked = MapReconstruction(SHAPE, size=16, inside=inside)
    full = MapReconstruction(SHAPE, size=16)
    for sums in (masked, full):
        sums.add(normals, maps)
    for kind, volume in masked.result().items():
        torch.testing.assert_close(volume, full.result()[kind] * inside)
    assert len(masked.points) == inside.sum()


def test_coarser_grid_over_the_same_field_is_a_subset_in_mm():
    normals, maps = directions(6), random_maps()
    fine = reconstruct_maps([(normals, maps)], (9, 9, 9), size=16, spacing=1.0, radius=8.0)
    coarse = reconstruct_maps([(normals, maps)], (3, 3, 3), size=16, spacing=3.0, radius=8.0)
    torch.testing.assert_close(coarse, fine[1::3, 1::3, 1::3])


def test_threads_do_not_change_the_result():
    normals, maps = directions(6), random_maps()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sums = MapReconstruction((7, 5, 3), size=16)
            sums.add(normals, maps)
            results.append(torch.stack(list(sums.result().values())))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results)


def test_autocast_is_kept_out():
    normals, maps = directions(6), random_maps()
    expected = reconstruct_maps([(normals, maps)], SHAPE, size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reconstruct_maps([(normals, maps)], SHAPE, size=16), expected, atol=0, rtol=0)


def test_errors_say_what_to_do():
    normals, maps = directions(6), random_maps()
    sums = MapReconstruction(SHAPE, size=16)
    with pytest.raises(ValueError, match=r"call add\(\)"):
        sums.result()
    with pytest.raises(ValueError, match=r"B = 5 directions and M ≥ 2; got shape \[6, 9, 4, 5\]"):
        sums.add(normals[:5], maps)
    with pytest.raises(ValueError, match=r"M ≥ 2; got shape \[6, 3, 4, 5\]"):
        sums.add(normals, maps[:, :3])
    with pytest.raises(ValueError, match=r"kinds must be some of \('averaged', 'tomographic'\); got \('mean',\)"):
        reconstruct_maps([(normals, maps)], SHAPE, size=16, kind="mean")
    with pytest.raises(ValueError, match=r"inside must have the shape \(24, 22, 12\)"):
        MapReconstruction(SHAPE, size=16, inside=torch.ones(3, 3, 3))
    with pytest.raises(ValueError, match="three positive numbers of voxels"):
        MapReconstruction((4, 4), size=16)
    with pytest.raises(ValueError, match="unit length"):
        sums.add(normals * math.pi, maps)
    with pytest.raises(ValueError, match=r"weights must be \[6\], one for each direction; got shape \[2\]"):
        sums.add(normals, maps, torch.ones(2))
