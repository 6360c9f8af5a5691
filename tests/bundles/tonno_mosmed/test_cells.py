from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.bundles.conftest import load_script

cells = load_script("tonno_mosmed", "cells")
geometry = load_script("tonno_mosmed", "geometry")


@pytest.mark.parametrize(("left", "right", "expected"), [(1, 1, 0.0), (0, 1, 1.0), (2, 0, -1.0)])
def test_the_first_cell_lies_where_padding_puts_it(left, right, expected):
    conv = nn.Conv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    network = nn.Sequential(nn.ZeroPad2d((left, right) * 2), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert cells.first_cell(network, "1", 32, 1) == expected


def test_nothing_is_left_on_the_network():
    network = nn.Sequential(nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    cells.first_cell(network, "0", 16, 1)
    assert network.training
    assert not network[0]._forward_hooks


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_map_that_is_the_pooled_slice_lies_where_the_slice_is(axis):
    """A volume that is linear in all three directions is its own mean over a cell: the map gives it back."""
    ramp = torch.stack(torch.meshgrid(*(torch.arange(16.0) for _ in range(3)), indexing="ij"))
    image = torch.einsum("k,kxyz->xyz", torch.tensor([1.0, 2.0, 4.0]), ramp)[None] + 1
    body = geometry.crop_to_organ(image, (1.0, 1.0, 1.0), organ_channel=False)
    body = geometry.Body(body.volume, body.inside, body.spacing, 7.5, body.box)
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 1))
    maps = network[0](geometry.slices_across(body, axis, 16))[:, 0]
    first = cells.first_cell(network, "0", 16, 1)
    heat = cells.maps_on_body(maps, body, axis, size=16, first=first)
    inner = [slice(2, 14)] * 3
    inner[axis] = slice(None)
    torch.testing.assert_close(heat[tuple(inner)], image[0][tuple(inner)], atol=1e-3, rtol=0)
