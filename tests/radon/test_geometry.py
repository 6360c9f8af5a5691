from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.radon import (
    directions,
    extreme_points,
    half_diagonal,
    paper_geometry,
    plane_basis,
    plane_integrals,
    plane_offsets,
    planes_through,
    solid_angles,
)
from common.radon.geometry import second_difference

SETS = [(hemisphere, layout) for hemisphere in (True, False) for layout in ("fibonacci", "latitude")]


@pytest.mark.parametrize(("hemisphere", "layout"), SETS)
def test_weighted_directions_integrate_even_polynomials_over_the_sphere(hemisphere, layout):
    normals = directions(500, hemisphere=hemisphere, layout=layout).double()
    assert abs(len(normals) - 500) <= math.sqrt(500)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(normals), dtype=torch.float64))
    mean = solid_angles(normals) / (4 * math.pi)
    second = torch.einsum("l,la,lb->ab", mean, normals, normals)
    torch.testing.assert_close(second, torch.eye(3).double() / 3, atol=2e-3, rtol=0)
    fourth = torch.einsum("l,la,lb->ab", mean, normals**2, normals**2)
    torch.testing.assert_close(fourth, (torch.ones(3, 3) + 2 * torch.eye(3)).double() / 15, atol=2e-3, rtol=0)


def test_hemisphere_holds_each_line_once_and_the_paper_set_is_its_formula():
    assert (directions(300)[:, 1] > 0).all()
    lattice = directions(300, layout="latitude")
    closest = (lattice @ lattice.T).abs().fill_diagonal_(0).max()
    assert closest < math.cos(0.02)
    alpha = math.pi * (3 - math.sqrt(5))
    for number, normal in enumerate(directions(7, hemisphere=False).tolist()):
        y = 2 * number / 6 - 1
        r = math.sqrt(1 - y * y)
        assert normal == pytest.approx([r * math.cos(number * alpha), y, r * math.sin(number * alpha)], abs=1e-6)


def test_solid_angles_of_known_sets():
    axes = torch.eye(3)
    torch.testing.assert_close(solid_angles(axes), torch.full((3,), 4 * math.pi / 3))
    shared = solid_angles(torch.cat((axes, axes[:1], -axes[:1])))  # three of the five are one line
    torch.testing.assert_close(shared, (4 * math.pi / torch.tensor([9.0, 3, 3, 9, 9])))
    rows = 20
    nodes, gauss = np.polynomial.legendre.leggauss(rows)
    normals = directions(rows**2, layout="latitude")
    np.testing.assert_allclose(normals[:rows, 2].numpy(), nodes, atol=1e-6)
    expected = np.tile(gauss, rows) * 2 * math.pi / rows
    inner = np.abs(normals[:, 2].numpy()) < nodes[-1] - 1e-6  # at the pole a Voronoi cell is wider than Gauss's weight
    np.testing.assert_allclose(solid_angles(normals).numpy()[inner], expected[inner], rtol=2e-3)


def test_basis_is_orthonormal_and_right_handed_everywhere():
    normals = torch.cat((directions(200, hemisphere=False), torch.eye(3), -torch.eye(3)))
    u, v = plane_basis(normals)
    frame = torch.stack((normals, u, v), dim=1)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand_as(frame), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(frame), torch.ones(len(frame)), atol=1e-5, rtol=0)
    assert plane_basis(torch.tensor([0.0, 0.0, 1.0]))[0].tolist() == [1, 0, 0]


def test_offsets_hold_both_ends_and_one_plane_beyond():
    assert plane_offsets(5, 2.0).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert half_diagonal((6, 4, 12), (1.0, 3.0, 0.5)) == pytest.approx(math.sqrt(36 + 144 + 36) / 2)


def test_second_difference_is_exact_on_parabolas_along_any_axis():
    s = plane_offsets(9, 3.0)
    profiles = torch.stack((s**2, 4 * s**2 - s + 2))
    expected = torch.tensor([[2.0], [8.0]]).expand(2, 9)
    torch.testing.assert_close(second_difference(profiles, 0.75), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(second_difference(profiles.T, 0.75, dim=0), expected.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spacing", [1.0, (1.0, 2.0, 0.7)])
def test_no_plane_with_content_is_left_out_and_few_without(spacing):
    mask = torch.zeros(14, 12, 16)
    mask[2:6, 3:7, 10:13] = 1
    mask[4, 8, 3] = 1
    normals = torch.cat((directions(60), torch.eye(3)))
    options = {"count": 30, "spacing": spacing}
    chosen = planes_through(mask, normals, **options)
    filled = plane_integrals(mask, normals, size=60, **options) > 0
    assert not (filled & ~chosen).any()
    assert filled.sum() > 0.7 * chosen.sum()
    assert chosen.float().mean() < 0.7
    assert not planes_through(torch.zeros(14, 12, 16), normals, **options).any()
    assert planes_through(torch.ones(1, 1, 1, dtype=torch.bool), normals, count=4).any(dim=1).all()


def test_extreme_points_reach_as_far_as_the_mask_in_every_direction():
    mask = torch.rand(9, 7, 12, generator=torch.Generator().manual_seed(0)) > 0.9
    spacing = (1.0, 1.2, 1.5)
    points = (mask.nonzero() - 0.5 * (torch.tensor(mask.shape) - 1)) * torch.tensor(spacing)
    normals = directions(200, hemisphere=False)
    ends = extreme_points(mask, spacing)
    assert len(ends) < len(points) * 2
    torch.testing.assert_close((ends @ normals.T).amax(0), (points @ normals.T).amax(0))


def test_paper_geometry_stretches_the_volume_to_the_cube():
    geometry = paper_geometry((11, 5, 3))
    assert geometry == {"spacing": pytest.approx((0.2, 0.5, 1.0)), "radius": 1.0}


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least 1 direction; got 0"):
        directions(0)
    with pytest.raises(ValueError, match=r"unknown layout 'healpix'; choose one of \('fibonacci', 'latitude'\)"):
        directions(5, layout="healpix")
    with pytest.raises(ValueError, match="do not lie in one plane"):
        solid_angles(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0]]))
    with pytest.raises(ValueError, match="at least 2 planes; got 1"):
        plane_offsets(1, 5.0)
    with pytest.raises(ValueError, match="radius must be a positive"):
        plane_offsets(5, 0.0)
    with pytest.raises(ValueError, match=r"spacing must be one or three positive numbers of mm; got \(1, 0, 1\)"):
        half_diagonal((3, 3, 3), (1, 0, 1))
    with pytest.raises(ValueError, match="unit length"):
        planes_through(torch.ones(4, 4, 4), torch.ones(2, 3), count=5)
