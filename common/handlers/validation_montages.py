"""Pictures of some validation cases while a network learns: what it marks after an epoch, and some epochs later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.distributed import get_rank
from ignite.engine import Engine, Events
from PIL import Image
from torch import Tensor

from ..data import read_unmasked
from ..files import PathLike, atomic_path, write_json
from ..images import as_array
from .montage import draw_montage

logger = logging.getLogger(__name__)

FOLDER = "montages"
LABELS = "labels.json"  # in that folder: whether each case is positive


class ValidationMontages:
    """Handler: `montages/<case>_epoch_0005.png` of some validation cases, every few epochs and as training ends.

    Above slices of the scan, always the same ones, below the network's map over them. No mask is opened: there is no
    truth in the pictures. Neither weights nor random numbers of the training depend on them. What they take is kept
    below a share of the training's own time: a turn that would exceed it is left out, but for the first and the last.

    Args:
        output_dir: of the training; gets the folder.
        cases: of the validation section, with their labels.
        preprocessing: gives `image` `[C, H, W, D]`, the first channel shown, the last one the organ.
        network: whose maps are drawn, with the weights that are kept.
        inferer: gives `[1, 2 N, H, W, D]`: raw maps of N classes, the negative one first, and whatever follows them.
            One that has `montage(case, network)` draws by itself, as that of slides does.
        transform: of the inferer's output `{"pred", "image"}` before that, e.g. to combine maps.
        every: epochs.
        count: cases, of which a third is negative where there are as many.
        share: of the training's time.
        columns, height: slices, and pixels of each.
    """

    def __init__(
        self,
        output_dir: PathLike,
        cases: Sequence[dict],
        *,
        preprocessing: Callable,
        network: torch.nn.Module,
        inferer: Callable,
        transform: Callable[[dict], Mapping[str, Any]] | None = None,
        every: int = 5,
        count: int = 3,
        share: float = 0.05,
        columns: int = 6,
        height: int = 128,
    ) -> None:
        self.folder = Path(output_dir) / FOLDER
        self.cases = some_of_each(cases, count)
        self.preprocessing = preprocessing
        self.network = network
        self.inferer = inferer
        self.transform = transform
        self.every = every
        self.share = share
        self.columns = columns
        self.height = height
        self._read: dict[str, Any] = {}
        self._trained = self._spent = self._last = self._began = 0.0
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:
        self._began = time.perf_counter()
        if engine.state.epoch == 1 and get_rank() == 0:  # what another training has left here
            for path in self.folder.glob("*_epoch_*"):  # hidden ones, of a killed write, too
                path.unlink()

    def _end(self, engine: Engine) -> None:
        self._trained += time.perf_counter() - self._began
        affordable = not self._drawn or self._spent + self._last <= self.share * self._trained
        if engine.state.epoch % self.every == 0 and affordable:
            self._draw(engine.state.epoch)

    def _finish(self, engine: Engine) -> None:
        if self._trained and self._drawn != engine.state.epoch:
            self._draw(engine.state.epoch)
        self._read.clear()

    def _draw(self, epoch: int) -> None:
        if get_rank() != 0:
            return
        began = time.perf_counter()
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng():
                write_json(self.folder / LABELS, {case["case"]: is_positive(case) for case in self.cases})
                for case in self.cases:
                    with atomic_path(self.folder / f"{case['case']}_epoch_{epoch:04d}.png") as path:
                        self.picture(case).save(path, format="PNG")
        except Exception as error:  # hours of training do not end for a picture
            logger.warning("no pictures of validation cases any more: %s: %s", type(error).__name__, error)
            self.cases = []
        self.network.train(was_training)
        self._last = time.perf_counter() - began
        self._spent += self._last
        self._drawn = epoch

    def picture(self, case: dict) -> Image.Image:
        """The montage of a case, as the network is."""
        if hasattr(self.inferer, "montage"):
            return self.inferer.montage(case, self.network)
        if case["case"] not in self._read:
            self._read[case["case"]] = read_unmasked(case, self.preprocessing)
        image: Any = self._read[case["case"]]
        output = self.inferer(image[None].to(next(self.network.parameters()).device), self.network)[0]
        if self.transform is not None:
            output = self.transform({"pred": output, "image": image})["pred"]
        organ = as_array(image[-1]) > 0.5
        return draw_montage(
            as_array(image[0]),
            evidence(output),
            None,
            affine=as_array(image.affine),
            slices=spread_over(organ, self.columns),
            height=self.height,
        )


def evidence(output: Tensor) -> np.ndarray:
    """`[H, W, D]` of `[2 N, H, W, D]`: by how much the strongest map exceeds that of the negative class."""
    maps = as_array(output[: len(output) // 2])
    return (maps[1:] - maps[:1]).max(axis=0)


def spread_over(organ: np.ndarray, count: int) -> list[int]:
    """Up to `count` slices of `[H, W, D]`, in equal steps over the middle nine tenths of those that hold the organ."""
    present = np.flatnonzero(organ.any(axis=(0, 1)))
    present = present if len(present) else np.arange(organ.shape[2])
    places = np.linspace(0.05, 0.95, count) * (len(present) - 1)
    return np.unique(present[places.round().astype(int)]).tolist()


def some_of_each(cases: Sequence[dict], count: int) -> list[dict]:
    """`count` cases in equal steps over the positive and over the negative ones, of which there are a third."""
    negative, positive = ([case for case in cases if is_positive(case) == kind] for kind in (False, True))
    few = min(len(negative), max(count // 3, count - len(positive)))
    return _spread(positive, count - few) + _spread(negative, few)


def is_positive(case: dict) -> bool:
    """Whether any label of a case is positive; one without labels is not."""
    cls = case.get("cls")
    return any(cls) if isinstance(cls, list) else bool(cls)


def _spread(cases: Sequence[dict], count: int) -> list[dict]:
    places = np.linspace(0, len(cases) - 1, min(max(count, 0), len(cases))).round().astype(int)
    return [cases[i] for i in places]
