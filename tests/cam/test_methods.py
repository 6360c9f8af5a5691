from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import nn

from common.cam import CAM, GradCAM, GradCAMpp, HiResCAM, LayerCAM, ScoreCAM, SmoothGradCAMpp, XGradCAM
from tests.cam.networks import (
    GRADIENT_METHODS,
    METHODS,
    Wrapped,
    balanced_network,
    pooled,
    random_images,
    small_network,
)


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


class TestZeroActivation:
    @pytest.mark.parametrize("options", [{}, {"normalize": True}, {"normalize": True, "upsample": True}])
    @pytest.mark.parametrize("method", [*METHODS, CAM])
    def test_gives_zero_maps_without_nan(self, method, options):
        network, images = small_network(), random_images()
        nn.init.constant_(network.norm.bias, -100.0)  # the ReLU after it is shut
        maps = method(network, "late", **options)(images, 1)
        assert torch.equal(maps, torch.zeros_like(maps))

    @pytest.mark.parametrize("method", METHODS)
    def test_black_images_give_finite_maps(self, method):
        assert method(small_network(), "first", normalize=True)(torch.zeros(2, 2, 8, 8), 1).isfinite().all()


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
