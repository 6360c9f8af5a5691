"""The machinery of `common.cam`: layers, targets, hooks, one forward and one backward, post-processing.

The layer's output is replaced by a leaf while all parameters are frozen, so no graph exists before the layer and no
gradient of a weight is computed: a map costs little more than a forward, in time and in memory.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

from ..checkpoint import unwrapped

Target = int | Sequence[int] | Tensor | str
INSTEAD = "whose layers cannot be watched: give the module from before, which has the same weights"
WITHOUT_CHECKPOINTS = (
    "checkpointing only saves memory in training: switch it off for explaining, which changes no weight, or use "
    "ScoreCAM, which needs no gradient"
)
FLOAT16_SCALE = 1024.0  # a power of two: float16 gradients keep their digits above 1e-10 instead of 1e-7


def normalize_maps(maps: Tensor) -> Tensor:
    """Divide each map of `[B, *spatial]` by its largest absolute value; zero stays zero, signs stay.

    An all-zero map stays zero. The minimum is not subtracted: that would turn "no evidence" into evidence.
    """
    largest = maps.abs().flatten(1).amax(1).reshape(-1, *[1] * (maps.dim() - 1))
    return maps / torch.where(largest > 0, largest, 1.0)


def upsample_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate `[B, *spatial]` to another size, bilinearly or trilinearly (`align_corners=False`)."""
    if maps.dim() - 1 != len(size):
        raise ValueError(f"maps of shape {list(maps.shape)} cannot be upsampled to {list(size)}: other number of axes")
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps[:, None], tuple(size), mode=mode, align_corners=False)[:, 0]


def find_layer(network: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Name and module of a layer that is given by either.

    Raises:
        ValueError: the network has no such layer; the message suggests near names.
    """
    modules = dict(network.named_modules())
    if isinstance(layer, nn.Module):
        name = next((name for name, module in modules.items() if module is layer), None)
        if name is None:
            raise ValueError(f"the {type(layer).__name__} given as layer is no part of this {type(network).__name__}")
        return name, layer
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=5, cutoff=0.4) or [n for n, _ in network.named_children()]
        raise ValueError(f"{type(network).__name__} has no layer {layer!r}; did you mean one of {near}?")
    return layer, modules[layer]


def _sealed_by(network: nn.Module, name: str, layer: nn.Module) -> str:
    """What compiled a layer or a module around it, where hooks do not run; empty if nothing did."""
    parts = name.split(".")[:-1]
    around = [network.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    if any(isinstance(part, torch.jit.ScriptModule) for part in around):
        return "torch.jit"
    if isinstance(layer, torch.jit.RecursiveScriptModule):
        return "torch.jit"
    if any(hasattr(part, "_orig_mod") for part in around):
        return "torch.compile"
    in_place = any(getattr(part, "_compiled_call_impl", None) is not None for part in (*around, layer))
    return "torch.compile" if in_place else ""


def _cut_off_by() -> str:
    """What keeps the gradient from a layer that is running now; empty where nothing does."""
    if any(frame.f_globals.get("__name__") == checkpoint.__name__ for frame, _ in traceback.walk_stack(None)):
        return checkpoint.__name__
    return "" if torch.is_grad_enabled() else "torch.no_grad()"


def resolve_target(target: Target, logits: Tensor) -> Tensor:
    """Class to explain for each sample, `[B]`.

    Args:
        target: one class for all samples, one per sample, or `"argmax"` for the most probable one.
        logits: `[B, K]`. One logit `z` counts as two classes: 1 (evidence `z`) and 0 (evidence `-z`).

    Raises:
        ValueError: not integers, another number of targets than samples, or a class that does not exist.
    """
    batch, classes = logits.shape[0], max(logits.shape[1], 2)
    if isinstance(target, str):
        if target != "argmax":
            raise ValueError(f'target must be a class, one class per sample, or "argmax"; got {target!r}')
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    target_index = torch.as_tensor(target).detach()
    if target_index.dtype == torch.bool or target_index.is_floating_point() or target_index.is_complex():
        raise ValueError(f"target must be integers (class indices); got {target_index.dtype}")
    if target_index.dim() > 0 and list(target_index.shape) != [batch]:
        raise ValueError(f"target must be one class or one per sample, shape [{batch}]; got {list(target_index.shape)}")
    if bool(((target_index < 0) | (target_index >= classes)).any()):
        raise ValueError(
            f"target must be in 0…{classes - 1} for {logits.shape[1]} logit(s); got {target_index.tolist()}"
        )
    return target_index.long().expand(batch).to(logits.device)


def select_logit(target: Tensor, classes: int) -> Tensor:
    """Weights `[B, K]` of the logits in the explained score: one-hot; for one logit +1 (class 1) or -1 (class 0)."""
    return (2.0 * target[:, None] - 1.0) if classes == 1 else F.one_hot(target, classes).float()


def as_float(values: Tensor) -> Tensor:
    """Detached, in at least float32: half precision overflows in sums."""
    return values.detach() if values.dtype == torch.float64 else values.detach().float()


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient of any parameter; every module and parameter gets its own state back."""
    modes = [(module, module.training) for module in network.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, grad in grads:
            parameter.requires_grad_(grad)


class BaseCAM:
    """What all methods share: hooks, targets, checks, post-processing.

    Works under `torch.no_grad()` and `torch.inference_mode()`, under autocast, in any memory format and with every
    parameter frozen. The network runs in evaluation mode whatever its mode was: in training mode batch norm would mix
    the samples and move its running statistics. `with` is optional, since nothing outlives a call.

    Args:
        network: returns logits `[B, K]`, or one logit as `[B, 1]` or `[B]`.
        layer: name or module of a layer that returns `[B, C, *spatial]` and runs once per forward; or several, which
            share one forward and one backward.
        relu: set negative evidence to 0 at the end; None does as the method's paper.
        upsample: interpolate to the images' size instead of the layer's own.
        normalize: divide each map by its largest absolute value (`normalize_maps`), as the last step.

    Attributes:
        logits: `[B, K]` of the last call, detached.

    Raises:
        ValueError: no such layer, or one of a traced, scripted or compiled module.
    """

    relu_in_paper = True

    def __init__(
        self,
        network: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module],
        *,
        relu: bool | None = None,
        upsample: bool = False,
        normalize: bool = False,
    ) -> None:
        self.network = unwrapped(network)
        if isinstance(self.network, torch.jit.ScriptModule):
            raise ValueError(f"the network is traced or scripted (torch.jit), {INSTEAD}")
        self.single = isinstance(layer, (str, nn.Module))
        given: Any = [layer] if self.single else layer
        self.layers = [find_layer(self.network, one) for one in given]
        if not self.layers:
            raise ValueError("name at least one layer")
        for name, module in self.layers:
            if compiler := _sealed_by(self.network, name, module):
                raise ValueError(f"layer {name!r} is part of a module compiled by {compiler}, {INSTEAD}")
        self.relu = self.relu_in_paper if relu is None else relu
        self.upsample = upsample
        self.normalize = normalize
        self.logits: Tensor | None = None
        self._cut_off: dict[str, str] = {}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, images: Tensor, target: Target) -> Any:
        """Maps of a batch.

        Args:
            images: `[B, C_in, H, W]` or `[B, C_in, H, W, D]`.
            target: the class to explain: one for all, one per sample, or `"argmax"` (`resolve_target`). There
                is no default, because a map does not show which class it explains.

        Returns:
            Raw maps `[B, *spatial]` in float32 at the layer's resolution, or a list of them if the layers were given
            as a list.

        Raises:
            ValueError: images, target, the layer's output or the network's output are not as described above, or the
                score does not depend on the layer.
        """
        images = images.detach().as_subclass(Tensor)  # a MetaTensor would slow every layer; the memory format stays
        if images.dim() not in (4, 5):
            raise ValueError(f"images must be [B, C, H, W] or [B, C, H, W, D]; got shape {list(images.shape)}")
        with torch.inference_mode(False), torch.no_grad(), _frozen(self.network):
            maps = self._raw_maps(images.clone() if images.is_inference() else images, target)
        return self._finish(maps[0], images) if self.single else [self._finish(one, images) for one in maps]

    def _raw_maps(self, images: Tensor, target: Target) -> list[Tensor]:
        raise NotImplementedError

    def _finish(self, maps: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = maps.relu() if self.relu else maps
            maps = upsample_maps(maps, images.shape[2:]) if self.upsample else maps
            return normalize_maps(maps) if self.normalize else maps

    def _run(self, images: Tensor) -> Tensor:
        output = self.network(images)
        if not isinstance(output, Tensor) or output.dim() not in (1, 2) or output.shape[0] != images.shape[0]:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"the network must return one tensor of logits [{images.shape[0]}, K]; got {got}")
        return output if output.dim() == 2 else output[:, None]

    def _forward(self, images: Tensor, *, differentiable: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, K]` and the layers' activations; with a graph from the activations on if asked for."""
        found: dict[str, Tensor] = {}
        self._cut_off = {}

        def keep(name: str, output: Any) -> Tensor:
            if name in found:
                raise ValueError(f"layer {name!r} runs more than once per forward; name a layer that runs once")
            if not isinstance(output, Tensor) or output.dim() not in (4, 5) or output.shape[0] != images.shape[0]:
                got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {name!r} must return [{images.shape[0]}, C, *spatial] in 2D or 3D; got {got}")
            if differentiable:
                self._cut_off[name] = _cut_off_by()
            # A second layer already hangs on the first one's graph. The network continues with a copy: an in-place
            # operation after the layer would raise on the leaf, and would change the activation.
            with torch.set_grad_enabled(differentiable):
                found[name] = output if output.requires_grad else output.detach().requires_grad_(differentiable)
                return found[name].clone()

        with ExitStack() as hooks, torch.set_grad_enabled(differentiable):
            for name, module in dict(self.layers).items():
                handle = module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
                hooks.callback(handle.remove)
            logits = self._run(images)
        if missing := [name for name, _ in self.layers if name not in found]:
            raise ValueError(f"the forward does not run layer(s) {missing}; name layers on the way to the logits")
        self.logits = logits.detach()
        return logits, [found[name] for name, _ in self.layers]


class GradientCAM(BaseCAM):
    """Maps `sum_k w_k A_k` whose weights come from the gradient; a method overrides `weights`."""

    @staticmethod
    def weights(activation: Tensor, gradient: Tensor) -> Tensor:
        """Weights `[B, K, 1, …]` or `[B, K, *spatial]` from `A` and `dY/dA`, both `[B, K, *spatial]`."""
        raise NotImplementedError

    def _raw_maps(self, images: Tensor, target: Target) -> list[Tensor]:
        activations, gradients = self._differentiate(images, target)
        return [(self.weights(a, g) * a).sum(1) for a, g in zip(activations, gradients, strict=True)]

    def _differentiate(self, images: Tensor, target: Target) -> tuple[list[Tensor], list[Tensor]]:
        """Activations and the gradients of each sample's score with respect to them, in float32."""
        with torch.enable_grad():
            logits, activations = self._forward(images, differentiable=True)
            selected = select_logit(resolve_target(target, logits), logits.shape[1])
            scale = FLOAT16_SCALE if any(a.dtype == torch.float16 for a in activations) else 1.0
            # The samples are independent in evaluation mode, so one backward of the sum serves them all.
            reached: Sequence[Tensor | None] = [None] * len(activations)
            if logits.requires_grad:
                try:
                    reached = torch.autograd.grad(logits, activations, (scale * selected).to(logits), allow_unused=True)
                except RuntimeError as error:
                    if checkpoint.__name__ not in str(error):
                        raise
                    names = [name for name, _ in self.layers]
                    reason = f"the network runs {checkpoint.__name__}, which gives no gradient of layer(s) {names}"
                    raise ValueError(f"{reason}; {WITHOUT_CHECKPOINTS}") from error
        gradients = []
        for (name, _), gradient in zip(self.layers, reached, strict=True):
            if gradient is None and (inside := self._cut_off[name]):
                reason = f"layer {name!r} runs inside {inside}, which keeps the gradient from it"
                advice = WITHOUT_CHECKPOINTS if inside == checkpoint.__name__ else "remove that, or use ScoreCAM"
                raise ValueError(f"{reason}; {advice}")
            if gradient is None:
                raise ValueError(f"the logits do not depend on layer {name!r}; name a layer on the way to them")
            gradients.append(as_float(gradient) / scale if scale != 1.0 else as_float(gradient))
        return [as_float(a) for a in activations], gradients
