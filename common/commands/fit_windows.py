"""`fit --skip_outside_window true`: a datalist without the cases of which the intensity window shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..data import SECTIONS, load_datalist, write_datalist
from ..data.matches import some
from ..files import read_json
from ..preprocessing import within_window
from .fit_minutes import cases_of
from .fit_runs import VOLUMES
from .own_bundle import with_settings
from .run import config_files

KEY = "skip_outside_window"
CHECK = "common.preprocessing.CheckSeend"


def shown_datalist(
    root: Path, listed: Path, target: Path, *, dataset_dir: str, over: Sequence[str], settings: Mapping[str, Any]
) -> Path:
    """Write a datalist without the cases, of all sections, of which the window of a training shows nothing.

    What was written before is taken as it is, so that an interrupted `fit` reads nothing twice.

    Args:
        root: of the bundle.
        listed: the datalist.
        target: the new one.
        dataset_dir: folder of the data.
        over: configs laid over those of the training.
        settings: top-level keys.

    Returns:
        `target`; `listed` where the bundle has no window.

    Raises:
        ValueError: nothing is left of a section.

    Example:
        With cases of -1000 to 400 and the window [0, 255] the new datalist lacks them, and they are named.
    """
    if not target.is_file() and not _write_shown(root, listed, target, dataset_dir, over, settings):
        return listed
    kept = {case["case"] for case in cases_of(read_json(target))}
    if left := [case["case"] for case in cases_of(read_json(listed)) if case["case"] not in kept]:
        print(f"{target}: {len(left)} case(s) left out, of which the window shows nothing: {some(left)}")
    return target


def _write_shown(
    root: Path, listed: Path, target: Path, dataset_dir: str, over: Sequence[str], settings: Mapping[str, Any]
) -> bool:
    """Write the datalist, unless the bundle has no window."""
    files = config_files(root, [*VOLUMES.train, *over])
    config = with_settings(ConfigParser.load_config_files([str(path) for path in files]), settings)
    transforms = config["preprocessing"]["transforms"]
    places = [i for i, one in enumerate(transforms) if one["_target_"] == CHECK]
    if not places or transforms[places[0]].get("window") is None:
        return False
    config["preprocessing"] = {**config["preprocessing"], "transforms": transforms[: places[0] + 1]}  # no scripts
    preprocessing = ConfigParser(config=config).get_parsed_content("preprocessing")
    content = read_json(listed)
    for section in SECTIONS:
        if content.get(section):
            found = within_window(load_datalist(listed, section, dataset_dir=dataset_dir), preprocessing, skip=True)
            names = {case["case"] for case in found}
            content[section] = [case for case in content[section] if case["case"] in names]
    write_datalist(target, content)
    return True
