"""Explanations of slices beside a bundle's own map, on networks whose evidence is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.cam import SliceLogit, default_layer, grad_cam, guided_backpropagation, occlusion_map


class Spot(nn.Module):
    """Two logits; the second is the brightest 3×3 mean inside the organ, the last channel."""

    def __init__(self, relu: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.mean = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.constant_(self.mean.weight, 1 / 9)
        nn.init.zeros_(self.mean.bias)
        self.relu = relu()

    def forward(self, x):
        found = (self.relu(self.mean(x[:, :1])) * (x[:, 1:] > 0.5)).amax(dim=(2, 3))
        return torch.cat([torch.zeros_like(found), found], dim=1)


@pytest.fixture
def slice_and_organ():
    image, organ = torch.zeros(1, 1, 24, 20), torch.ones(1, 1, 24, 20)
    image[..., 5:8, 10:13] = 3.0
    image[..., 15:20, 2:8] = 9.0  # brighter, outside the organ
    organ[..., 12:, :] = 0
    return image, organ


def hottest(heat):
    return divmod(int(heat.argmax()), heat.shape[1])


def test_the_organ_stays_while_the_image_changes(slice_and_organ):
    image, organ = slice_and_organ
    logit = SliceLogit(Spot()).at(organ)
    assert float(logit(image)) == pytest.approx(3)
    assert logit(torch.cat([image, 0 * image]))[:, 0].tolist() == pytest.approx([3, 0])
    one_logit = SliceLogit(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), organ_channel=False).at(organ)
    assert one_logit(image).tolist() == [[9.0]]


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6])
def test_all_find_what_the_logit_hangs_on(slice_and_organ, relu):
    image, organ = slice_and_organ
    logit = SliceLogit(Spot(relu)).at(organ)
    maps = {
        "occlusion": occlusion_map(logit, image, size=4, fill=0.0),
        "guided": guided_backpropagation(logit, image),
    }
    for name, heat in maps.items():
        assert heat.shape == (24, 20), name
        row, column = hottest(heat)
        assert 4 <= row <= 8, name
        assert 9 <= column <= 13, name
        assert float(heat[15:20, 2:8].abs().max()) < 1e-6, name


def test_grad_cam_has_the_size_of_the_image(slice_and_organ):
    image, organ = slice_and_organ
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    heat = grad_cam(SliceLogit(pooled, organ_channel=False).at(organ), image[..., :12, :], "network.1")
    assert heat.shape == (12, 20)
    assert hottest(heat) in {(row, column) for row in (5, 6, 7) for column in (10, 11, 12)}


def test_occlusion_is_the_fall_of_the_logit(slice_and_organ):
    image, organ = slice_and_organ
    heat = occlusion_map(SliceLogit(Spot()).at(organ), image, size=8, fill=0.0)
    assert float(heat[6, 11]) == pytest.approx(3.0, abs=1.0)
    assert float(heat[0, 0]) == pytest.approx(0, abs=1e-6)


class TestGuidedBackpropagation:
    def test_no_negative_gradient_passes_a_relu(self):
        network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU6(), nn.Conv2d(2, 1, 1, bias=False))
        network[0].weight.data = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)
        network[2].weight.data = torch.tensor([2.0, -5.0]).view(1, 2, 1, 1)
        score = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        image = torch.tensor([[[[1.0, 7.0], [-1.0, 2.0]]]])
        expected = torch.tensor([[0.5, 0.0], [0.0, 0.5]])  # 2 / 4; a saturated and a silent unit give none
        torch.testing.assert_close(guided_backpropagation(score, image), expected)

    def test_the_network_is_left_as_it_was(self):
        network = Spot(nn.ReLU6)
        guided_backpropagation(SliceLogit(network).at(torch.ones(1, 1, 8, 8)), torch.rand(1, 1, 8, 8))
        assert type(network.relu) is nn.ReLU6
        assert all(parameter.grad is None for parameter in network.parameters())


class Colors(nn.Module):
    """Class 1 is as likely as the image is bright, class 2 as it is dark."""

    def forward(self, x):
        dark, bright = (-x).amax(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright, dark], dim=1)


class TestClassShown:
    def test_its_logit_is_against_all_others(self):
        image = torch.randn(3, 1, 4, 4)
        probability = Colors()(image).softmax(1)
        for shown in (1, 2):
            logit = SliceLogit(Colors(), organ_channel=False, shown=shown)
            torch.testing.assert_close(logit(image).sigmoid()[:, 0], probability[:, shown])
        found = SliceLogit(Colors(), organ_channel=False)(image).sigmoid()[:, 0]
        torch.testing.assert_close(found, 1 - probability[:, 0])

    def test_it_is_what_the_maps_explain(self):
        image = torch.zeros(1, 1, 24, 20)
        image[..., 5:8, 10:13], image[..., 15:18, 3:6] = 5.0, -5.0
        for shown, (top, left) in {1: (5, 10), 2: (15, 3)}.items():
            logit = SliceLogit(Colors(), organ_channel=False, shown=shown)
            for heat in (occlusion_map(logit, image, size=4, fill=0.0), guided_backpropagation(logit, image)):
                row, column = hottest(heat)
                assert abs(row - top - 1) < 4, shown
                assert abs(column - left - 1) < 4, shown

    @pytest.mark.parametrize("shown", [0, 3])
    def test_a_class_that_does_not_exist_is_refused(self, shown):
        with pytest.raises(ValueError, match=rf"must be in 1…2, got {shown}"):
            SliceLogit(Colors(), organ_channel=False, shown=shown)(torch.zeros(1, 1, 4, 4))


class TestDefaultLayer:
    def test_the_network_names_it(self):
        network = nn.Sequential(nn.Conv2d(1, 1, 1))
        network.stages = ("fine", "coarse")
        assert default_layer(network) == "coarse"
        network.explained_layer = "0"
        assert default_layer(network) == "0"

    def test_else_the_error_says_what_to_set(self):
        with pytest.raises(ValueError, match=r"set explained_layer, below network\.0"):
            default_layer(nn.Sequential(nn.Conv2d(1, 1, 1)))
