"""Weights in and out: plain state dicts, training that resumes, errors that say which file does not fit."""

from __future__ import annotations

import builtins
import copy
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.distributed import get_rank, get_world_size, one_rank_only
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .files import alone, atomic_path, file_digest, without_code, write_json

logger = logging.getLogger(__name__)
# What schedules move of an optimizer's groups, and what goes with them: on resuming the config's values count.
MOVED = ("lr", "initial_lr", "max_lr", "min_lr", "betas", "momentum", "base_momentum", "max_momentum", "weight_decay")
NETWORK = ("backbone", "members", "spatial_dims", "network_options", "channels", "classes", "map_width", "encoder_name")


def usable_device(device: torch.device | str) -> torch.device:
    """The device, if it exists here.

    Raises:
        RuntimeError: a CUDA device is asked for and there is none of that number.
    """
    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise RuntimeError(f"device {device} was asked for, but CUDA sees {count} device(s); use --device cpu")
    return device


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside a `DistributedDataParallel` (or other wrappers with a `module`), or `torch.compile`."""
    for name in ("_orig_mod", "module"):
        inner = getattr(network, name, None)
        if isinstance(inner, torch.nn.Module):
            return unwrapped(inner)
    return network


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, tensors on the CPU, no code run.

    Raises:
        ValueError: the file is something else, holds more than tensors and plain values, or is cut off.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        if held and ("." in held[1] or hasattr(builtins, held[1])):  # else a text that begins with the code for GLOBAL
            raise ValueError(
                f"{path} holds {held[1]} and is refused, since reading that would run code; keep tensors alone: "
                "torch.save(network.state_dict(), path)"
            ) from error
        reason = f"{type(error).__name__}: truncated, or not written by torch.save"
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it anew or remove it") from error


def load_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> torch.nn.Module:
    """Load a plain state dict (or `{"model": state dict}`) into a network, all or nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one with NaN, or of another architecture; the message names the first keys.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: train first, or give the file with --ckpt")
    target, state = unwrapped(network), read_checkpoint(path)
    state = state.get("model", state) if isinstance(state, dict) else state
    expected = target.state_dict()
    wrong = sorted(set(expected) ^ set(state), key=str) if isinstance(state, dict) else ["(not a dictionary)"]
    wrong = wrong or [k for k in expected if expected[k].shape != getattr(state[k], "shape", None)]
    if wrong:
        told = " ".join(f'--{k} "{v}"' for k, v in read_beside(path).get("trained", {}).items() if k in NETWORK and v)
        raise ValueError(
            f"{path} does not fit the network {type(target).__name__}: {len(wrong)} entries differ, e.g. {wrong[:3]}; "
            f"is it of another bundle? Use the config that it was trained with{told and ': ' + told}"
        )
    _refuse_nan(state, path)
    target.load_state_dict(state)
    return network


def save_weights(network: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network's plain state dict, atomically."""
    with atomic_path(path) as temporary:
        torch.save(unwrapped(network).state_dict(), temporary)


def _refuse_nan(state: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    if broken := [k for k, v in state.items() if v.is_floating_point() and v.isnan().any()]:
        raise ValueError(f"{path}: NaN in the weights ({broken[0]}), the training has failed: a lower learning rate?")


def read_beside(ckpt: str | os.PathLike[str]) -> dict[str, Any]:
    """What goes with weights wherever they go: the `.json` of the same name beside them; empty if there is none.

    `seen`: what their training images look like (`common.preprocessing.seen`). `trained`: keys of the config that the
    weights depend on. `trained_on`: labels of what, and which masks if any, taught them. `chosen`: gate, threshold and
    the like, and under `chosen_from` what they were chosen from and for which weights.

    Raises:
        ValueError: the file is no JSON, one of these parts no dict, or `trained` holds what a config would run.
    """
    path = Path(ckpt).with_suffix(".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error}); write it anew or remove it") from error
    content = content if isinstance(content, dict) else {}
    if wrong := [part for part in ("trained", "chosen", "chosen_from") if not isinstance(content.get(part, {}), dict)]:
        raise ValueError(f"{path}: {wrong[0]} is {content[wrong[0]]!r}, no dict; mend it or remove the file")
    return without_code(content, path)


def add_beside(ckpt: str | os.PathLike[str], **parts: Any) -> None:
    """Write parts of the `.json` beside weights; others are kept. `chosen_from`, unless empty, names the weights."""
    if parts.get("chosen_from") and Path(ckpt).is_file():
        parts["chosen_from"] = parts["chosen_from"] | {"weights_sha256": file_digest(ckpt)}
    write_json(Path(ckpt).with_suffix(".json"), read_beside(ckpt) | parts)


CHOOSING = "calibrate_labels.json (or, with masks, calibrate.json) over inference.json"


class Chosen(dict):
    """Settings that were chosen for weights; one that is not there says how to get it."""

    def __init__(self, settings: Mapping[str, Any], path: Path, by: str) -> None:
        super().__init__(settings)
        self.path, self.by = path, by

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"{self.path} holds no {key!r}: nothing was chosen for these weights yet. Run {self.by} with --ckpt "
            f"{self.path.with_suffix('.pt')}, copy the .json that belongs to the weights, or give --{key}"
        )


def read_chosen(ckpt: str | os.PathLike[str], *, by: str = CHOOSING, usual: Mapping[str, Any] | None = None) -> Chosen:
    """What was chosen for weights, beside them, over what is `usual`: `@chosen['gate']`; `by` whom, for messages.

    Raises:
        ValueError: they were chosen for other weights than those that lie beside them.
    """
    content, path = read_beside(ckpt), Path(ckpt).with_suffix(".json")
    digest = content.get("chosen_from", {}).get("weights_sha256")
    if digest and Path(ckpt).is_file() and digest != file_digest(ckpt):
        raise ValueError(
            f"gate and thresholds in {path} were chosen for other weights than {ckpt}: copy the .json that belongs to "
            f"them, or choose anew by {by}"
        )
    return Chosen({**(usual or {}), **content.get("chosen", {})}, path, by)


class TrainingCheckpoint:
    """Handler: save all that training needs after each epoch, resume from it, and leave `model.pt` at the end.

    A resumed training may have other `max_epochs`, batches or processes. Schedules of the learning rate are stepped
    anew from their start, so that the rates are those of a training that always had the new length.

    Args:
        path: the checkpoint; training that finds it goes on after its last epoch.
        objects: what has `state_dict` / `load_state_dict`: network, optimizer, schedule …
        model: the network whose plain weights go to `model_path` after every epoch.
        best_of: evaluator of a validation: weights go to `model_path` only when its key metric is as good as ever.
        stopping: MONAI's `EarlyStopHandler`: its count of epochs without progress goes on, and a training that it has
            ended stays ended (unless its patience is longer now). Without a trainer of its own it stops this one.

    Raises:
        ValueError: (as training starts) the checkpoint is damaged, of another training, or one whose schedule cannot
            be brought to the new length; (after an epoch) the weights hold NaN: those before stay.
        RuntimeError: another training is at work in the folder: both would write the same files.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: dict[str, Any],
        *,
        model: torch.nn.Module,
        model_path: str | os.PathLike[str],
        best_of: Any = None,
        stopping: Any = None,
    ) -> None:
        self.path = Path(path)
        self.objects = objects
        self.model, self.model_path = model, model_path
        self.best_of = best_of
        self.stopping = stopping
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        if self.stopping is not None and self.stopping._handler is None:
            self.stopping.set_trainer(engine)
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _end(self, engine: Engine) -> None:
        if get_rank() == 0:
            self._lock.release(force=True)

    def _resume(self, engine: Engine) -> None:
        if get_rank() == 0:
            self._lock = alone(self.path.parent, "training")
        if not self.path.is_file():
            return
        state = read_checkpoint(self.path)
        self._load(state, engine)
        engine.state.epoch = state["epoch"]
        torch.manual_seed(torch.initial_seed() + state["epoch"])  # else the first epoch's draws come again
        self.best = state.get("best", -math.inf)
        self._resume_stopping(state, engine)
        engine.state.iteration = state["epoch"] * (engine.state.epoch_length or 0)
        logger.info("resuming %s after epoch %d", self.path, state["epoch"])
        then, now = state.get("length", {}), _length(engine)
        if changed := [f"{name} {then[name]} before, {now[name]} now" for name in then if then[name] != now[name]]:
            told = "%s: %s; schedules are those of the new length, of which %d of %d epochs are done"
            logger.warning(told, self.path, changed, state["epoch"], engine.state.max_epochs)

    def _load(self, state: Mapping[str, Any], engine: Engine) -> None:
        """Bring all objects to where the training is; a schedule is stepped there, with the config's values."""
        schedules = {name: target for name, target in self.objects.items() if _has_length(target)}
        settings = {name: _settings(schedule.optimizer) for name, schedule in schedules.items()}
        for name, target in self.objects.items():
            try:
                if name in schedules:
                    state[name]["last_epoch"]
                else:
                    target.load_state_dict(state[name])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path} belongs to another training ({name}: {error}); remove it or change output_dir"
                ) from error
        for name, schedule in schedules.items():
            for group, values in zip(schedule.optimizer.param_groups, settings[name], strict=True):
                group.update(values)
            self._replay(name, schedule, state, engine)

    def _resume_stopping(self, state: Mapping[str, Any], engine: Engine) -> None:
        if self.stopping is None or "stopping" not in state:
            return
        handler = self.stopping._handler  # ignite's, in which the count is
        handler.counter, handler.best_score = state["stopping"]["counter"], state["stopping"]["best_score"]
        if handler.counter >= handler.patience:
            logger.info("%s: no progress in the last %d epochs: the training has ended", self.path, handler.counter)
            engine.terminate()

    def _replay(self, name: str, schedule: LRScheduler, state: Mapping[str, Any], engine: Engine) -> None:
        """Step a fresh schedule to where the training is."""
        epoch, steps = state["epoch"], state[name]["last_epoch"]
        if "length" not in state:
            raise ValueError(f"{self.path} does not say how many steps its epochs had: remove it or change output_dir")
        if epoch >= (engine.state.max_epochs or 0):
            return  # nothing is left to do
        if steps == epoch * state["length"]["steps an epoch"]:  # one a batch, not one an epoch
            steps = epoch * (engine.state.epoch_length or 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer made its steps before the interruption
                for _ in range(steps):
                    schedule.step()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: {name} ({type(schedule).__name__}) cannot make the {steps} steps that are done of the "
                f"new length, {_length(engine)}; before: {state['length']} ({error})"
            ) from error

    @one_rank_only()
    def _save(self, engine: Engine) -> None:
        _refuse_nan(unwrapped(self.model).state_dict(), self.model_path)
        better = True
        if self.best_of is not None:
            metrics, validated = self.best_of.state.metrics, self.best_of.state.epoch in (0, engine.state.epoch)
            reached = float(metrics.get(self.best_of.state.key_metric_name, -math.inf)) if validated else -math.inf
            # Of equals the later one, which has learned more; an undefined metric (one class) keeps nothing back, an
            # epoch without validation only what was validated.
            better, self.best = not reached < self.best, max(self.best, reached)
        if better:
            save_weights(self.model, self.model_path)
        state = {name: target.state_dict() for name, target in self.objects.items()}
        state |= {"epoch": engine.state.epoch, "best": self.best, "length": _length(engine)}
        if self.stopping is not None:
            handler = self.stopping._handler
            best = None if handler.best_score is None else float(handler.best_score)
            state["stopping"] = {"counter": handler.counter, "best_score": best}
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


def _length(engine: Engine) -> dict[str, int | None]:
    """How long a training is, and what makes it so; for messages, too."""
    return {
        "epochs": engine.state.max_epochs,
        "steps an epoch": engine.state.epoch_length,
        "batch size": getattr(engine.state.dataloader, "batch_size", None),
        "processes": get_world_size(),
    }


def _has_length(target: Any) -> bool:
    return isinstance(target, LRScheduler) and not isinstance(target, ReduceLROnPlateau)


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: copy.deepcopy(group[key]) for key in MOVED if key in group} for group in optimizer.param_groups]
