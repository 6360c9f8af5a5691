"""Two ranks, one of which meets an error where the other waits for it: what each raises, a line a way of failing."""

from __future__ import annotations

import sys
import tempfile
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Events

from common.engines import CaseDataset, CaseEvaluator
from common.handlers import CaseHandler


class Collected(CaseHandler):
    """A row a case; another handler, or this one, may fail."""

    def __init__(self, *, fails: bool = False, done: str = "") -> None:
        super().__init__(tempfile.gettempdir())
        self.fails = fails
        self.done = set(done)

    def finished(self, engine: Any) -> set[str]:
        return self.done if torch.distributed.get_rank() == 0 else set("abcd")  # it may look later, when more is there

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        if batch["case"] == "bad":
            raise ValueError("cannot be read")
        self.rows.append({"case": batch["case"]})

    def _write(self) -> None:
        if self.fails:
            raise OSError("disk full")


def outcome(way: str, rank: int) -> str:
    names = ["a", "bad" if "bad" in way else "b", "c", "d"]
    data = CaseDataset([{"case": name, "image": torch.zeros(1, 2)} for name in names], dict)
    done = way.removeprefix("finished ") if way.startswith("finished") else ""
    first, second = Collected(fails="writing" in way, done=done), Collected(done=done)
    evaluator = CaseEvaluator("cpu", data, torch.nn.Identity(), val_handlers=[first, second], progress=False)
    if "reading" in way and rank == 1:

        @evaluator.on(Events.ITERATION_COMPLETED(once=2))
        def fail() -> None:
            raise RuntimeError("a worker was killed")

    try:
        evaluator.run()
    except Exception as error:
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message}"
    return f"{[row['case'] for row in second.rows]}"


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
    for way in sys.argv[1:]:
        print(f"{way} | {outcome(way, torch.distributed.get_rank())}", flush=True)
