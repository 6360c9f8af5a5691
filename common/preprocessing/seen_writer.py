"""What a training's images look like and what it is told, kept beside its weights: `model.json` for `model.pt`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.distributed import barrier, one_rank_only
from ignite.engine import Engine, Events
from monai.transforms import Compose
from tqdm import tqdm

from ..checkpoint import add_beside, read_beside
from ..data import patient_of
from ..files import PathLike, json_text, write_json
from .checking import CheckSeend, listed, listed_modalities
from .seen import summarize
from .supervision import Source, supervision_of
from .unlike import unlike_others

logger = logging.getLogger(__name__)

CASES = "cases_of_training.json"  # beside the weights of a training, for the day that it is resumed


class SeenWriter:
    """Handler: write, before the first epoch, what the training's images look like, beside the weights to come.

    A training that has nothing left to do leaves the file as it is, with what was chosen for the weights.

    Cases that the preprocessing has already described as they were read are not read again; of those that come from a
    cache, up to `most` patients are.

    Args:
        path: of the file, e.g. `model.json` for `model.pt`; a training forgets what was `chosen` for the weights that
            it replaces.
        data: the training cases.
        preprocessing: of the training.
        datalist: file whose `modalities` name the channels.
        trained: keys of the config that the weights will depend on, with their values; `common.engines.check_settings`
            gives them back to a run that uses the weights.
        learns_from, teacher_ckpt: see `supervision_of`, whose result is kept as `trained_on`.
        most: so many patients, evenly drawn, are described.
        progress: show a progress bar while reading.

    Raises:
        ValueError: (as a resumed training goes on) the weights depend on other values than those of its beginning.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        data: Sequence[dict],
        preprocessing: Any,
        datalist: PathLike | None = None,
        trained: Mapping[str, Any] | None = None,
        learns_from: Source = "labels",
        teacher_ckpt: PathLike | Sequence[PathLike] | None = None,
        most: int = 64,
        progress: bool = True,
    ) -> None:
        self.path = Path(path)
        self.data = list(data)
        self.preprocessing = preprocessing
        self.datalist = datalist
        self.trained = dict(trained or {})
        self.learns_from: Source = learns_from
        self.teacher_ckpt = teacher_ckpt
        self.most = most
        self.progress = progress
        self._begun = False

    def attach(self, engine: Engine) -> None:
        # Not as the engine starts: a checkpoint may end it there, and then the file has to stay as it is.
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)

    def _start(self, engine: Engine) -> None:
        self._begun = False

    def _begin(self, engine: Engine) -> None:
        if self._begun:
            return
        changed = self.changed()
        if changed and engine.state.epoch > 1:
            raise ValueError(
                f"the training in {self.path.parent} began with other settings: {'; '.join(changed)}. Give the "
                "same, or another output_dir"
            )
        self._begun = True
        barrier()  # all have read the file
        self._say_other_cases(resumed=engine.state.epoch > 1)
        self.write(engine)

    def changed(self) -> list[str]:
        """What the weights depend on that lies beside them with another value, as `key was old, now new`."""
        before, now = read_beside(self.path).get("trained", {}), json.loads(json_text(self.trained))
        return [f"{key} was {before[key]}, now {now[key]}" for key in now if before.get(key, now[key]) != now[key]]

    @one_rank_only()
    def _say_other_cases(self, *, resumed: bool) -> None:
        """Warn where a resumed training sees other cases than before; to go on with more of them is a reason for it."""
        path = self.path.with_name(CASES)
        now = json.loads(json_text({str(case["case"]): case.get("cls") for case in self.data}))
        if resumed and path.is_file():
            said = changed_cases(json.loads(path.read_text(encoding="utf-8")), now)
            if said:
                logger.warning("the training in %s goes on with other cases than it had: %s", path.parent, said)
        write_json(path, now)

    @one_rank_only()
    def write(self, engine: Engine | None = None) -> None:
        """Describe the cases and write the file; nothing where the preprocessing has no `CheckSeend` (slides)."""
        before = {} if engine else read_beside(self.path)
        forgotten: dict[str, Any] = {"chosen": {}, "chosen_from": {}} if engine else {}  # weights are replaced
        transforms: Any = getattr(self.preprocessing, "transforms", ())
        places = [i for i, transform in enumerate(transforms) if isinstance(transform, CheckSeend)]
        told = before.get("trained_on") or self._supervision("volumes" if places else "slides")
        add_beside(self.path, trained=self.trained, trained_on=told, **forgotten)
        if not places:
            return
        check, until = transforms[places[0]], Compose(transforms[: places[0]])
        cases = self._some()
        bar = tqdm(cases, desc="describing", unit="case", leave=False, disable=not self.progress)
        described = [check.described.get(case["case"]) or check.describe(_read(case, until)) for case in bar]
        read = check.described | dict(zip((str(case["case"]) for case in cases), described, strict=True))
        for text in unlike_others(read, window=check.window):
            logger.warning("%s", text)
        patients = [patient_of(case) for case in cases]
        seen = summarize(described, patients, channels=listed_modalities(self.datalist), window=check.window)
        add_beside(self.path, seen=seen)

    def _supervision(self, unit: str) -> dict[str, Any]:
        """What the training is told; empty where the classes are not known."""
        if "classes" not in self.trained:
            return {}
        return supervision_of(
            self.data,
            classes=self.trained["classes"],
            validation=listed(self.datalist).get("validation", []),
            learns_from=self.learns_from,
            teacher_ckpt=self.teacher_ckpt,
            unit=unit,
        )

    def _some(self) -> list[dict]:
        """All cases of at most `most` patients."""
        patients = list(dict.fromkeys(map(patient_of, self.data)))
        drawn = np.linspace(0, len(patients) - 1, min(self.most, len(patients))).round().astype(int)
        kept = {patients[i] for i in drawn}
        return [case for case in self.data if patient_of(case) in kept]


def changed_cases(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two lists of cases, with their labels by name, in words; empty where nothing does."""
    parts = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "with another label": [name for name in now if name in before and before[name] != now[name]],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for what, names in parts.items()
        if names
    )


def _read(case: dict, transform: Callable) -> Any:
    """A case up to its organ mask; ground truth is not even opened."""
    return transform({key: value for key, value in case.items() if key != "label"})
