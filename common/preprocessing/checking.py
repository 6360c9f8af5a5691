"""Each case against what its weights saw in training, which is kept beside them: `model.json` for `model.pt`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.distributed import barrier, one_rank_only
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from tqdm import tqdm

from ..checkpoint import add_beside, read_beside
from ..engines import running_config
from ..engines.weights import check_trained, misplaced, sees_native_pixels
from ..files import PathLike, json_text, write_json
from ..images import as_array, file_of, spacing_of
from .channels import compare_names
from .seen import Description, describe_case, summarize
from .strange import compare
from .supervision import Source, supervision_of
from .unlike import unlike_others
from .windows import OutsideWindow, outside_window

logger = logging.getLogger(__name__)

CASES = "cases_of_training.json"  # beside the weights of a training, for the day that it is resumed


def read_seen(
    ckpt: PathLike,
    *,
    check_range: bool = True,
    datalist: PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What weights saw in training, from the `.json` of the same name beside them.

    Args:
        ckpt: the weights.
        check_range: whether a case that certainly does not fit is an error; else a warning.
        datalist: file whose `modalities` are compared with the names of the channels in training.
        settings: what the weights depend on, as this config has it. It is held against their training where no run of
            MONAI leads here: a run has taken what they were trained with, but for what its command says, and a server
            takes all from its config.

    Returns:
        For `CheckSeend`: a description, see `common.preprocessing.strange`, `check_range`, and under `names` what
        is doubtful about the modalities; empty, with a line in the console, where the file does not exist or does
        not say.

    Raises:
        ValueError: the file is no JSON, the datalist has the channels in another order, or a server's config has other
            settings than the training.
    """
    content = read_beside(ckpt)
    names = [] if running_config()[0] else check_trained(ckpt, settings or {}, refuse=check_range)
    if "seen" not in content:
        path = Path(ckpt).with_suffix(".json")
        logger.warning("%s does not say what the weights saw in training: images are not compared with it", path)
        return {}
    seen = content["seen"] | {"native_pixels": sees_native_pixels(content.get("trained", {}))}
    modalities = _modalities(datalist or None)
    if modalities is not None and len(modalities) == len(seen["channels"]):
        errors, doubts = compare_names(modalities, seen["channels"])
        if errors and check_range:
            raise ValueError(f"{datalist}: {errors[0]}; --check_range false goes on")
        names += errors + doubts
    return {**seen, "check_range": check_range, "names": names}


class CheckSeend(MapTransform):
    """Compare a case with what the weights saw in training; in training, note what they see. Images stay as they are.

    Belongs after the organ mask and before intensities are scaled. What is unlike, but may be right, is added to the
    text under `warnings`.

    Args:
        keys: one image key, `[C, H, W, D]`, axial slices along the last axis.
        seen: of `read_seen`; empty: nothing is compared; None, in training: cases are described and kept for
            `SeenWriter`.
        window: `[low, high]` that a later transform scales to [0, 1]; None where the organ's own intensities scale.
        organ_key: the organ mask.

    Attributes:
        described: description of each case by its name, where `seen` is None.

    Raises:
        ValueError: the case certainly does not fit, e.g. Hounsfield units where the training had 0 to 255, its first
            channel is called as another one of the training, or, in training, the window; the message names the file.
    """

    only_looks = True  # features and caches of images do not depend on it

    def __init__(
        self,
        keys: KeysCollection,
        *,
        seen: Mapping[str, Any] | None,
        window: Sequence[float] | None = None,
        organ_key: str = "organ",
    ) -> None:
        super().__init__(keys)
        self.seen = seen
        self.window = window
        self.organ_key = organ_key
        self.described: dict[str, Description] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            if self.seen is None:
                described = self.describe(data, key)
                if text := outside_window(described, self.window):
                    raise OutsideWindow(
                        f"{file_of(data[key])}: {text}. --skip_outside_window true leaves such cases out"
                    )
                self.described[str(data.get("case"))] = described
            elif self.seen:
                self._compare(data, key)
        return data

    def describe(self, data: Mapping[Hashable, Any], key: Hashable | None = None) -> Description:
        """Of a case that has its organ mask."""
        image = data[self.keys[0] if key is None else key]
        organ = as_array(data[self.organ_key])[0] > 0.5
        spacing = spacing_of(image)
        native = _axial_spacing(image.meta.get("original_affine")) if hasattr(image, "meta") else None
        return describe_case(
            as_array(image), organ, spacing=spacing, native_spacing=native or spacing, window=self.window
        )

    def _compare(self, data: dict[Hashable, Any], key: Hashable) -> None:
        assert self.seen is not None
        errors, warnings = compare(self.describe(data, key), dict(self.seen), window=self.window)
        # An image knows the file of its first channel alone; patterns were held against all as the run began.
        if text := misplaced([file_of(data[key])], self.seen["channels"]):
            errors = [text, *errors]
        if errors and self.seen.get("check_range", True):
            raise ValueError(f"{file_of(data[key])}: {'; '.join(errors)}; --check_range false goes on")
        said = [str(data["warnings"])] if data.get("warnings") else []
        data["warnings"] = "; ".join([*said, *self.seen.get("names", []), *errors, *warnings])


def _axial_spacing(affine: Any) -> list[float] | None:
    """Spacing to the left, to the back and upwards of an image with its axes in any order."""
    if affine is None:
        return None
    affine = np.asarray(affine)
    axes = np.argsort(nib.io_orientation(affine)[:, 0])
    return [float(s) for s in nib.affines.voxel_sizes(affine)[axes]]


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
        patients = [_patient(case) for case in cases]
        seen = summarize(described, patients, channels=_modalities(self.datalist), window=check.window)
        add_beside(self.path, seen=seen)

    def _supervision(self, unit: str) -> dict[str, Any]:
        """What the training is told; empty where the classes are not known."""
        if "classes" not in self.trained:
            return {}
        return supervision_of(
            self.data,
            classes=self.trained["classes"],
            validation=_listed(self.datalist).get("validation", []),
            learns_from=self.learns_from,
            teacher_ckpt=self.teacher_ckpt,
            unit=unit,
        )

    def _some(self) -> list[dict]:
        """All cases of at most `most` patients."""
        patients = list(dict.fromkeys(map(_patient, self.data)))
        drawn = np.linspace(0, len(patients) - 1, min(self.most, len(patients))).round().astype(int)
        kept = {patients[i] for i in drawn}
        return [case for case in self.data if _patient(case) in kept]


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


def _patient(case: dict) -> str:
    return str(case.get("patient", case["case"]))


def _read(case: dict, transform: Callable) -> Any:
    """A case up to its organ mask; ground truth is not even opened."""
    return transform({key: value for key, value in case.items() if key != "label"})


def _modalities(datalist: PathLike | None) -> list[str] | None:
    return _listed(datalist).get("modalities")


def _listed(datalist: PathLike | None) -> dict[str, Any]:
    """What the file of a datalist holds; nothing where there is none."""
    if datalist is None or not Path(datalist).is_file():
        return {}
    return json.loads(Path(datalist).read_text(encoding="utf-8"))
