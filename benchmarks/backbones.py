"""What the networks of the GP family cost, forward and in training: `python -m benchmarks backbones`."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.commands.run import BUNDLES

from .cam import peak_memory


def benchmark_backbones(
    size: int = 240,
    channels: int = 4,
    classes: int = 3,
    slices: int = 1,
    repeats: int = 2,
    threads: int = 1,
    backbones: str | tuple[str, ...] = "",
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Parameters, operations, seconds and memory of the networks of `gp_unet_brats`, with random weights.

    Operations are those of convolutions and matrix products, a multiplication and an addition counting as two; Fourier
    transforms (sinc upsampling), interpolation, normalization and activations are left out. A step of training is a
    forward, a backward and an update by Adam.

    Args:
        size: height and width of a slice; a multiple of 16 fits all.
        channels: image channels.
        classes: class maps.
        slices: in one batch.
        repeats: the fastest run counts.
        threads: CPU threads; 0 leaves torch's default.
        backbones: some of them; all by default.
        device: `cpu` or `cuda`.

    Returns:
        One dict a row of the printed table: `backbone`, `parameters`; `gflop`, `seconds` and `megabytes` (None where
        the system does not tell) of a forward, `training_…` of a step of training.
    """
    if threads:
        torch.set_num_threads(threads)
    sys.path.insert(0, str(BUNDLES / "gp_unet_brats"))
    family: Any = importlib.import_module("scripts.backbones")
    names = [backbones] if isinstance(backbones, str) and backbones else list(backbones) or list(family.BACKBONES)

    def make(name: str) -> nn.Module:
        return family.gp_network(name, in_channels=channels, num_classes=classes, dropout=0.5)

    shape = (slices, channels, size, size)
    rows = []
    print(f"{slices} slice(s) of {channels}×{size}×{size}, {classes} classes, {device}")
    print("backbone            parameters   GFLOP  seconds     MB | training: GFLOP  seconds     MB")
    for name in names:
        row = {"backbone": name, **operations(lambda name=name: make(name), shape)}  # type: ignore[misc]
        row |= timings(make(name).to(device), torch.rand(shape, device=device), repeats)
        rows.append(row)
        memory, training_memory = (
            "–" if row[key] is None else f"{row[key]:.0f}" for key in ("megabytes", "training_megabytes")
        )
        print(
            f"{name:<17}{row['parameters']:>13,}{row['gflop']:>8.1f}{row['seconds']:>9.3f}{memory:>7} |"
            f"{row['training_gflop']:>16.1f}{row['training_seconds']:>9.3f}{training_memory:>7}"
        )
    return rows


def operations(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Any]:
    """Parameters and GFLOP of a network, counted without computing anything.

    Args:
        make: gives the network.
        shape: of its input.

    Returns:
        `parameters`, `gflop` of a forward, `training_gflop` of a forward and a backward.
    """
    with torch.device("meta"):
        network = make()
        images = torch.rand(shape)
    counted = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(images)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as both:
        network(images).sum().backward()
    return counted | {
        "gflop": forward.get_total_flops() / 1e9,
        "training_gflop": both.get_total_flops() / 1e9,
    }


def _backward(
    grad: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], _bias: Any, _stride: Any, _padding: Any,
    _dilation: Any, transposed: bool, _output_padding: Any, _groups: int, wanted: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """Operations of a convolution's backward; torch's own formula takes grouped convolutions for dense ones."""
    positions = x[0] * math.prod((x if transposed else grad)[2:])
    return 2 * positions * math.prod(weight) * sum(wanted[:2])  # gradients of input and weight


def timings(network: nn.Module, images: Tensor, repeats: int) -> dict[str, float | None]:
    """Seconds and megabytes (beyond what the network holds) of a forward and of a step of training."""
    optimizer = torch.optim.Adam(network.parameters())

    def forward() -> None:
        with torch.no_grad():
            network(images)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(images).logsumexp(1).sum().backward()
        optimizer.step()

    found: dict[str, float | None] = {}
    for prefix, run in (("", forward), ("training_", train)):
        network.train(bool(prefix))
        run()
        found[f"{prefix}seconds"] = min(_seconds(run) for _ in range(repeats))
        if images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            used: float | None = torch.cuda.max_memory_allocated() - before
        else:
            used = peak_memory(run)
        found[f"{prefix}megabytes"] = None if used is None else used / 1e6
    return found


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
