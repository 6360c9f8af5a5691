from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from common.cam import CAM, GradCAM, LayerCAM
from tests.cam.networks import METHODS, Wrapped, pooled, random_images, small_network


def state_of(network):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()]
    modes = [m.training for m in network.modules()]
    grads = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in network.parameters()]
    return hooks, modes, grads, copy.deepcopy(network.state_dict())


def assert_same_state(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    for (needed, grad), (needed_now, grad_now) in zip(before[2], after[2], strict=True):
        assert needed == needed_now
        assert (grad is None) == (grad_now is None)
        assert grad is None or torch.equal(grad, grad_now)
    assert all(torch.equal(value, after[3][name]) for name, value in before[3].items())


class TestNothingIsLeft:
    @pytest.mark.parametrize("frozen", ["no", "yes", "half"])
    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_hooks_modes_gradients_and_statistics_stay(self, method, frozen):
        network, images = small_network(), random_images()
        expected = method(copy.deepcopy(network), "late")(images, 1)
        network(images).sum().backward()  # every parameter has a .grad
        network.train()
        network.norm.eval()  # mixed modes
        for k, parameter in enumerate(network.parameters()):
            parameter.requires_grad_({"no": True, "yes": False, "half": k % 2 == 0}[frozen])
        before = state_of(network)
        with method(network, "late") as cam:
            maps = cam(images, 1)
        assert_same_state(before, state_of(network))
        torch.testing.assert_close(maps, expected)
        assert not maps.requires_grad
        assert not cam.logits.requires_grad

    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_also_after_an_exception(self, method):
        class Breaks(nn.Module):
            def forward(self, x):
                raise RuntimeError("broken head")

        network = small_network().train()
        network.head.register_forward_pre_hook(lambda *_: Breaks()(0))
        before = state_of(network)
        with pytest.raises(RuntimeError, match="broken head"), method(network, "late") as cam:
            cam(random_images(), 1)
        assert_same_state(before, state_of(network))

    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_also_after_a_wrong_target(self, method):
        network = small_network().train()
        before = state_of(network)
        with pytest.raises(ValueError, match="target"):
            method(network, "late")(random_images(), 3)
        assert_same_state(before, state_of(network))

    def test_no_graph_before_the_layer_and_none_of_weights_after_it(self):
        network, needed = small_network(), {}
        for name, module in network.named_children():
            module.register_forward_hook(
                lambda m, _, output, name=name: needed.update(
                    {name: output.requires_grad, name + ".parameters": any(p.requires_grad for p in m.parameters())}
                )
            )
        GradCAM(network, "late")(random_images(), 1)
        assert not any(needed[name] for name in ("early", "first", "middle", "norm"))
        assert needed["pool"]
        assert needed["head"]
        assert not needed["head.parameters"]


class TestModes:
    @pytest.mark.parametrize("method", METHODS)
    def test_training_mode_changes_nothing(self, method):
        network, images = small_network(), random_images()
        network.flat = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        expected = method(network, "first")(images, 1)
        torch.testing.assert_close(method(network.train(), "first")(images, 1), expected)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_works_in_every_gradient_mode(self, method, mode):
        network, images = small_network(), random_images()
        expected = method(network, "late")(images, 1)
        with mode():
            inputs = images.clone().requires_grad_(mode is torch.enable_grad)  # an inference tensor in that mode
            maps = method(network, "late")(inputs, 1)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        torch.testing.assert_close(maps, expected)
        assert not maps.requires_grad
        assert inputs.grad is None

    def test_images_of_inference_mode_may_be_used_again_behind_the_layer(self):
        network = Wrapped(lambda n, x: n.head(pooled(n.early(x) * x[:, :1, 1:-1, 1:-1])))
        expected = GradCAM(network, "early")(random_images(), 1)
        with torch.inference_mode():
            maps = GradCAM(network, "early")(random_images() + 0, 1)
        torch.testing.assert_close(maps, expected)

    def test_works_where_the_network_runs_its_encoder_without_gradients(self):
        class Frozen(nn.Module):
            def __init__(self, network):
                super().__init__()
                self.encoder, self.rest = network[:5], network[5:]

            def forward(self, x):
                with torch.no_grad():
                    features = self.encoder(x)
                return self.rest(features)

        network, images = small_network(), random_images()
        expected = GradCAM(network, "late")(images, 1)
        torch.testing.assert_close(GradCAM(Frozen(network), "encoder.late")(images, 1), expected)

    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_autocast_gives_float32_maps_close_to_full_precision(self, method):
        network, images = small_network(), random_images()
        expected = method(network, "late", normalize=True)(images, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = method(network, "late", normalize=True)(images, 1)
        assert maps.dtype == torch.float32
        assert (maps - expected).abs().max() < 0.05

    def test_small_gradients_survive_float16(self):
        network, images = small_network(), random_images()
        nn.init.constant_(network.head.weight, 1e-4)  # divided by 20 positions, then by 100: below float16's 6e-8
        network.head = nn.Sequential(network.head, nn.Linear(3, 2))
        nn.init.constant_(network.head[1].weight, 1e-2)
        expected = LayerCAM(network, "late")(images, 1)
        maps = LayerCAM(copy.deepcopy(network).half(), "late")(images.half(), 1)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, expected, rtol=2e-2, atol=2e-2 * float(expected.max()))

    @pytest.mark.parametrize("method", [*METHODS, CAM])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_memory_format_is_kept_and_changes_no_map(self, dims, method):
        channels_last = torch.channels_last if dims == 2 else torch.channels_last_3d
        network, images = small_network(dims), random_images(dims)
        expected = method(network, "late")(images, 1)
        kept = []
        network.middle.register_forward_hook(lambda _, i, o: kept.append(o.is_contiguous(memory_format=channels_last)))
        for _ in range(2):
            maps = method(network, "late")(images.contiguous(memory_format=channels_last), 1)
            torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)
            network = network.to(memory_format=channels_last)
        assert kept
        assert all(kept)

    def test_a_meta_tensor_gives_plain_maps(self):
        network, images = small_network(), random_images()
        seen = []
        network.early.register_forward_pre_hook(lambda _, inputs: seen.append(type(inputs[0])))
        maps = GradCAM(network, "late")(MetaTensor(images), 1)
        assert type(maps) is torch.Tensor
        assert seen == [torch.Tensor]

    def test_a_wrapped_network_is_named_as_the_inner_one(self):
        network, images = small_network(), random_images()
        expected = GradCAM(network, "late")(images, 1)
        torch.testing.assert_close(GradCAM(nn.DataParallel(network), "late")(images, 1), expected)
