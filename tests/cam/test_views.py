"""What explanations show a network of a slice is what inference shows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.cam import PaddedSlices, SliceLogit, grad_cam, guided_backpropagation, whole_slices
from common.engines import SliceMapInferer

OPTIONS = {
    "window": {"window": (32, 40), "divisor": 16},
    "window smaller than the organ": {"window": (8, 8), "divisor": 4},
    "window larger than the image": {"window": (64, 64), "divisor": 16},
    "bounding box": {"margin": 3, "divisor": 16},
    "mirrored": {"window": (30, 27), "divisor": 16, "flip": True},
}


class Noted(nn.Module):
    """Three classes from a convolution that tells left from right, and each batch that it got."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 3, 3, padding=1)
        self.ramp = torch.linspace(0, 1, 64)[:, None]
        self.seen: list[torch.Tensor] = []

    def explain(self, image):
        self.seen.append(image.detach().clone())
        height, width = image.shape[2:]
        if height % 4 or width % 4:
            raise ValueError("needs H and W that divide by 4")
        maps = self.layer(image[:, :1] * self.ramp[:height]) * (image[:, 1:] > 0.5)
        return maps, maps.mean(dim=(2, 3)) * 40

    def forward(self, image):
        return self.explain(image)[1]


@pytest.fixture
def volume():
    """`[2, 37, 43, 4]`, organ last, whose place differs from slice to slice."""
    torch.manual_seed(1)
    organ = torch.zeros(37, 43, 4)
    for z in range(4):
        organ[3 + z : 20 + z, 5 : 28 + z, z] = 1
    return torch.stack([torch.rand(37, 43, 4), organ])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_network_gets_what_inference_gives_it(volume, options):
    network = Noted()
    SliceMapInferer(**options)(volume[None], network)
    views = PaddedSlices(SliceMapInferer(**options))(volume, 2)
    assert len(views) == len(network.seen)
    for view, seen in zip(views, network.seen, strict=True):
        torch.testing.assert_close(view.to_network(volume[None, ..., 2]), seen[2:3], atol=0, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_map_comes_back_to_where_it_was(volume, options):
    image, organ = volume[None, :1, ..., 1], volume[1, ..., 1] > 0.5
    for view in PaddedSlices(SliceMapInferer(**options))(volume, 1):
        back = view.to_slice(view.to_network(image)[0, 0])
        assert back.shape == (37, 43)
        assert torch.equal(back[organ], image[0, 0][organ])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shown", [1, 2])
def test_the_explained_probability_is_that_of_inference(volume, options, shown):
    network = Noted()
    expected = SliceMapInferer(**options)(volume[None], network)[0, 3 + shown, 0, 0]
    for z in range(4):
        views = PaddedSlices(SliceMapInferer(**options))(volume, z)
        logit = SliceLogit(network).at(volume[None, 1:, ..., z], shown=shown, views=views)
        assert float(logit(volume[None, :1, ..., z]).detach().sigmoid()) == pytest.approx(float(expected[z]), abs=1e-5)


def test_maps_are_the_mean_over_the_views_on_the_slice(volume):
    image, organ = volume[None, :1, ..., 1], volume[None, 1:, ..., 1]
    views = PaddedSlices(SliceMapInferer(**OPTIONS["mirrored"]))(volume, 1)
    logit = SliceLogit(Noted()).at(organ, shown=1, views=views)
    each = [SliceLogit(logit.network).at(organ, shown=1, views=[view]) for view in views]
    for explain in (guided_backpropagation, lambda score, seen: grad_cam(score, seen, "network.layer")):
        found = logit.mean_map(explain, image)
        assert found.shape == (37, 43)
        torch.testing.assert_close(found, (each[0].mean_map(explain, image) + each[1].mean_map(explain, image)) / 2)
    assert torch.equal(logit.mean_map(guided_backpropagation, image)[organ[0, 0] < 0.5][:50], torch.zeros(50))


def test_whole_slices_are_seen_as_they_are(volume):
    (view,) = whole_slices(volume, 1)
    assert torch.equal(view.to_network(volume[None, :1, ..., 1]), volume[None, :1, ..., 1])
    assert torch.equal(view.to_slice(volume[0, ..., 1]), volume[0, ..., 1])
