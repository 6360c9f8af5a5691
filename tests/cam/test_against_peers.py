from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet10
from monai.visualize import GradCAM as MonaiGradCAM

from common.cam import GradCAM, LayerCAM, ScoreCAM, XGradCAM
from tests.cam.networks import random_images, small_network

TARGET = [2, 0]


def resnet_and_images(dims):
    torch.manual_seed(0)
    network = resnet10(spatial_dims=dims, n_input_channels=1, num_classes=3, widen_factor=0.25).eval()
    return network, torch.randn(2, 1, *(64, 48, 32)[:dims])


@pytest.mark.parametrize("layer", ["layer1", "layer2.0.conv2", "layer4"])
@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_is_monais(dims, layer):
    """With one class for the whole batch: MONAI mixes the samples where there are several."""
    network, images = resnet_and_images(dims)
    options = {"upsampler": lambda size: lambda maps: maps, "postprocessing": lambda maps: maps}
    expected = MonaiGradCAM(network, layer, **options)(images, class_idx=2)[:, 0].detach()
    maps = GradCAM(network, layer)(images, 2)
    assert expected.max() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6 + 1e-4 * float(expected.max()))


class TestAgainstTorchCAM:
    """Not its Grad-CAM++, which in version 0.5 multiplies by g² where the paper divides to alpha."""

    @pytest.fixture
    def theirs(self):
        methods = pytest.importorskip("torchcam.methods", reason="TorchCAM (extra dev, Python ≥ 3.11) is not installed")

        def maps(name, network, layer, images, target):
            with getattr(methods, name)(network, layer) as extractor:
                return extractor(target, network(images), normalized=False)[0].detach()

        return maps

    @pytest.mark.parametrize("layer", ["layer1", "layer2.0.conv2", "layer4"])
    @pytest.mark.parametrize("method", [GradCAM, LayerCAM, XGradCAM])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_maps_agree_on_a_resnet(self, theirs, dims, method, layer):
        network, images = resnet_and_images(dims)
        expected = theirs(method.__name__, network, layer, images, TARGET)
        maps = method(network, layer)(images, TARGET)
        assert expected.abs().flatten(1).amax(1).min() > 0
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6 + 1e-4 * float(expected.abs().max()))
        torch.testing.assert_close(maps / maps.abs().max(), expected / expected.abs().max(), rtol=1e-4, atol=1e-5)

    def test_score_cam_agrees_where_nothing_is_upsampled(self, theirs):
        network, images = small_network(), random_images()
        expected = theirs("ScoreCAM", network, "first", images, [0, 2, 1])
        assert expected.abs().flatten(1).amax(1).min() > 0
        torch.testing.assert_close(ScoreCAM(network, "first")(images, [0, 2, 1]), expected, rtol=1e-4, atol=1e-6)
