"""Class activation maps of any torch classifier, 2D or 3D: where the evidence for a class lies.

`with LayerCAM(network, "layer1") as cam: maps = cam(images, target=1)`

Each method is one class. Symbols: `A_k` channel k of the layer's activation, `Y` the explained logit,
`g_k = dY/dA_k`, `Z` the number of positions, sums over `ij` run over all positions. Arguments that all methods
share, what is returned and what is raised: `common.cam.BaseCAM`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import BaseCAM, GradientCAM, Target, as_float, find_layer, resolve_target, select_logit, upsample_maps


def _space(values: Tensor) -> tuple[int, ...]:
    return tuple(range(2, values.dim()))


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju et al., ICCV 2017, Eq. 1 and 2): `ReLU(sum_k w_k A_k)`, `w_k = 1/Z sum_ij g_k,ij`."""

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """Mean gradient of each channel."""
        return gradient.mean(_space(gradient), keepdim=True)


class HiResCAM(GradientCAM):
    """HiResCAM (Draelos & Carin, 2020): `sum_k g_k A_k`, gradient and activation multiplied position by position.

    No ReLU, as in the paper: where the rest of the network is linear, the map sums to the logit without its bias.
    """

    relu_in_paper = False

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        return gradient


class LayerCAM(GradientCAM):
    """LayerCAM (Jiang et al., TIP 2021): `ReLU(sum_k ReLU(g_k) A_k)`, also sharp in early layers.

    `relu=False` leaves out the outer ReLU, which matters only where activations are negative. For evidence against
    the class, too, use `HiResCAM`.
    """

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """Positive part of the gradient at each position."""
        return gradient.relu()


class XGradCAM(GradientCAM):
    """XGrad-CAM (Fu et al., BMVC 2020): `ReLU(sum_k w_k A_k)`, `w_k = sum_ij (A_k,ij / sum_ij A_k,ij) g_k,ij`.

    A channel whose activations sum to 0 gets no weight.
    """

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """Mean gradient of each channel, weighted by the activation."""
        total = activation.sum(_space(activation), keepdim=True)
        return _divide((activation * gradient).sum(_space(activation), keepdim=True), total)


class GradCAMpp(GradientCAM):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, Eq. 19): `ReLU(sum_k w_k A_k)` with

    `w_k = sum_ij a_k,ij ReLU(g_k,ij)`, `a_k,ij = g² / (2 g² + g³ sum_ij A_k,ij) = 1 / (2 + g sum_ij A_k,ij)`.

    The paper explains `exp(Y)`, whose second and third derivatives are `exp(Y) g²` and `exp(Y) g³`. The factor
    `exp(Y)` that remains in `w` scales a sample's map as a whole; it is left out, for it overflows.
    """

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """Sum of each channel's positive gradients, each weighted by its alpha."""
        return _plus_plus(activation, gradient, gradient)


class SmoothGradCAMpp(GradientCAM):
    """Smooth Grad-CAM++ (Omeiza et al., 2019): Grad-CAM++ whose `g`, `g²`, `g³` are means over noisy images.

    The numerator of alpha is the mean of `g²`, as in Grad-CAM++ (the paper prints that of `g`); activations are
    those of the clean image. All samples of a batch get the same noise, so that batches equal one-by-one.

    Args:
        network, layer: see `BaseCAM`.
        samples: number of noisy copies; costs as many forwards and backwards.
        noise: standard deviation as a share of the image's intensity range (Smilkov et al., 2017: 0.1 to 0.2).
        seed: of the noise; equal seeds give equal maps.
        **options: `relu`, `upsample`, `normalize`.
    """

    def __init__(
        self, network: nn.Module, layer: Any, *, samples: int = 8, noise: float = 0.15, seed: int = 0, **options: bool
    ) -> None:
        super().__init__(network, layer, **options)
        if samples < 1 or noise < 0:
            raise ValueError(f"samples must be at least 1 and noise not negative; got {samples} and {noise}")
        self.samples, self.noise, self.seed = samples, noise, seed

    def _raw_maps(self, images: Tensor, target: Target) -> list[Tensor]:
        logits, activations = self._forward(images)
        chosen = resolve_target(target, logits)
        generator = torch.Generator().manual_seed(self.seed)
        spread = self.noise * (images.flatten(1).amax(1) - images.flatten(1).amin(1))
        spread = spread.reshape(-1, *[1] * (images.dim() - 1))
        first, second, third = ([torch.zeros_like(as_float(a)) for a in activations] for _ in range(3))
        for _ in range(self.samples):
            noise = torch.randn(images.shape[1:], generator=generator).to(images)
            for k, gradient in enumerate(self._differentiate(images + spread * noise, chosen)[1]):
                first[k] += gradient / self.samples
                second[k] += gradient**2 / self.samples
                third[k] += gradient**3 / self.samples
        self.logits = logits.detach()
        terms = zip(map(as_float, activations), first, second, third, strict=True)
        return [(_plus_plus(a, g, _divide(g3, g2)) * a).sum(1) for a, g, g2, g3 in terms]


class ScoreCAM(BaseCAM):
    """Score-CAM (Wang et al., CVPRW 2020), without gradients: `ReLU(sum_k w_k A_k)` with

    `w = softmax_k(Y(X ∘ H_k) - Y(X_b))`, `H_k` the channel at the image's size, rescaled to 0…1 (a constant channel
    to 0). `Y` is the logit; the baseline `X_b` cancels in the softmax.

    Args:
        network, layer: see `BaseCAM`. Costs a forward per channel and sample.
        chunk: number of masked images in one forward, which bounds the memory.
        **options: `relu`, `upsample`, `normalize`.
    """

    def __init__(self, network: nn.Module, layer: Any, *, chunk: int = 32, **options: bool) -> None:
        super().__init__(network, layer, **options)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1; got {chunk}")
        self.chunk = chunk

    def _raw_maps(self, images: Tensor, target: Target) -> list[Tensor]:
        logits, activations = self._forward(images)
        selected = select_logit(resolve_target(target, logits), logits.shape[1])
        maps = []
        for activation in map(as_float, activations):
            scores = [self._scores(*sample) for sample in zip(images, activation, selected, strict=True)]
            weights = torch.stack(scores).softmax(1)
            maps.append(_weighted_sum(weights, activation))
        return maps

    def _scores(self, image: Tensor, activation: Tensor, selected: Tensor) -> Tensor:
        """Score of one image `[C_in, *spatial]` seen through each of the channels `[K, *spatial]`; `[K]`."""
        scores = []
        for part in activation.split(self.chunk):
            masks = upsample_maps(part, image.shape[1:])
            low, high = masks.flatten(1).amin(1), masks.flatten(1).amax(1)
            shape = (-1, *[1] * (masks.dim() - 1))
            masks = _divide(masks - low.reshape(shape), (high - low).reshape(shape))
            scores.append((as_float(self._run(image[None] * masks[:, None].to(image))) * selected).sum(1))
        return torch.cat(scores)


class CAM(BaseCAM):
    """CAM (Zhou et al., CVPR 2016, Eq. 2): `sum_k w_k A_k`, `w` the explained class's row of a linear head.

    For networks that end in this layer, its global average and the head; its mean is the logit without its bias. No
    ReLU, as in the paper.

    Args:
        network, layer: see `BaseCAM`.
        head: name or module of the linear layer (or 1×1 convolution); None takes the network's last linear layer.
        **options: `relu`, `upsample`, `normalize`.

    Raises:
        ValueError: there is no linear head, or its input is not the layer's average.
    """

    relu_in_paper = False

    def __init__(self, network: nn.Module, layer: Any, *, head: str | nn.Module | None = None, **options: bool) -> None:
        super().__init__(network, layer, **options)
        if head is None:
            linear = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
            if not linear:
                raise ValueError("the network has no linear layer; name the 1×1 convolution with head=, or use GradCAM")
            head = linear[-1]
        self.head_name, self.head = find_layer(self.network, head)

    def _raw_maps(self, images: Tensor, target: Target) -> list[Tensor]:
        pooled: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        try:
            logits, activations = self._forward(images)
        finally:
            handle.remove()
        weight: Any = self.head.weight
        if weight.shape[0] != logits.shape[1]:
            raise ValueError(f"head {self.head_name!r} has {weight.shape[0]} outputs for {logits.shape[1]} logits")
        selected = select_logit(resolve_target(target, logits), logits.shape[1])
        rows = (selected[..., None] * as_float(weight.flatten(1))).sum(1)
        maps = []
        for (name, _), activation in zip(self.layers, map(as_float, activations), strict=True):
            average = activation.mean(_space(activation)).flatten(1)
            if not _same(average, pooled):
                raise ValueError(f"head {self.head_name!r} does not see the average of layer {name!r}; use GradCAM")
            maps.append(_weighted_sum(rows, activation))
        return maps


def _same(average: Tensor, pooled: list[Tensor]) -> bool:
    """Whether the head ran once and its input is this average, up to half precision."""
    if len(pooled) != 1 or pooled[0].numel() != average.numel():
        return False
    tolerance = 1e-2 * float(average.abs().max())
    return torch.allclose(as_float(pooled[0]).reshape(average.shape), average, rtol=0.0, atol=tolerance)


def _weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    """`sum_k w_k A_k` of `[B, K]` and `[B, K, *spatial]`; no matrix product, which autocast would run in half."""
    return (weights.reshape(*weights.shape, *[1] * (activation.dim() - 2)) * activation).sum(1)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where the denominator is 0."""
    return torch.where(denominator != 0, numerator / torch.where(denominator != 0, denominator, 1.0), 0.0)


def _plus_plus(activation: Tensor, gradient: Tensor, ratio: Tensor) -> Tensor:
    """Weights of Grad-CAM++; `ratio` is its third derivative over its second."""
    alpha = _divide(torch.ones_like(ratio), 2 + ratio * activation.sum(_space(activation), keepdim=True))
    return (alpha * gradient.relu()).sum(_space(activation), keepdim=True)
