from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import nn

from common.cam import CAM, GradCAM, HiResCAM, LayerCAM, ScoreCAM, XGradCAM, normalize_maps
from common.cam.base import resolve_target, select_logit
from tests.cam.networks import METHODS, balanced_network, random_images, small_network


class TestBatches:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("method", METHODS)
    def test_equal_one_by_one_with_a_target_per_sample(self, method, dims):
        network, images, target = small_network(dims), random_images(dims, batch=4), [0, 2, 1, 2]
        cam = method(network, "first")
        together = cam(images, target)
        alone = torch.cat([cam(images[i : i + 1], target[i]) for i in range(4)])
        assert together.abs().amax() > 1e-4
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))

    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_argmax_explains_each_samples_own_class(self, method):
        network, images = balanced_network(batch=16)
        predicted = network(images).argmax(1)
        assert len(predicted.unique()) > 1
        cam = method(network, "late")
        torch.testing.assert_close(cam(images, "argmax"), cam(images, predicted))
        assert not torch.allclose(cam(images, "argmax"), cam(images, (predicted + 1) % 3))

    def test_target_may_be_an_int_a_list_an_array_or_a_tensor(self):
        network, images = small_network(), random_images()
        cam = GradCAM(network, "late", relu=False)
        expected = cam(images, 2)
        for target in ([2, 2, 2], np.array([2, 2, 2]), np.int64(2), torch.tensor([2, 2, 2]), torch.tensor(2)):
            torch.testing.assert_close(cam(images, target), expected)

    def test_target_has_no_default(self):
        with pytest.raises(TypeError, match="target"):
            GradCAM(small_network(), "late")(random_images())  # type: ignore[call-arg]


def test_targets_and_logits_are_selected_for_one_and_for_many_classes():
    logits = torch.tensor([[0.2, -1.0, 3.0], [4.0, 1.0, 0.0]])
    assert resolve_target("argmax", logits).tolist() == [2, 0]
    assert resolve_target("argmax", torch.tensor([[0.3], [-0.3]])).tolist() == [1, 0]
    assert select_logit(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert select_logit(torch.tensor([1, 0]), 1).tolist() == [[1], [-1]]


class TestOneLogit:
    def test_class_1_is_the_logit_and_class_0_its_negative(self):
        network, images = balanced_network(classes=1, batch=8)
        assert 0 < (network(images) > 0).sum() < 8
        pair = small_network(classes=2)
        pair.load_state_dict({k: v for k, v in network.state_dict().items() if "head" not in k}, strict=False)
        with torch.no_grad():
            pair.head.weight.copy_(torch.cat([-network.head.weight, network.head.weight]))
            pair.head.bias.copy_(torch.cat([-network.head.bias, network.head.bias]))
        squeezed = nn.Sequential(OrderedDict(net=network, last=nn.Flatten(0)))
        assert squeezed(images).shape == (8,)
        for method in (GradCAM, CAM, ScoreCAM):
            for target in (0, 1, [1, 0] * 4, "argmax"):
                expected = method(pair, "late")(images, target)
                torch.testing.assert_close(method(network, "late")(images, target), expected)
                torch.testing.assert_close(method(squeezed, "net.late")(images, target), expected)
        cam = GradCAM(squeezed, "net.late")
        cam(images, 1)
        assert cam.logits.shape == (8, 1)


class TestLayers:
    @pytest.mark.parametrize("method", [*METHODS])
    def test_several_layers_in_one_forward_equal_each_alone(self, method):
        network, images = small_network(), random_images()
        layers = ["first", network.late, "early"]  # any order, names and modules
        maps = method(network, layers)(images, 1)
        assert isinstance(maps, list)
        for one, layer in zip(maps, layers, strict=True):
            torch.testing.assert_close(one, method(network, layer)(images, 1), rtol=1e-5, atol=1e-7)
        assert len(method(network, ["late"])(images, 1)) == 1

    def test_several_layers_take_one_forward(self):
        network, calls = small_network(), []
        network.early.register_forward_hook(lambda *_: calls.append(1))
        LayerCAM(network, ["early", "first", "late"])(random_images(), 1)
        assert len(calls) == 1

    def test_a_layer_and_the_one_inside_it_may_both_be_named(self):
        network, images = small_network(), random_images()
        nested = nn.Sequential(OrderedDict(body=network[:5], rest=network[5:]))
        inner, outer = LayerCAM(nested, ["body.late", "body"])(images, 1)
        expected = LayerCAM(network, "late")(images, 1)
        torch.testing.assert_close(inner, expected)
        torch.testing.assert_close(outer, expected)

    @pytest.mark.parametrize("method", [*METHODS])
    @pytest.mark.parametrize("layers", ["early", ["early", "norm"]])
    def test_in_place_operations_after_the_layer_do_not_matter(self, method, layers):
        network, images = small_network(), random_images()
        expected = method(network, layers, relu=False)(images, 1)
        network.first.inplace = network.late.inplace = True
        maps = method(network, layers, relu=False)(images, 1)
        for one, other in zip(maps, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_logits_are_those_of_the_plain_forward(self):
        network, images = small_network(), random_images()
        for method in [*METHODS, CAM]:
            cam = method(network, "late")
            cam(images, 1)
            torch.testing.assert_close(cam.logits, network(images).detach())


class TestPostProcessing:
    def test_maps_are_raw_by_default(self):
        network, images = small_network(), random_images()
        with torch.no_grad():
            network.head.weight *= 7.0
        scaled = LayerCAM(network, "late")(images, 1)
        with torch.no_grad():
            network.head.weight /= 7.0
        torch.testing.assert_close(scaled, 7 * LayerCAM(network, "late")(images, 1))

    def test_relu_cuts_the_signed_map_and_can_be_left_out(self):
        network, images = small_network(), random_images()
        for method in (GradCAM, XGradCAM, HiResCAM, CAM):
            signed = method(network, "late", relu=False)(images, [0, 1, 2])
            assert signed.min() < 0 < signed.max()
            torch.testing.assert_close(method(network, "late", relu=True)(images, [0, 1, 2]), signed.relu())
            default = signed if method in (HiResCAM, CAM) else signed.relu()
            torch.testing.assert_close(method(network, "late")(images, [0, 1, 2]), default)

    def test_normalized_maps_peak_at_one_in_every_sample_and_are_not_inverted(self):
        network, images = small_network(), random_images()
        for upsample in (False, True):
            raw = LayerCAM(network, "late", upsample=upsample)(images, 1).flatten(1)
            maps = LayerCAM(network, "late", upsample=upsample, normalize=True)(images, 1).flatten(1)
            assert maps.amax(1).tolist() == [1.0, 1.0, 1.0]
            assert torch.equal(maps.argmax(1), raw.argmax(1))

    def test_normalization_keeps_zero_signs_and_tiny_maps(self):
        maps = torch.tensor([[[0.0, -2.0], [1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[1e-40, 0.0], [0.0, 0.0]]])
        expected = torch.tensor([[[0.0, -1.0], [0.5, 0.25]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
        torch.testing.assert_close(normalize_maps(maps), expected)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_upsampling_interpolates_linearly_between_voxel_centers(self, dims):
        network, images = small_network(dims), random_images(dims)
        raw = LayerCAM(network, "late")(images, 1)
        maps = LayerCAM(network, "late", upsample=True)(images, 1)
        assert raw.shape[1:] != maps.shape[1:] == images.shape[2:]
        for one, small in zip(maps.numpy(), raw.numpy(), strict=True):
            expected = resize(small, one.shape, order=1, mode="edge", anti_aliasing=False)
            np.testing.assert_allclose(one, expected, atol=1e-5)
