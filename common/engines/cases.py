"""Evaluation case by case: one bad scan is named and skipped, the run goes on and ends with a non-zero exit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import apply_transform
from torch.utils.data import Dataset
from tqdm import tqdm

from .processes import gathered, shard

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
    """The first cause: MONAI wraps what a transform raises in "applying transform ..." errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _with_files(message: str, case: dict) -> str:
    """The message, and the case's files where it names none of them (a truncated gzip does not)."""
    images = case.get("image", [])
    files = [str(f) for f in (*(images if isinstance(images, list) else [images]), case.get("label")) if f]
    return message if any(f in message for f in files) else f"{message} (in {', '.join(files)})"


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator`, one volume at a time, tolerant of single bad cases.

    What handlers attach to `IterationEvents.MODEL_COMPLETED` (writing, scoring) counts as part of a case: an
    exception there marks the case as failed too.

    Args:
        device: where the network runs.
        dataset: a `CaseDataset`; of several processes (`torchrun`) each takes its share.
        num_workers: processes that load the next cases meanwhile.
        progress: show a progress bar with the time left.
        kwargs: see `SupervisedEvaluator`.

    Raises:
        RuntimeError: (from `run`, after all cases) some cases failed; the message lists them with the reasons.
    """

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
        loader = DataLoader(shard(dataset), batch_size=1, num_workers=num_workers)
        super().__init__(device=torch.device(device), val_data_loader=loader, network=network, **kwargs)
        self.cases = [case["case"] for case in getattr(dataset, "data", ())]
        self.failed: dict[str, str] = {}
        self.progress = progress

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        self.failed = {}
        cases = len(self.data_loader)  # type: ignore[arg-type]
        at_the_end: Exception | None = None
        with tqdm(total=cases, desc="cases", unit="case", disable=not self.progress) as self._bar, torch.no_grad():
            try:
                super().run(global_epoch)
            except Exception as error:  # e.g. a handler to which the failed cases left nothing
                if not self.failed:
                    raise
                at_the_end = error
        self.failed = {case: reason for part in gathered(self.failed) for case, reason in part.items()}
        cases = sum(gathered(cases))
        if self.failed:
            lines = "\n".join(f"  {case}: {reason}" for case, reason in self.failed.items())
            more = f"\nand then: {_root_message(at_the_end)}" if at_the_end else ""
            raise RuntimeError(f"{len(self.failed)} of {cases} cases failed:\n{lines}{more}") from at_the_end

    def _iteration(self, engine: Any, batchdata: dict) -> Any:
        case = batchdata["case"][0]
        self.started = time.perf_counter() - float(batchdata.pop("load_seconds", 0.0))
        try:
            if "error" in batchdata:
                raise CaseError(batchdata["error"][0])
            return super()._iteration(engine, batchdata)
        except Exception as error:
            reason = str(error) if isinstance(error, CaseError) else _root_message(error)
            self.failed[case] = reason
            logger.error("case %s failed and is skipped: %s", case, reason)
            self.state.output = []
            return []
        finally:
            self._bar.update()


class CaseError(RuntimeError):
    """A case could not be loaded; the message says why."""
