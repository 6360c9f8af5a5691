from __future__ import annotations

import math

import pytest
import torch

from common.radon import directions, plane_offsets, sample_planes
from tests.bundles.conftest import load_script
from tests.bundles.tonno_mosmed.conftest import SPACING

geometry = load_script("tonno_mosmed", "geometry")
planes = load_script("tonno_mosmed", "planes")


def a_set(layout: str):
    normals = directions(24, layout=layout)
    return planes.Planes(normals, num_slices=10, size=16, meridians=layout == "latitude")


@pytest.mark.parametrize(("layout", "atol"), [("fibonacci", 1e-6), ("latitude", 0.2)])
def test_every_plane_that_meets_the_organ_is_cut_once_and_lies_in_its_place(phantom, layout, atol):
    """In the latitude layout slices are interpolated twice, which smooths them."""
    body = geometry.crop_to_organ(phantom, SPACING, radius=30.0)
    several = a_set(layout)
    hits_organ = several.hits_organ(body)
    assert 0 < hits_organ.float().mean() < 0.8
    cut = torch.full((*hits_organ.shape, 1, 16, 16), torch.nan)
    for part, images in several.cut(body, hits_organ, title="", progress=False):
        assert cut[part].isnan().all()
        cut[part] = cut[part].masked_scatter(hits_organ[part][..., None, None, None], images)
    offsets = plane_offsets(10, body.radius)
    for normal, line, hits in zip(several.normals, cut, hits_organ, strict=True):
        expected = sample_planes(body.volume, normal.expand(len(offsets), 3), offsets, size=16, **body.extent)
        torch.testing.assert_close(line[hits], expected[hits], atol=atol, rtol=0)
        assert line[~hits].isnan().all()
        assert expected[~hits].abs().max() == 0


def test_only_directions_on_meridians_are_weighed():
    assert a_set("fibonacci").weights is None
    weights = a_set("latitude").weights
    assert float(weights.sum()) == pytest.approx(4 * math.pi)
    assert weights.min() < 0.9 * weights.max()
