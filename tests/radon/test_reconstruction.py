from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.radon import (
    directions,
    half_diagonal,
    paper_geometry,
    plane_integrals,
    plane_offsets,
    reconstruct,
    solid_angles,
)

METHODS = ["direct", "fourier"]
SHAPE, SPACING = (25, 30, 16), (1.2, 1.0, 1.8)
CENTER = (3.0, -4.0, 2.5)  # mm


def coordinates(shape=SHAPE, spacing=SPACING):
    """mm from the volume's center, `[D, H, W, 3]`."""
    axes = [(torch.arange(n) - 0.5 * (n - 1)) * d for n, d in zip(shape, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def gaussian(points, sigma, center=CENTER):
    return torch.exp(-(points - torch.tensor(center)).square().sum(dim=-1) / (2 * sigma**2))


def gaussian_profiles(normals, offsets, sigma, center=CENTER):
    """Plane integrals in closed form."""
    distance = offsets - (normals @ torch.tensor(center))[:, None]
    return 2 * math.pi * sigma**2 * torch.exp(-(distance**2) / (2 * sigma**2))


def ball_profiles(normals, offsets, radius, center=CENTER):
    distance = offsets - (normals @ torch.tensor(center))[:, None]
    return math.pi * (radius**2 - distance**2).clamp(min=0)


def scale_and_correlation(actual, expected):
    scale = (actual * expected).sum() / expected.square().sum()
    return scale.item(), torch.corrcoef(torch.stack((actual.flatten(), expected.flatten())))[0, 1].item()


def random_profiles(count=40, planes=14, seed=0, dtype=torch.float32):
    return torch.randn(count, planes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("hemisphere", "layout", "weighted"),
    [(True, "fibonacci", False), (False, "fibonacci", False), (True, "latitude", True), (False, "latitude", True)],
)
def test_profiles_of_a_gaussian_give_it_back_in_scale_and_place(method, hemisphere, layout, weighted):
    normals = directions(600, hemisphere=hemisphere, layout=layout)
    radius = half_diagonal(SHAPE, SPACING)
    profiles = gaussian_profiles(normals, plane_offsets(121, radius), sigma=3.5)
    weights = solid_angles(normals) if weighted else None
    volume = reconstruct(profiles, normals, SHAPE, method=method, spacing=SPACING, weights=weights)
    expected = gaussian(coordinates(), sigma=3.5)
    scale, correlation = scale_and_correlation(volume, expected)
    assert scale == pytest.approx(1, abs=0.02)
    assert correlation > 0.999
    assert volume.max().item() == pytest.approx(expected.max().item(), rel=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_profiles_of_a_ball_give_one_inside_and_zero_outside(method):
    normals = directions(800)
    profiles = ball_profiles(normals, plane_offsets(101, half_diagonal(SHAPE, SPACING)), radius=8.0)
    volume = reconstruct(profiles, normals, SHAPE, method=method, spacing=SPACING)
    distance = (coordinates() - torch.tensor(CENTER)).norm(dim=-1)
    inside, outside = volume[distance < 6.5], volume[distance > 9.5]
    assert inside.mean().item() == pytest.approx(1, abs=0.02)
    assert outside.mean().item() == pytest.approx(0, abs=0.02)
    assert inside.std() < 0.1
    assert outside.std() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_summed_slices_of_a_volume_give_it_back(method):
    volume = gaussian(coordinates(), 4.0) + 0.5 * gaussian(coordinates(), 3.0, (-5.0, 6.0, -3.0))
    normals = directions(144, layout="latitude")
    profiles = plane_integrals(volume, normals, count=60, spacing=SPACING)
    actual = reconstruct(profiles, normals, SHAPE, method=method, spacing=SPACING, weights=solid_angles(normals))
    scale, correlation = scale_and_correlation(actual, volume)
    assert scale == pytest.approx(1, abs=0.06)  # interpolated twice on the way: a little blurred
    assert correlation > 0.995


@pytest.mark.parametrize("method", METHODS)
def test_constant_volume_gives_its_constant_back(method):
    volume = torch.full((16, 16, 16), 3.0)
    normals = directions(100, layout="latitude")
    profiles = plane_integrals(volume, normals, count=60)
    actual = reconstruct(profiles, normals, (16, 16, 16), method=method, weights=solid_angles(normals))
    assert actual[4:12, 4:12, 4:12].mean().item() == pytest.approx(3, rel=0.02)
    assert actual[4:12, 4:12, 4:12].std() < 0.3


def test_integrals_are_those_of_the_closed_form():
    normals = torch.cat((directions(12), directions(25, layout="latitude")[:5]))
    volume = gaussian(coordinates(), sigma=4.0)
    profiles = plane_integrals(volume, normals, count=20, spacing=SPACING)
    centered = gaussian_profiles(normals, plane_offsets(20, half_diagonal(SHAPE, SPACING)), sigma=4.0)
    assert (profiles - centered).abs().max() < 0.03 * centered.max()  # trilinear interpolation widens it
    mass = profiles.sum(dim=1) * 2 * half_diagonal(SHAPE, SPACING) / 19
    torch.testing.assert_close(mass, volume.sum().expand(17) * math.prod(SPACING), rtol=5e-3, atol=0)


def test_paper_geometry_reconstructs_in_the_unit_cube():
    shape = (20, 26, 32)
    geometry = paper_geometry(shape)
    volume = gaussian(coordinates(shape, geometry["spacing"]), 0.2, (0.1, -0.2, 0.15))
    normals = directions(144, layout="latitude")
    profiles = plane_integrals(volume, normals, count=40, size=40, **geometry)
    actual = reconstruct(profiles, normals, shape, weights=solid_angles(normals), **geometry)
    scale, correlation = scale_and_correlation(actual, volume)
    assert scale == pytest.approx(1, abs=0.06)
    assert correlation > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_hemisphere_and_full_sphere_agree(method):
    radius = half_diagonal(SHAPE, SPACING)
    volumes = []
    for hemisphere in (True, False):
        normals = directions(700, hemisphere=hemisphere)
        profiles = gaussian_profiles(normals, plane_offsets(61, radius), sigma=3.5)
        volumes.append(reconstruct(profiles, normals, SHAPE, method=method, spacing=SPACING))
    assert (volumes[0] - volumes[1]).abs().max() < 0.03
    flipped = reconstruct(profiles.flip(1), -normals, SHAPE, method=method, spacing=SPACING)
    torch.testing.assert_close(flipped, volumes[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_turned_directions_turn_the_volume(method):
    profiles, normals = random_profiles(), directions(40)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    volume = reconstruct(profiles, normals, (13, 13, 9), method=method)
    turned = reconstruct(profiles, normals @ quarter.T, (13, 13, 9), method=method)
    torch.testing.assert_close(turned, torch.rot90(volume, 1, (0, 1)), atol=1e-3 * volume.abs().max().item(), rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_offset_and_slope_of_a_profile_leave_no_trace(method):
    s = plane_offsets(12, half_diagonal((9, 9, 9)))
    profiles = 5 - 0.7 * s.expand(40, -1)
    assert reconstruct(profiles, directions(40), (9, 9, 9), method=method).abs().max() < 1e-4


def test_weights_count_relative_to_each_other():
    profiles, normals = random_profiles(), directions(40)
    weights = torch.zeros(40)
    weights[[3, 8]] = 7.0
    some = reconstruct(profiles, normals, (9, 9, 9), weights=weights)
    torch.testing.assert_close(some, reconstruct(profiles[[3, 8]], normals[[3, 8]], (9, 9, 9)))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_with_respect_to_the_profiles(method):
    profiles = random_profiles(6, 8, dtype=torch.float64).requires_grad_()
    normals = directions(6).double()
    options = {"method": method, "spacing": SPACING, "backend": "torch"}
    assert torch.autograd.gradcheck(lambda p: reconstruct(p, normals, (4, 5, 3), **options), profiles)


def test_one_direction_and_two_planes_are_enough():
    profiles = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    normal = torch.tensor([[0.0, 0.0, 1.0]])
    volume = reconstruct(profiles, normal, (1, 1, 5), method="direct", radius=2.0)
    # Second difference (-2, 1) / 16 at s = -2 and 2, linear between them, times -1/2π.
    expected = np.linspace(-2, 1, 5) / 16 / (-2 * math.pi)
    np.testing.assert_allclose(volume.flatten().numpy(), expected, atol=1e-7)


def test_profiles_in_low_precision_or_under_autocast_are_computed_in_float32():
    profiles, normals = random_profiles().bfloat16(), directions(40)
    expected = reconstruct(profiles.float(), normals, (9, 9, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reconstruct(profiles, normals, (9, 9, 9)), expected, atol=0, rtol=0)


def test_errors_say_what_to_do():
    profiles, normals = random_profiles(), directions(40)
    with pytest.raises(ValueError, match=r"L = 40 directions and M ≥ 2; got shape \[39, 14\]"):
        reconstruct(profiles[:39], normals, (9, 9, 9))
    with pytest.raises(ValueError, match=r"M ≥ 2; got shape \[40, 3\]"):
        reconstruct(profiles[:, :3], normals, (9, 9, 9))
    with pytest.raises(ValueError, match=r"at least one of them; got shape \[0, 3\]"):
        reconstruct(profiles[:0], normals[:0], (9, 9, 9))
    with pytest.raises(ValueError, match="unknown method 'fft'; choose 'fourier' or 'direct'"):
        reconstruct(profiles, normals, (9, 9, 9), method="fft")
    with pytest.raises(ValueError, match=r"three positive numbers of voxels; got \(9, 9\)"):
        reconstruct(profiles, normals, (9, 9))
    with pytest.raises(ValueError, match=r"weights must be \[40\].*got shape \[3\]"):
        reconstruct(profiles, normals, (9, 9, 9), weights=torch.ones(3))
    with pytest.raises(ValueError, match="radius must be a positive"):
        reconstruct(profiles, normals, (9, 9, 9), radius=-1.0)
    with pytest.raises(ValueError, match=r"\[C, D, H, W\]"):
        plane_integrals(torch.zeros(4, 4), normals, count=5)


def test_slices_that_are_summed_resolve_the_finest_axis_by_default():
    """Of sheets a voxel thin, of which coarser pixels would miss some and count others twice."""
    volume = torch.zeros(24, 4, 3)
    volume[[5, 11, 12, 18]] = 1.0
    profiles = plane_integrals(volume, torch.tensor([[0.0, 0.0, 1.0]]), count=15, spacing=(1.0, 4.0, 6.0), radius=20.0)
    mass = float(profiles.sum()) * 2 * 20.0 / 14
    assert mass == pytest.approx(4 * 4 * 3 * 24.0, rel=0.02)
