"""An encoder that counts its calls, in whatever process, and tiles for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.encoders import Encoder
from common.features import FeatureStore

KEY = "ab" + 62 * "0"
FORK = multiprocessing.get_context("fork")


class Counted(nn.Module):
    """Cell means; does something at each call and counts them, in whatever process."""

    def __init__(self, at_call: Callable[[int], None] = lambda call: None) -> None:
        super().__init__()
        self.calls = FORK.Value("i", 0)
        self.at_call = at_call

    def forward(self, image: Tensor) -> Tensor:
        with self.calls.get_lock():
            self.calls.value += 1
            call = self.calls.value
        self.at_call(call)
        return nn.functional.avg_pool2d(image, 4)


def counted(at_call: Callable[[int], None] = lambda call: None) -> tuple[Encoder, Any]:
    body = Counted(at_call)
    return Encoder(body, name="counted", channels=3, stride=4), body.calls


def tiles(number: int = 10, side: int = 8) -> Tensor:
    return torch.rand(number, 1, side, side, generator=torch.Generator().manual_seed(0))


def in_child(function: Callable[[], object]) -> int:
    """Exit code of a process that runs the function; it uses one thread, as a forked torch should."""

    def run() -> None:
        torch.set_num_threads(1)
        function()

    child = FORK.Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode


def files_of(store: FeatureStore, key: str = KEY) -> set[str]:
    """Names in the entry's folder, beside its lock."""
    return {path.name for path in store.folder(key).iterdir()} - {".lock"}
