"""Evaluation case by case: one bad scan is named and skipped, the run goes on and ends with a non-zero exit."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.transforms import apply_transform
from monai.utils import CommonKeys as Keys
from monai.utils import ensure_tuple
from torch.utils.data import Dataset
from tqdm import tqdm

from .ahead import FORWARD, Ahead, one_thread_ahead, shared_cores
from .launch import cause
from .processes import gathered, raise_together, shard

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """Cases with their preprocessing; a case that cannot be read becomes an entry that carries its error.

    Args:
        data: cases as `common.data.find_cases` or `common.data.load_datalist` give them.
        transform: the preprocessing.
    """

    def __init__(self, data: Sequence[dict], transform: Callable) -> None:
        self.data = list(data)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        # Lists, of one label per slice or of names, would not collate.
        case: Any = {k: v for k, v in self.data[index].items() if k != "cls" or isinstance(v, int)}
        start = time.perf_counter()
        try:
            case = apply_transform(self.transform, case)
        except Exception as error:
            return {"case": self.data[index]["case"], "error": _with_files(_root_message(error), self.data[index])}
        case["load_seconds"] = time.perf_counter() - start
        return case


def _root_message(error: BaseException) -> str:
    """What a transform raised, with its own words about it: MONAI wraps it in "applying transform ..." errors."""
    error = cause(error)
    return f"{type(error).__name__}: {error}"


def _with_files(message: str, case: dict) -> str:
    """The message, and the case's files where it names none of them (a truncated gzip does not)."""
    images = case.get("image", [])
    files = [str(f) for f in (*(images if isinstance(images, list) else [images]), case.get("label")) if f]
    return message if any(f in message for f in files) else f"{message} (in {', '.join(files)})"


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator`, one volume at a time, tolerant of single bad cases.

    What handlers attach to `IterationEvents.MODEL_COMPLETED` (writing, scoring) counts as part of a case: an
    exception there marks the case as failed too. Cases that every handler has `finished` are skipped.

    Args:
        device: where the network runs.
        dataset: a `CaseDataset`; of several processes (`torchrun`) each takes its share.
        num_workers: processes that load the next cases meanwhile. With any, the network runs ahead, too: the next case
            goes through it while this one is postprocessed and written.
        progress: show a progress bar with the time left.
        kwargs: see `SupervisedEvaluator`.

    Attributes:
        cases: the dataset's, by name, in the order of the run.
        failed: the reasons, by case.
        skipped: names of cases that were finished before.

    Raises:
        RuntimeError: (from `run`, after all cases) some cases failed; the message lists them with the reasons.
    """

    runs_ahead = True  # false where an inferer cannot begin with a case before the one before it is written

    def __init__(
        self,
        device: torch.device | str,
        dataset: Dataset,
        network: torch.nn.Module,
        *,
        num_workers: int = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        self.dataset = dataset
        self.cases: dict[str, dict] = {case["case"]: case for case in getattr(dataset, "data", ())}
        self.num_workers = num_workers
        self.progress = progress
        self.failed: dict[str, str] = {}
        self.skipped: set[str] = set()
        self.preprocessing = getattr(dataset, "transform", None)
        self.postprocessing = kwargs.get("postprocessing")
        self.case_handlers = ensure_tuple(kwargs.get("val_handlers") or ())
        loader = self._loader(shard(dataset))
        super().__init__(device=torch.device(device), val_data_loader=loader, network=network, **kwargs)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_together)

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        self.failed, self._ended = {}, False
        # The first process decides: another may look when the first has begun to write.
        self.skipped = gathered(self._finished())[0]
        met: Exception | None = None
        try:
            self._run(global_epoch)
        except Exception as error:
            met = error
            if not self._ended:  # at the end of their cases the other processes wait for this one
                with suppress(Exception):
                    self._end_together(met)
        self.failed = {case: reason for part in gathered(self.failed) for case, reason in part.items()}
        if self.failed:
            lines = "\n".join(f"  {case}: {reason}" for case, reason in self.failed.items())
            more = f"\nand then: {_root_message(met)}" if met else ""  # e.g. handlers to which they left nothing
            total = len(self.dataset)  # type: ignore[arg-type]
            raise RuntimeError(f"{len(self.failed)} of {total} cases failed:\n{lines}{more}") from met
        if met is not None:
            raise met

    def _finished(self) -> set[str]:
        """Cases that no handler needs any more; one whose `finished` gives None needs none."""
        done = {h: h.finished(self) if hasattr(h, "finished") else set() for h in self.case_handlers}
        done = {handler: cases for handler, cases in done.items() if cases is not None}
        finished = set.intersection(*done.values()) if done else set()
        if any(done.values()) and not finished:
            names = [type(handler).__name__ for handler, cases in done.items() if not cases]
            logger.warning("every case is made anew: %s has to see all of them", " and ".join(names))
        return finished

    def _run(self, global_epoch: int) -> None:
        loader = self._loader(shard(self.dataset, self._left()))
        self.state.epoch_length = len(loader)
        total = len(loader) + len(self.skipped)
        bar = tqdm(total=total, initial=len(self.skipped), desc="cases", unit="case", disable=not self.progress)
        with bar as self._bar, torch.no_grad(), ExitStack() as stack:
            self.data_loader: Any = loader
            if self.num_workers and self.runs_ahead:
                stack.enter_context(shared_cores(self.num_workers))
                self.data_loader = Ahead(loader, self._forward, stack.enter_context(one_thread_ahead()))
            if len(loader):
                super().run(global_epoch)
            else:
                self.fire_event(Events.STARTED)
                self._end_together()
                self.fire_event(Events.COMPLETED)

    def _loader(self, cases: Dataset) -> DataLoader:
        # MONAI inverts a transform by its `id`, which it keeps in a worker that is forked.
        start = "fork" if self.num_workers and "fork" in multiprocessing.get_all_start_methods() else None
        return DataLoader(cases, batch_size=1, num_workers=self.num_workers, multiprocessing_context=start)

    def _left(self) -> list[int]:
        """Indices of the cases that are not skipped."""
        names = [case["case"] for case in getattr(self.dataset, "data", ())] or [None] * len(self.dataset)  # type: ignore[arg-type]
        return [index for index, name in enumerate(names) if name not in self.skipped]

    def _end_together(self, error: Exception | None = None) -> None:
        """No process goes on to the end, where they gather what they have, before all are through their cases."""
        self._ended = True
        raise_together(error if isinstance(error, Exception) else None)

    def _iteration(self, engine: Any, batchdata: dict) -> Any:
        case = batchdata["case"][0]
        forward = batchdata.pop(FORWARD, None)
        self.started = time.perf_counter() - float(batchdata.pop("load_seconds", 0.0))
        try:
            if "error" in batchdata:
                raise CaseError(batchdata["error"][0])
            if forward is None:
                return super()._iteration(engine, batchdata)
            return self._after(*forward.result())
        except Exception as error:
            reason = str(error) if isinstance(error, CaseError) else _root_message(error)
            self.failed[case] = reason
            logger.error("case %s failed and is skipped: %s", case, reason)
            self.state.output = []
            return []
        finally:
            self._bar.update()

    @torch.no_grad()
    def _forward(self, batchdata: dict) -> tuple[dict[str, Any], float]:
        """Output of the network for a batch, as `SupervisedEvaluator` has it, and the seconds that it took."""
        start = time.perf_counter()
        inputs, targets, *more = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        args, kwargs = more or ((), {})
        with self.mode(self.network), torch.autocast("cuda", enabled=self.amp, **self.amp_kwargs):
            pred = self.inferer(inputs, self.network, *args, **kwargs)
        return {Keys.IMAGE: inputs, Keys.LABEL: targets, Keys.PRED: pred}, time.perf_counter() - start

    def _after(self, output: dict[str, Any], seconds: float) -> Any:
        self.started -= seconds
        self.state.output = output
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output


class CaseError(RuntimeError):
    """A case could not be loaded; the message says why."""
