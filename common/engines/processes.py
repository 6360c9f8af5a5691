"""Several processes at one run: `torchrun` starts them, each takes its share of the cases, one writes the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.distributed import get_local_rank, get_rank, get_world_size
from monai.data import DistributedWeightedRandomSampler
from torch.distributed import all_gather_object, get_backend, is_initialized
from torch.utils.data import Dataset, Sampler, Subset, WeightedRandomSampler


def shard(dataset: Dataset, indices: Sequence[int] | None = None) -> Dataset:
    """This process's cases, every n-th of n processes; all of them where there is one process.

    Args:
        dataset: of all cases.
        indices: of those to share out; None: all. Some processes may get none of these.

    Raises:
        ValueError: more processes than cases in the dataset.
    """
    processes, cases = get_world_size(), len(dataset)  # type: ignore[arg-type]
    if processes > max(cases, 1):
        raise ValueError(f"{processes} processes for {cases} case(s): start at most {cases} with --nproc_per_node")
    mine = range(cases) if indices is None else indices
    return Subset(dataset, mine[get_rank() :: processes])


def weighted_sampler(dataset: Dataset, weights: Sequence[float], draws: int) -> Sampler:
    """Draw with replacement by weight; of several processes in training each makes its share of the draws.

    Args:
        dataset: as long as `weights`.
        weights: of each item, not necessarily summing to 1.
        draws: per epoch, over all processes.
    """
    if is_initialized():
        per_rank = -(-draws // get_world_size())
        return DistributedWeightedRandomSampler(dataset, weights, num_samples_per_rank=per_rank)
    return WeightedRandomSampler(weights, draws)


def gathered(values: Any) -> list[Any]:
    """What each process holds, by rank, on every process; all of them must call it."""
    parts: list[Any] = [values] * get_world_size()
    if len(parts) > 1:
        if get_backend() == "nccl":  # it sends from the current device, which is the first one in every process
            torch.cuda.set_device(get_local_rank())
        all_gather_object(parts, values)
    return parts


def raise_together(error: Exception | None) -> None:
    """Raise in every process what one of them met, so that none waits for another that has stopped.

    All of them must call it. The one that met the error raises it, the others a `RuntimeError` that quotes it.
    """
    met = [message for message in gathered(error and f"{type(error).__name__}: {error}") if message]
    if error is not None:
        raise error
    if met:
        raise RuntimeError(f"another process failed: {met[0]}")


def gathered_rows(rows: Sequence[dict], cases: Sequence[str]) -> list[dict]:
    """The rows of all processes, as one process would have them: in the order of `cases`.

    Args:
        rows: each with its `case`; a case may have several.
        cases: names, in the order of the run.
    """
    order = {case: index for index, case in enumerate(cases)}
    together = [row for part in gathered(list(rows)) for row in part]
    return sorted(together, key=lambda row: order.get(row["case"], len(order)))
