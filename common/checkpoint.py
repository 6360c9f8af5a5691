"""Weights in and out: plain state dicts, training that resumes, errors that say which file does not fit."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from ignite.distributed import one_rank_only
from ignite.engine import Engine, Events

from .files import atomic_path

logger = logging.getLogger(__name__)


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if it exists here.

    Raises:
        RuntimeError: a CUDA device is asked for and there is none of that number.
    """
    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(
            f"device {device} was asked for, but CUDA sees {torch.cuda.device_count()} device(s); use --device cpu"
        )
    return device


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside a `DistributedDataParallel` (or any other wrapper, or wrappers, with a `module`)."""
    module = getattr(network, "module", None)
    return unwrapped(module) if isinstance(module, torch.nn.Module) else network


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, tensors on the CPU, no code run.

    Raises:
        ValueError: the file is something else, or cut off.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: truncated, or not written by torch.save"
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it anew or remove it") from error


def load_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> torch.nn.Module:
    """Load a plain state dict (or `{"model": state dict}`) into a network, all or nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one of another architecture; the message names the first keys that differ.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: train first, or give the file with --ckpt")
    state = read_checkpoint(path)
    state = state.get("model", state) if isinstance(state, dict) else state
    target = unwrapped(network)
    expected = target.state_dict()
    wrong = sorted(set(expected) ^ set(state)) if isinstance(state, dict) else ["(not a dictionary)"]
    wrong = wrong or [k for k in expected if expected[k].shape != state[k].shape]
    if wrong:
        raise ValueError(
            f"{path} does not fit the network {type(target).__name__}: {len(wrong)} entries differ, e.g. {wrong[:3]}; "
            "use the config that it was trained with"
        )
    target.load_state_dict(state)
    return network


def save_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network's plain state dict, atomically."""
    with atomic_path(path) as temporary:
        torch.save(unwrapped(network).state_dict(), temporary)


class TrainingCheckpoint:
    """Handler: save all that training needs after each epoch, resume from it, and leave `model.pt` at the end.

    Args:
        path: the checkpoint; training that finds it goes on after its last epoch.
        objects: what has `state_dict` / `load_state_dict`: network, optimizer, schedule …
        model: the network whose plain weights go to `model_path` after every epoch.
        best_of: evaluator of a validation: weights go to `model_path` only when its key metric is as good as ever.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: dict[str, Any],
        *,
        model: torch.nn.Module,
        model_path: str | os.PathLike[str],
        best_of: Any = None,
    ) -> None:
        self.path = Path(path)
        self.objects = objects
        self.model = model
        self.model_path = model_path
        self.best_of = best_of
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _resume(self, engine: Engine) -> None:
        if not self.path.is_file():
            return
        state = read_checkpoint(self.path)
        for name, target in self.objects.items():
            try:
                target.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{self.path} belongs to another training ({name}: {error}); remove it or change output_dir"
                ) from error
        engine.state.epoch = state["epoch"]
        self.best = state.get("best", -math.inf)
        if engine.state.epoch_length:
            engine.state.iteration = state["epoch"] * engine.state.epoch_length
        logger.info("resuming %s after epoch %d", self.path, state["epoch"])

    @one_rank_only()
    def _save(self, engine: Engine) -> None:
        better = True
        if self.best_of is not None:
            reached = float(self.best_of.state.metrics[self.best_of.state.key_metric_name])
            # Of equals the later one, which has learned more; an undefined metric (one class) keeps nothing back.
            better, self.best = not reached < self.best, max(self.best, reached)
        if better:
            save_weights(self.model, self.model_path)
        state = {name: target.state_dict() for name, target in self.objects.items()}
        with atomic_path(self.path) as temporary:
            torch.save(state | {"epoch": engine.state.epoch, "best": self.best}, temporary)
