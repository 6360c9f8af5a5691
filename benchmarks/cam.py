"""What a class activation map costs beside a plain forward, here and elsewhere: `python -m benchmarks cam`.

pytorch-grad-cam asks for a torchvision, which must be built for the very torch that is installed; it is measured
without: `pip install --no-deps grad-cam ttach opencv-python-headless`.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from monai.networks.nets import resnet18
from torch import Tensor, nn

import common.cam as cam

Run = Callable[[Tensor], Any]
CLASS = 1
M_MMAP_THRESHOLD = -3  # of malloc.h


def benchmark_cam(
    slices: int = 4,
    size: int = 224,
    repeats: int = 3,
    threads: int = 1,
    stem_stride: int = 2,
    peers: bool = True,
) -> list[dict[str, Any]]:
    """Time Grad-CAM at the last and LayerCAM at the first layer of a ResNet-18 with 3 channels and 2 classes.

    Every method runs once in each round, so that a busy machine slows all of them; each one's fastest round counts.
    Each works on a copy of the network of its own, with parameters that require gradients, as after training.

    Args:
        slices: images in the one batch.
        size: their side in pixels.
        repeats: rounds.
        threads: CPU threads.
        stem_stride: of the network's first convolution; the usual ResNet has 2, MONAI's default is 1.
        peers: run TorchCAM, pytorch-grad-cam and MONAI, too, where they are installed (extra `dev`).

    Returns:
        One dict a row of the printed table: `method`, `layer`, `format`; `cpu`, `wall` and `memory` divided by a plain
        forward's in the same memory format, `cpu_contiguous` by one in the default format; `frozen`, whether it works
        when no parameter requires a gradient; for the forwards `seconds` (CPU) and `megabytes`, too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = _measure(methods(peers), slices, size, repeats, stem_stride)
    finally:
        torch.set_num_threads(before)
    forward = rows[0]["seconds"] / slices * 1000
    print(f"{slices} slices of {size}², {threads} thread(s); a plain forward takes {forward:.1f} CPU-ms a slice")
    print("÷ plain forward of the same format       CPU    wall  memory | CPU ÷ contiguous forward | frozen network")
    for row in rows:
        name = f"{row['method']:<17}{row['layer']:<8}{row['format']:<14}"
        memory = f"{row['memory']:.2f}" if row["memory"] else "–"
        own = f"{row['cpu']:>5.2f}  {row['wall']:>6.2f}  {memory:>6}"
        print(f"{name}{own} | {row['cpu_contiguous']:>24.2f} | {row['frozen']}")
    return rows


def methods(peers: bool = True) -> dict[tuple[str, str], Callable[[nn.Module], Run]]:
    """By name and layer, a function from a network to a function from images to maps; the absent ones are printed."""
    found: dict[tuple[str, str], Callable[[nn.Module], Run]] = {
        ("common", "layer4"): lambda network: lambda images: cam.GradCAM(network, "layer4")(images, CLASS),
        ("common", "layer1"): lambda network: lambda images: cam.LayerCAM(network, "layer1")(images, CLASS),
    }
    for name, load in (("TorchCAM", _torchcam), ("pytorch-grad-cam", _grad_cam), ("MONAI", _monai)) if peers else ():
        try:
            for layer, make in load().items():
                found[name, layer] = make
        except Exception as error:  # whatever breaks on import, the others are measured
            print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def _torchcam() -> dict[str, Callable[[nn.Module], Run]]:
    library = importlib.import_module("torchcam.methods")

    def make(method: str, layer: str) -> Callable[[nn.Module], Run]:
        def run(network: nn.Module, images: Tensor) -> Any:
            with getattr(library, method)(network, layer) as extractor:
                return extractor(CLASS, network(images), normalized=False)

        return lambda network: lambda images: run(network, images)

    return {"layer4": make("GradCAM", "layer4"), "layer1": make("LayerCAM", "layer1")}


def _grad_cam() -> dict[str, Callable[[nn.Module], Run]]:
    library = import_grad_cam()

    def make(method: str, layer: str) -> Callable[[nn.Module], Run]:
        def run(network: nn.Module, images: Tensor) -> Any:
            targets = [lambda logits: logits[CLASS]] * len(images)
            with getattr(library, method)(model=network, target_layers=[getattr(network, layer)]) as extractor:
                return extractor(input_tensor=images, targets=targets)

        return lambda network: lambda images: run(network, images)

    return {"layer4": make("GradCAM", "layer4"), "layer1": make("LayerCAM", "layer1")}


def _monai() -> dict[str, Callable[[nn.Module], Run]]:
    from monai.visualize import GradCAM

    def make(network: nn.Module) -> Run:
        extractor = GradCAM(nn_module=network, target_layers="layer4")
        return lambda images: extractor(images, class_idx=CLASS)

    return {"layer4": make}


def import_grad_cam() -> ModuleType:
    """Import pytorch-grad-cam, also where torchvision is missing or does not fit the torch that is installed.

    It needs some of torchvision's transforms, for loading pictures only; they get stand-ins while it is imported.
    """
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update({name: mock.MagicMock() for name in names})
    try:
        return importlib.import_module("pytorch_grad_cam")
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


def _measure(
    found: dict[tuple[str, str], Callable[[nn.Module], Run]], slices: int, size: int, repeats: int, stem_stride: int
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    network = resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, conv1_t_stride=stem_stride).eval()
    images = torch.rand(slices, 3, size, size)
    runs: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        batch = images.contiguous(memory_format=layout)
        plain = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
        runs["forward", "", name] = partial(_forward, plain, batch)
        for (method, layer), make in found.items():
            run = make(copy.deepcopy(network).to(memory_format=layout))  # type: ignore[call-overload]
            runs[method, layer, name] = partial(run, batch)
    cpu: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    wall: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    for call in runs.values():  # what the first call alone allocates and compiles is not measured
        call()
    # The lesser of two: a run also gets back pages of libraries that the kernel had dropped.
    memory = {key: min(peak_memory(call) or 0 for _ in range(2)) for key, call in runs.items()}
    for _ in range(repeats):
        for key, call in runs.items():
            start, clock = time.process_time(), time.perf_counter()
            call()
            cpu[key].append(time.process_time() - start)
            wall[key].append(time.perf_counter() - clock)
    rows = []
    for method, layer, layout_name in runs:
        key, plain_key = (method, layer, layout_name), ("forward", "", layout_name)
        used, base = memory[key], memory[plain_key]
        row: dict[str, Any] = {
            "method": method,
            "layer": layer,
            "format": layout_name,
            "cpu": min(cpu[key]) / min(cpu[plain_key]),
            "wall": min(wall[key]) / min(wall[plain_key]),
            "memory": used / base if used and base else None,
            "cpu_contiguous": min(cpu[key]) / min(cpu["forward", "", "contiguous"]),
        }
        if method == "forward":
            row |= {"frozen": "", "seconds": min(cpu[key]), "megabytes": base / 1e6 if base else None}
        else:
            row["frozen"] = works_frozen(found[method, layer])
        rows.append(row)
    return rows


def _forward(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def works_frozen(make: Callable[[nn.Module], Run]) -> str:
    """`"works"`, or the error's name, for a small network none of whose parameters requires a gradient."""
    network = (
        resnet18(spatial_dims=2, n_input_channels=3, num_classes=2, widen_factor=0.125).eval().requires_grad_(False)
    )
    try:
        make(network)(torch.rand(2, 3, 64, 64))
    except Exception as error:
        return type(error).__name__
    return "works"


def peak_memory(run: Callable[[], Any]) -> int | None:
    """Bytes of main memory that `run` needs at its peak beyond what was in use before; None where not known (Linux).

    The kernel's high-water mark of the process, which sees what a tensor allocator does not: scratch space of the
    convolutions. For that, blocks above 64 kB bypass the heap during the run; a heap in disorder blurred it by 15 %.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        gc.collect()
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    try:
        run()
        return _status("VmHWM") - before
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # where glibc's own, moving threshold ends


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
