"""Other explanations of a slice beside a bundle's own: occlusion, guided backpropagation, Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from monai.utils import convert_to_tensor
from monai.visualize import OcclusionSensitivity
from torch import Tensor, nn

from .base import as_float, upsample_maps
from .methods import GradCAM
from .views import View


class SliceLogit(nn.Module):
    """The logit of "there is a finding", or of one class against all others, of slices, from any bundle's network.

    Args:
        network: gives one logit, logits of classes of which 0 is healthy, or (INSIGHT) has `encoder` and `head`, or
            `draw`s heat and has these logits from `explain`.
        organ_channel: whether the network expects the organ as its last channel.
        organ: `[1, 1, H, W]`, the slice's; see `at`.
        shown: the class, from 1; None: any finding.
        views: what the network gets to see of a slice, see `common.cam.View`; the classes' logits are the mean over
            them. None: the slice as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        organ_channel: bool = True,
        organ: Tensor | None = None,
        shown: int | None = None,
        views: Sequence[View] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.organ_channel = organ_channel
        self.organ = organ
        self.shown = shown
        self.views = views

    def at(self, organ: Tensor, *, shown: int | None = None, views: Sequence[View] | None = None) -> SliceLogit:
        """The same, of one slice, whose organ `[1, 1, H, W]` stays what it is while the image changes."""
        options = {"organ": organ, "shown": shown, "views": views}
        return SliceLogit(self.network, organ_channel=self.organ_channel, **options).eval()  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 1]` of `[B, C, H, W]`.

        Raises:
            ValueError: the network does not have the class.
        """
        if self.views is None:
            logits = self._logits(image)
        else:
            seen = [part._logits(view.to_network(image)) for view, part in self._parts]
            logits = torch.stack(seen).mean(dim=0)
        return self._margin(logits)

    def mean_map(self, explain: Callable[[nn.Module, Tensor], Tensor], image: Tensor) -> Tensor:
        """Mean over the views of the maps by which `explain(score, image)` explains them, `[H, W]` of `[1, C, H, W]`.

        So `guided_backpropagation` and `grad_cam` work on what the network gets, and their maps come back.
        """
        if self.views is None:
            return explain(self, image)
        maps = [view.to_slice(explain(part, view.to_network(image))) for view, part in self._parts]
        return torch.stack(maps).mean(dim=0)

    @cached_property
    def _parts(self) -> list[tuple[View, SliceLogit]]:
        """Each view, and the logit of what the network gets there."""
        assert self.organ is not None
        return [(view, self.at(view.to_network(self.organ), shown=self.shown)) for view in self.views or ()]

    @property
    def _bags(self) -> bool:
        """INSIGHT's: a slice is a bag of cells, and labels are independent."""
        return hasattr(getattr(self.network, "head", None), "stream")

    def _logits(self, image: Tensor) -> Tensor:
        """`[B, K]`: the network's; INSIGHT's has none of class 0."""
        network: Any = self.network
        organ = None if self.organ is None else self.organ.expand(len(image), -1, -1, -1)
        if self._bags:
            cells, inside = network.encoder.differentiable(image), network.encoder.coverage(organ)
            bags = [network.head(cells[i : i + 1], inside[i : i + 1])[1] for i in range(len(image))]
            return torch.stack(bags).logit(eps=1e-6)
        seen = torch.cat([image, organ], dim=1) if self.organ_channel and organ is not None else image
        return network.explain(seen)[1] if hasattr(network, "draw") else network(seen)

    def _margin(self, logits: Tensor) -> Tensor:
        alone = self._bags or logits.shape[1] == 1  # logits of positive labels only
        classes = logits.shape[1] + int(alone)
        if self.shown is not None and not 1 <= self.shown < classes:
            raise ValueError(f"the class shown must be in 1…{classes - 1}, got {self.shown}")
        if alone:
            return logits.amax(dim=1, keepdim=True) if self.shown is None else logits[:, self.shown - 1, None]
        chosen = torch.arange(classes, device=logits.device) >= 1
        if self.shown is not None:
            chosen = torch.arange(classes, device=logits.device) == self.shown
        return logits[:, chosen].logsumexp(1, keepdim=True) - logits[:, ~chosen].logsumexp(1, keepdim=True)


def default_layer(network: nn.Module) -> str:
    """Name of the layer of a network whose Grad-CAM is computed where none is given.

    It is what the network calls its `explained_layer`, else the last of its `stages`.

    Raises:
        ValueError: the network has neither.
    """
    stages = getattr(network, "stages", None)
    name = getattr(network, "explained_layer", None) or (stages[-1] if stages else None)
    if name is None:
        near = ", ".join(f"network.{child}" for child, _ in network.named_children())
        raise ValueError(f"{type(network).__name__} names no layer for Grad-CAM: set explained_layer, below {near}")
    return str(name)


def occlusion_map(score: nn.Module, image: Tensor, *, size: int = 12, fill: float = 1.0) -> Tensor:
    """By how much the logit falls when a patch is covered, `[H, W]`, averaged over the patches that hold a pixel.

    Args:
        score: gives `[B, 1]`.
        image: `[1, C, H, W]`.
        size: side of the patch in pixels; patches lie half a side apart.
        fill: what a patch is covered with; 1 is the organ's median.
    """
    occlude = OcclusionSensitivity(score, mask_size=size, mode=fill, overlap=0.5, verbose=False, activate=False)
    with torch.no_grad():
        covered, _ = occlude(image)
        plain = convert_to_tensor(covered, track_meta=False).reshape(image.shape[2:])
        return as_float(score(image)[0, 0] - plain)


def guided_backpropagation(score: nn.Module, image: Tensor) -> Tensor:
    """Gradient of the logit by the image where every ReLU lets only positive gradients back, `[H, W]`.

    Springenberg et al., arXiv:1412.6806; absolute values, the largest of the channels. MONAI's class finds layers by
    the name `relu` and passes over ReLU6, so the encoders here would get their plain gradient; functional ReLUs are
    passed over here, too.
    """
    with torch.enable_grad(), _guided(score):
        seen = image.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(seen).sum(), seen)
    return as_float(gradient[0].abs().amax(dim=0))


def grad_cam(score: nn.Module, image: Tensor, layer: str) -> Tensor:
    """Grad-CAM of a layer of `score`, enlarged to `[H, W]`."""
    with torch.enable_grad(), GradCAM(score, layer) as cam:
        return upsample_maps(cam(image, target=1), image.shape[2:])[0]


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.upper = upper
        return x.clamp(0, upper)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * ((x > 0) & (x < ctx.upper)), None


class _Guided(nn.Module):
    def __init__(self, upper: float) -> None:
        super().__init__()
        self.upper = upper

    def forward(self, x: Tensor) -> Tensor:
        return _GuidedReLU.apply(x, self.upper)


@contextmanager
def _guided(network: nn.Module) -> Iterator[None]:
    """Every ReLU and ReLU6 module is replaced, and put back."""
    replaced = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                replaced.append((parent, name, child))
                setattr(parent, name, _Guided(6.0 if isinstance(child, nn.ReLU6) else torch.inf))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
