"""`fit` from weights that there are, in place of a first training: of this project, or of a `fit` elsewhere."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import read_beside
from ..engines.weights import misplaced, unlike_training
from ..files import atomic_path, file_digest, read_json, write_json

logger = logging.getLogger(__name__)

# What the second training of a bundle has otherwise than its first, whatever the weights before it had.
OF_SECOND_TRAINING = ("map_width", "by_slice")


def settings_of_start(
    ckpt: Path, root: Path, settings: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of `fit` with those that the weights depend on: spacing, normalization, network …

    Warns where they learned from channels of other names than the data have.

    Args:
        ckpt: the weights, with their `.json` beside them.
        root: of the bundle.
        settings: as the user gave them.
        content: of the datalist.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: nothing beside them says how they were trained, or that another bundle was; they have other
            channels, the same in another order, or as many classes as the data have not; a setting contradicts them.
    """
    if not ckpt.is_file():
        raise FileNotFoundError(f"--start_ckpt: there is no {ckpt}")
    beside = read_beside(ckpt)
    trained = beside.get("trained", {})
    if "classes" not in trained:
        raise ValueError(f"--start_ckpt: {ckpt.with_suffix('.json')} does not say how {ckpt.name} was trained")
    of_training = read_json(root / "configs" / "train.json").keys()
    if foreign := sorted(trained.keys() - of_training - set(OF_SECOND_TRAINING)):
        raise ValueError(f"--start_ckpt: {ckpt} is not of {root.name}, which has no {', '.join(foreign)}")
    for key, name in (("classes", "classes"), ("modalities", "channels")):
        of_weights = trained.get(name, len(content[key]))
        count = of_weights if isinstance(of_weights, int) else len(of_weights)
        if count != len(content[key]):
            raise ValueError(f"--start_ckpt: {ckpt} has {count} {name}, the data {len(content[key])}: {content[key]}")
    _compare_channels(ckpt, (beside.get("seen") or {}).get("channels") or [], content["modalities"])
    keys = of_training - {"classes", *OF_SECOND_TRAINING}
    if contrary := unlike_training(ckpt, {key: settings[key] for key in settings.keys() & keys}):
        raise ValueError(f"--start_ckpt: {'; '.join(contrary)}; leave that out, or begin without these weights")
    return {**{key: value for key, value in trained.items() if key in keys}, **settings}


def _compare_channels(ckpt: Path, learned: Sequence[str], own: Sequence[str]) -> None:
    """Refuse channels in another order than weights learned from, warn of others."""
    if text := misplaced(own, learned):
        raise ValueError(f"--start_ckpt: {ckpt.name}: {text}")
    if [name.lower() for name in learned] != [name.lower() for name in own[: len(learned)]]:
        logger.warning("%s learned from %s, the data are %s", ckpt, ", ".join(learned), ", ".join(own))


def draws(ckpt: Path) -> bool:
    """Whether weights learned to draw masks, so that their maps have a natural threshold."""
    told = read_beside(ckpt).get("trained_on", {})
    return "teacher" in told or told.get("masks", "none") != "none"


def begin_with(ckpt: Path, place: Path) -> Path:
    """Copy weights, and what lies beside them but for what was chosen elsewhere, into a folder; once.

    Returns:
        The copy, `model.pt`.
    """
    copy = place / "model.pt"
    there = copy.is_file() and copy.with_suffix(".json").is_file()
    if not there or file_digest(copy) != file_digest(ckpt):
        place.mkdir(parents=True, exist_ok=True)
        (place / "calibrated.json").unlink(missing_ok=True)  # what was chosen lay beside a copy that is gone
        beside = {key: value for key, value in read_beside(ckpt).items() if not key.startswith("chosen")}
        write_json(copy.with_suffix(".json"), beside)
        with atomic_path(copy) as temporary:
            shutil.copyfile(ckpt, temporary)
    return copy
