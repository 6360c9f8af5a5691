"""The network runs ahead: while one case is postprocessed and written, the forward of the next is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

FORWARD = "_forward"  # key of a batch under which the `Future` of its forward lies


class Ahead:
    """Batches of a loader, each with its forward already under way in a thread of its own.

    Args:
        loader: batches are dicts; one with the key `error` gets no forward.
        forward: function of a batch.
        pool: of one thread, so that there is one forward at a time, in order.
        depth: forwards that may be done, or under way, beside that of the batch which is given out.
    """

    def __init__(
        self, loader: DataLoader, forward: Callable[[dict], Any], pool: ThreadPoolExecutor, *, depth: int = 1
    ) -> None:
        self.loader = loader
        self.forward = forward
        self.pool = pool
        self.depth = depth

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        waiting: deque[dict] = deque()
        for batch in self.loader:
            if "error" not in batch:
                batch[FORWARD] = self.pool.submit(self.forward, dict(batch))
            waiting.append(batch)
            if len(waiting) > self.depth:
                yield waiting.popleft()
        yield from waiting


@contextmanager
def one_thread_ahead() -> Iterator[ThreadPoolExecutor]:
    """The pool for `Ahead`; an exception of the block, or its end, drops what has not begun."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def shared_cores(workers: int) -> Iterator[None]:
    """Torch's threads in the block: the cores that workers leave, half for the network and half for what follows it.

    With more threads than cores each operation waits for its slowest thread: on two cores a volume takes four times as
    long.

    Args:
        workers: processes beside this one, one core each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (threads - workers) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
