from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import resnet10
from skimage.transform import resize
from torch import nn

from common.cam import (
    CAM,
    GradCAM,
    GradCAMpp,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    SmoothGradCAMpp,
    XGradCAM,
    normalize_maps,
    resolve_target,
    select_logit,
    upsample_maps,
)

GRADIENT_METHODS = [GradCAM, GradCAMpp, HiResCAM, LayerCAM, XGradCAM]
METHODS = [*GRADIENT_METHODS, SmoothGradCAMpp, ScoreCAM]
SHAPES = {2: (10, 8), 3: (6, 5, 4)}


def small_network(dims=2, classes=3, activation=nn.ReLU, seed=0, head=True):
    """Two convolutions, average, a linear head; `late` sees a non-linear rest only where `early` is explained."""
    torch.manual_seed(seed)
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    pool = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    layers = OrderedDict(
        early=conv(2, 4, 3, padding=1),
        first=activation(),
        middle=conv(4, 6, 3, padding=1, stride=2),
        norm=norm(6),
        late=activation(),
        pool=pool,
        flat=nn.Flatten(),
        head=nn.Linear(6, classes) if head else nn.Identity(),
    )
    network = nn.Sequential(layers)
    network.norm.running_mean.normal_(std=0.2)
    network.norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(network.norm.weight, 0.5, 2.0)
    return network.eval()


def random_images(dims=2, batch=3, seed=1):
    return torch.randn((batch, 2, *SHAPES[dims]), generator=torch.Generator().manual_seed(seed))


def balanced_network(classes=3, batch=3):
    """A network and images that it puts into several classes."""
    network, images = small_network(classes=classes), random_images(batch=batch)
    with torch.no_grad():
        network.head.bias -= network(images).mean(0)
    return network, images


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


class TestClosedForms:
    """Average pooling and a linear head: dY/dA = w / Z everywhere."""

    @pytest.fixture(params=[2, 3])
    def case(self, request):
        network, images = small_network(request.param), random_images(request.param)
        with torch.no_grad():
            activation = network[:5](images)
            logits = network(images)
        target = torch.tensor([0, 2, 1])
        weights = network.head.weight.detach()[target]  # [B, K]
        column = weights.reshape(*weights.shape, *[1] * request.param)
        positions = activation[0, 0].numel()
        return network, images, target, activation, column, positions, logits

    def test_cam_is_the_weighted_sum_and_its_mean_is_the_logit_without_bias(self, case):
        network, images, target, activation, column, _, logits = case
        maps = CAM(network, "late")(images, target)
        torch.testing.assert_close(maps, (column * activation).sum(1))
        expected = (logits - network.head.bias.detach())[torch.arange(3), target]
        torch.testing.assert_close(maps.flatten(1).mean(1), expected)

    def test_grad_cam_is_the_positive_part_of_cam_over_the_positions(self, case):
        network, images, target, activation, column, positions, _ = case
        expected = (column * activation).sum(1).relu() / positions
        torch.testing.assert_close(GradCAM(network, "late")(images, target), expected)

    def test_hires_cam_sums_to_the_logit_without_bias(self, case):
        network, images, target, _, _, _, logits = case
        maps = HiResCAM(network, "late")(images, target)
        expected = (logits - network.head.bias.detach())[torch.arange(3), target]
        torch.testing.assert_close(maps.flatten(1).sum(1), expected)

    def test_xgrad_cam_equals_grad_cam(self, case):
        network, images, target, *_ = case
        expected = GradCAM(network, "late")(images, target)
        torch.testing.assert_close(XGradCAM(network, "late")(images, target), expected)

    def test_layer_cam_takes_positive_weights_only(self, case):
        network, images, target, activation, column, positions, _ = case
        expected = (column.relu() * activation).sum(1) / positions
        torch.testing.assert_close(LayerCAM(network, "late")(images, target), expected)

    def test_grad_cam_pp_has_one_alpha_per_channel(self, case):
        network, images, target, activation, column, positions, _ = case
        gradient = column / positions
        total = activation.sum(tuple(range(2, activation.dim())), keepdim=True)
        weights = positions * gradient.relu() / (2 + gradient * total)
        torch.testing.assert_close(GradCAMpp(network, "late")(images, target), (weights * activation).sum(1))


def paper_map(method, activation, gradient):
    """The papers' formulas before the last ReLU, for one sample `[K, *spatial]`, with loops, not broadcasting."""
    total = np.zeros(activation.shape[1:])
    for a, g in zip(activation, gradient, strict=True):
        if method is GradCAM:
            weight = g.sum() / g.size
        elif method is XGradCAM:
            weight = sum(a[p] / a.sum() * g[p] for p in np.ndindex(a.shape))
        elif method is GradCAMpp:
            alpha = [g[p] ** 2 / (2 * g[p] ** 2 + a.sum() * g[p] ** 3) for p in np.ndindex(a.shape)]
            weight = sum(al * max(g[p], 0) for al, p in zip(alpha, np.ndindex(a.shape), strict=True))
        else:
            weight = np.maximum(g, 0) if method is LayerCAM else g
        total += weight * a
    return total


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradient_methods_equal_the_papers_formulas_with_finite_differences(method, dims):
    network = small_network(dims, activation=nn.Softplus).double()
    image = random_images(dims, batch=1)[..., :5, :4].double()
    with torch.no_grad():
        activation = network[:2](image)
        shifts = 1e-5 * torch.eye(activation.numel(), dtype=torch.float64).reshape(-1, *activation.shape[1:])
        gradient = (network[2:](activation + shifts) - network[2:](activation - shifts))[:, 2] / 2e-5
    expected = paper_map(method, activation[0].numpy(), gradient.reshape(activation.shape[1:]).numpy())
    maps = method(network, "first", relu=False)(image, 2)
    assert maps.dtype == torch.float64
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-6, atol=1e-8)


class TestAgainstTorchCAM:
    """Not its Grad-CAM++, which in version 0.5 multiplies by g² where the paper divides to alpha."""

    methods = pytest.importorskip("torchcam.methods", reason="TorchCAM (extra dev, Python ≥ 3.11) is not installed")

    def theirs(self, name, network, layer, images, target):
        with getattr(self.methods, name)(network, layer) as extractor:
            return extractor(target, network(images), normalized=False)[0].detach()

    @pytest.mark.parametrize("layer", ["layer1", "layer2.0.conv2", "layer4"])
    @pytest.mark.parametrize("method", [GradCAM, LayerCAM, XGradCAM])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_maps_agree_on_a_resnet(self, dims, method, layer):
        torch.manual_seed(0)
        network = resnet10(spatial_dims=dims, n_input_channels=1, num_classes=3, widen_factor=0.25).eval()
        images, target = torch.randn(2, 1, *(64, 48, 32)[:dims]), [2, 0]
        expected = self.theirs(method.__name__, network, layer, images, target)
        maps = method(network, layer)(images, target)
        assert maps.abs().max() > 0
        torch.testing.assert_close(maps / maps.abs().max(), expected / expected.abs().max(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6 + 1e-4 * float(expected.abs().max()))

    def test_score_cam_agrees_where_nothing_is_upsampled(self):
        network, images = small_network(), random_images()
        expected = self.theirs("ScoreCAM", network, "first", images, [0, 2, 1])
        torch.testing.assert_close(ScoreCAM(network, "first")(images, [0, 2, 1]), expected, rtol=1e-4, atol=1e-6)


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


class TestZeroActivation:
    @pytest.mark.parametrize("options", [{}, {"normalize": True}, {"normalize": True, "upsample": True}])
    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_gives_zero_maps_without_nan(self, method, options):
        network, images = small_network(), random_images()
        nn.init.constant_(network.norm.bias, -100.0)  # the ReLU after it is shut
        assert torch.equal(method(network, "late", **options)(images, 1), method(network, "late", **options)(images, 1))
        assert method(network, "late", **options)(images, 1).abs().max() == 0

    @pytest.mark.parametrize("method", METHODS)
    def test_black_images_give_finite_maps(self, method):
        assert method(small_network(), "first", normalize=True)(torch.zeros(2, 2, 8, 8), 1).isfinite().all()


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


class TestSmoothGradCAMpp:
    def test_without_noise_it_is_grad_cam_pp(self):
        network, images = small_network(), random_images()
        maps = SmoothGradCAMpp(network, "first", noise=0.0, samples=3)(images, 1)
        torch.testing.assert_close(maps, GradCAMpp(network, "first")(images, 1), rtol=1e-4, atol=1e-6)

    def test_same_seed_same_map_and_the_global_generator_is_left_alone(self):
        network, images = small_network(), random_images()
        state = torch.random.get_rng_state()
        cam = SmoothGradCAMpp(network, "first", seed=3)
        assert torch.equal(cam(images, 1), cam(images, 1))
        assert not torch.equal(cam(images, 1), SmoothGradCAMpp(network, "first", seed=4)(images, 1))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_noise_and_samples_are_as_documented(self):
        network, images = small_network(activation=nn.Softplus).double(), random_images(batch=1).double()
        generator = torch.Generator().manual_seed(5)
        gradients = []
        for _ in range(3):
            noise = torch.randn(images.shape[1:], generator=generator).double()
            noisy = images + 0.4 * (images.max() - images.min()) * noise
            activation = network[:2](noisy).detach().requires_grad_()
            gradients.append(torch.autograd.grad(network[2:](activation)[0, 1], activation)[0])
        clean = network[:2](images).detach()
        g1, g2, g3 = (torch.stack([g**p for g in gradients]).mean(0) for p in (1, 2, 3))
        alpha = g2 / (2 * g2 + clean.sum((2, 3), keepdim=True) * g3)
        expected = ((alpha * g1.relu()).sum((2, 3), keepdim=True) * clean).sum(1).relu()
        maps = SmoothGradCAMpp(network, "first", samples=3, noise=0.4, seed=5)(images, 1)
        torch.testing.assert_close(maps, expected)

    def test_argmax_is_decided_on_the_clean_image(self):
        network, images = balanced_network(batch=16)
        cam = SmoothGradCAMpp(network, "first", noise=2.0)
        torch.testing.assert_close(cam(images, "argmax"), cam(images, network(images).argmax(1)))


class TestScoreCAM:
    def test_equals_the_definition_written_out(self):
        network, images = small_network(), random_images(batch=2)
        with torch.no_grad():
            activation = network[:4](images)  # before the ReLU: the least value is not 0
            expected = torch.zeros(2, *activation.shape[2:])
            for b in range(2):
                scores = []
                for channel in activation[b]:
                    mask = resize(channel.numpy(), images.shape[2:], order=1, mode="edge", anti_aliasing=False)
                    mask = (mask - mask.min()) / max(np.ptp(mask), 1e-12)
                    seen = images[b : b + 1] * torch.from_numpy(mask)
                    scores.append(network(seen)[0, 2] - network(0 * images[:1])[0, 2])
                for weight, channel in zip(torch.stack(scores).softmax(0), activation[b], strict=True):
                    expected[b] += weight * channel
        maps = ScoreCAM(network, "norm", relu=False)(images, 2)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)

    def test_chunk_bounds_the_batch_and_changes_no_map(self):
        network, images, sizes = small_network(), random_images(batch=2), []
        expected = ScoreCAM(network, "late", chunk=100)(images, 1)
        network.early.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        torch.testing.assert_close(ScoreCAM(network, "late", chunk=4)(images, 1), expected)
        assert sizes == [2, 4, 2, 4, 2]  # the batch itself, then 6 channels of each sample


class Wrapped(nn.Module):
    """A network whose forward is a function of `early`, `other` and `head`."""

    def __init__(self, function):
        super().__init__()
        self.early, self.other, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.relu, self.function = nn.ReLU(), function

    def forward(self, x):
        return self.function(self, x)


def pooled(features):
    return features.mean((2, 3))


class TestErrors:
    def test_unknown_layers_get_near_names(self):
        network = resnet10(spatial_dims=2, n_input_channels=1)
        with pytest.raises(ValueError, match=r"ResNet has no layer 'layer_4'.*'layer4'"):
            GradCAM(network, "layer_4")
        with pytest.raises(ValueError, match=r"did you mean one of \['conv1', 'bn1'"):
            GradCAM(network, "##")
        with pytest.raises(ValueError, match="the Conv2d given as layer is no part of this ResNet"):
            GradCAM(network, nn.Conv2d(1, 1, 1))
        with pytest.raises(ValueError, match="at least one layer"):
            GradCAM(network, [])

    @pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
    def test_a_layer_that_does_not_run(self, method):
        network = Wrapped(lambda n, x: n.head(pooled(n.early(x))))
        with pytest.raises(ValueError, match=r"does not run layer\(s\) \['other'\]"):
            method(network, ["early", "other"])(random_images(), 1)

    @pytest.mark.parametrize(
        "function",
        [
            lambda n, x: n.head(pooled(n.early(x))) + 0 * n.other(x).sum().item(),
            lambda n, x: n.head(pooled(n.early(x) + n.other(x).detach())),
        ],
    )
    def test_a_layer_beside_the_path_to_the_logits(self, function):
        for layers in ("other", ["early", "other"]):
            with pytest.raises(ValueError, match="the logits do not depend on layer 'other'"):
                GradCAM(Wrapped(function), layers)(random_images(), 1)

    def test_a_layer_that_runs_twice(self):
        network = Wrapped(lambda n, x: n.head(pooled(n.relu(n.relu(n.early(x)) - 0.1))))
        with pytest.raises(ValueError, match="layer 'relu' runs more than once"):
            GradCAM(network, "relu")(random_images(), 1)

    def test_a_layer_without_a_map(self):
        network = small_network()
        with pytest.raises(ValueError, match=r"layer 'head' must return \[3, C, \*spatial\].*got \[3, 3\]"):
            GradCAM(network, "head")(random_images(), 1)
        pair = nn.AdaptiveMaxPool2d(1, return_indices=True)
        network = Wrapped(lambda n, x: n.head(n.relu(x)[0].flatten(1)))
        network.relu = pair
        with pytest.raises(ValueError, match=r"layer 'relu' must return.*got tuple"):
            GradCAM(network, "relu")(random_images(), 1)

    def test_a_network_that_returns_no_logits(self):
        for function, got in ((lambda n, x: (n.early(x), 1), "tuple"), (lambda n, x: n.early(x), r"\[3, 4, 8, 6\]")):
            with pytest.raises(ValueError, match=rf"one tensor of logits \[3, K\]; got {got}"):
                GradCAM(Wrapped(function), "early")(random_images(), 1)

    def test_images_without_batch_axis(self):
        with pytest.raises(ValueError, match=r"images must be.*got shape \[2, 10, 8\]"):
            GradCAM(small_network(), "late")(random_images()[0], 1)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (3, r"0…2 for 3 logit\(s\); got 3"),
            (-1, "got -1"),
            ([0, 1, 5], r"got \[0, 1, 5\]"),
            ([0, 1], r"shape \[3\]; got \[2\]"),
            (1.0, "integers"),
            (torch.tensor([True, False, True]), "integers"),
            ("max", "'max'"),
        ],
    )
    @pytest.mark.parametrize("method", [GradCAM, ScoreCAM, SmoothGradCAMpp, CAM])
    def test_targets_that_do_not_exist(self, method, target, message):
        with pytest.raises(ValueError, match=message):
            method(small_network(), "late")(random_images(), target)

    def test_cam_needs_the_average_of_the_layer_at_a_linear_head(self):
        images = random_images()
        with pytest.raises(ValueError, match="'head' does not see the average of layer 'norm'; use GradCAM"):
            CAM(small_network(), "norm")(images, 1)
        network = small_network()
        network.pool = nn.AdaptiveMaxPool2d(1)
        with pytest.raises(ValueError, match="does not see the average"):
            CAM(network, "late")(images, 1)
        with pytest.raises(ValueError, match="no linear layer"):
            CAM(small_network(head=False), "late")
        network = small_network()
        network.head = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        with pytest.raises(ValueError, match=r"'head.0' has 4 outputs for 3 logits"):
            CAM(network, "late", head="head.0")(images, 1)

    def test_options_out_of_range(self):
        with pytest.raises(ValueError, match="chunk"):
            ScoreCAM(small_network(), "late", chunk=0)
        with pytest.raises(ValueError, match="samples"):
            SmoothGradCAMpp(small_network(), "late", samples=0)
        with pytest.raises(ValueError, match="other number of axes"):
            upsample_maps(torch.zeros(1, 4, 4), (8, 8, 8))


def test_cam_takes_the_last_linear_layer_as_head():
    network, images = Wrapped(lambda n, x: n.head(pooled(n.early(x)))), random_images()
    network.other = nn.Linear(4, 3)
    torch.testing.assert_close(CAM(network, "early")(images, 1), CAM(network, "early", head="head")(images, 1))
    with pytest.raises(ValueError, match="'other' does not see the average"):
        CAM(network, "early", head="other")(images, 1)


def test_cam_reads_a_one_by_one_convolution_as_head():
    network, images = small_network(), random_images()
    expected = CAM(network, "late")(images, 1)
    head = nn.Conv2d(6, 3, 1)
    head.load_state_dict({"weight": network.head.weight[..., None, None], "bias": network.head.bias})
    network.flat, network.head = head, nn.Flatten()
    torch.testing.assert_close(CAM(network, "late", head="flat")(images, 1), expected)


def test_targets_and_logits_are_selected_for_one_and_for_many_classes():
    logits = torch.tensor([[0.2, -1.0, 3.0], [4.0, 1.0, 0.0]])
    assert resolve_target("argmax", logits).tolist() == [2, 0]
    assert resolve_target("argmax", torch.tensor([[0.3], [-0.3]])).tolist() == [1, 0]
    assert select_logit(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert select_logit(torch.tensor([1, 0]), 1).tolist() == [[1], [-1]]
