"""Tiles through an encoder, batch by batch, in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..encoders import Encoder


def encode(encoder: Encoder, tiles: Any, batch_size: int = 16) -> Tensor:
    """Features `[N, C, h, w]`, float32 on the encoder's device, of `tiles[i:j]` = `[n, 1 or 3, H, W]`; no disk."""
    return torch.cat(list(encode_batches(encoder, tiles, batch_size)))


def encode_batches(
    encoder: Encoder, tiles: Any, batch_size: int = 16, *, start: int = 0, stop: int | None = None
) -> Iterator[Tensor]:
    """The same batch by batch; a thread reads the next tiles while the encoder works on these.

    Args:
        encoder, tiles: see `FeatureStore.compute`.
        batch_size: tiles per forward; no more than two batches are held.
        start, stop: first and last + 1 of the tiles that are taken; None: to the end.

    Raises:
        Exception: what reading raises. (MONAI's `ThreadBuffer` would end early and say nothing.)
    """
    end = len(tiles) if stop is None else stop
    parts = (slice(first, min(first + batch_size, end)) for first in range(start, end, batch_size))
    for image in _read_ahead(tiles.__getitem__, parts):
        with torch.no_grad():
            features = encoder(torch.as_tensor(image).as_subclass(Tensor).to(encoder.mean.device))
        yield features


def _read_ahead(read: Callable[[slice], Any], parts: Iterable[slice]) -> Iterator[Any]:
    """What `read` gives of each part, in their order; a thread is at the next one."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming: deque[Future[Any]] = deque()
        for part in parts:
            coming.append(reader.submit(read, part))
            if len(coming) > 1:
                yield coming.popleft().result()
        for last in coming:
            yield last.result()
