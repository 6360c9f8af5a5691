from __future__ import annotations

import pytest
import torch

from tests.bundles.conftest import load_script
from tests.bundles.tonno_mosmed.conftest import SHAPE, SPACING

geometry = load_script("tonno_mosmed", "geometry")


def test_what_lies_outside_the_organ_is_never_seen(phantom):
    bright = phantom.clone()
    bright[0][phantom[1] == 0] = 9.0
    for kind in ("organ", "paper"):
        with_skull, without = (geometry.crop_to_organ(image, SPACING, geometry=kind) for image in (bright, phantom))
        assert torch.equal(with_skull.volume, without.volume)


def test_paper_geometry_fills_the_cube_and_leaves_the_volume_whole(phantom):
    body = geometry.crop_to_organ(phantom, SPACING, geometry="paper")
    assert body.volume.shape[1:] == SHAPE
    assert body.radius == 1.0
    assert [n * d - d for n, d in zip(SHAPE, body.spacing, strict=True)] == pytest.approx([2.0] * 3)


def test_the_body_is_the_organs_box_and_its_radius_reaches_every_corner_of_the_organs_voxels(phantom):
    body = geometry.crop_to_organ(phantom, SPACING)
    inside = phantom[1] > 0.5
    assert int(body.inside.sum()) == int(inside.sum())
    assert torch.equal(body.inside, inside[body.box])
    for axis in range(3):
        assert body.inside.movedim(axis, 0)[[0, -1]].flatten(1).any(1).all()
    center = 0.5 * (torch.tensor(body.inside.shape) - 1)
    farthest = ((body.inside.nonzero() - center).abs() + 0.5) * torch.tensor(SPACING)
    assert body.radius >= farthest.norm(dim=1).max()


def test_a_given_radius_holds_for_organs_that_it_holds_and_larger_ones_widen_it(phantom):
    alone = geometry.crop_to_organ(phantom, SPACING).radius
    assert geometry.crop_to_organ(phantom, SPACING, radius=alone + 5).radius == alone + 5
    assert geometry.crop_to_organ(phantom, SPACING, radius=alone - 5).radius == alone


@pytest.mark.parametrize(
    ("depth", "size", "starts"),
    [(20, 8, [0, 4, 8, 12]), (21, 8, [0, 4, 8, 12, 13]), (9, 3, [0, 1, 2, 3, 4, 5, 6]), (5, 1, [0, 1, 2, 3, 4])],
)
def test_stacks_overlap_by_half_and_the_last_ends_with_the_volume(depth, size, starts):
    assert geometry.overlapping_stacks(depth, size) == [slice(start, start + size) for start in starts]


@pytest.mark.parametrize("size", [None, 0, 7, 99])
def test_without_stacks_all_slices_are_one(size):
    assert geometry.overlapping_stacks(7, size) == [slice(0, 7)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_an_axis_hold_the_volumes_own_slices(axis):
    """Voxels of 1 mm, and as many pixels as the diameter has: every pixel is a voxel, or air."""
    image = torch.rand(1, 9, 9, 9) + 0.1
    body = geometry.crop_to_organ(image, (1.0, 1.0, 1.0), organ_channel=False)
    body = geometry.Body(body.volume, body.inside, body.spacing, 6.0, body.box)
    slices = geometry.slices_across(body, axis, 13)
    assert slices.shape == (9, 1, 13, 13)
    values = [sorted(part[part > 0].tolist()) for part in slices[:, 0, 2:11, 2:11]]
    expected = [sorted(part.flatten().tolist()) for part in image[0].movedim(axis, 0)]
    torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_pixel_is_as_large_as_its_share_of_the_planes_side():
    """Planes of 100 mm and 101 pixels, whose first and last lie on the rim."""
    inside = torch.ones(2, 2, 2, dtype=torch.bool)
    for radius, unit_mm in ((50.0, 1.0), (1.0, 50.0)):
        body = geometry.Body(inside[None].float(), inside, (1.0, 1.0, 1.0), radius, (slice(None),) * 3, unit_mm)
        assert body.pixel_cm2(101) == pytest.approx(0.01)
