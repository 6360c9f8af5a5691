"""What a `fit` is asked for: checked before hours of training, and remembered in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..data import labels_slices
from ..data.splits import tells_classes_apart
from ..engines.settings import plain, tops
from ..files import alone, file_digest, read_json, write_json
from .fit_checks import DATALIST, IMAGES, MASKS, check_data, check_findings, data_digests, recipe_of
from .fit_runs import SLIDES, VOLUMES, Recipe
from .fit_start import settings_of_start
from .fit_windows import KEY, shown_datalist
from .own_bundle import settings_of, slide_settings
from .run import bundle_root, names

CHOSEN = "calibrated.json"
MADE = ("checkpoint.pt", "model.pt", "finished", CHOSEN)  # in the folder of a training, each from data and settings
WORDS = {DATALIST: "datalist"} | {
    key: f"set of {name} (the same names, other files)" for key, name in ((IMAGES, "images"), (MASKS, "masks"))
}


@dataclass(frozen=True)
class Request:
    """Data and settings that go together, and a bundle that can learn from them.

    Attributes:
        root: of the bundle.
        dataset_dir: folder of the data.
        home: gets all files.
        listed: the datalist.
        content: of the datalist.
        recipe: the configs that its kind of data takes.
        configs: those laid over them.
        settings: top-level keys, those that the weights of `start` depend on among them.
        start: weights in place of a first training.
        told: what the folder is for, see `check_same`; without what the data's files hold.
    """

    root: Path
    dataset_dir: str
    home: Path
    listed: Path
    content: dict[str, Any]
    recipe: Recipe
    configs: list[str]
    settings: dict[str, Any]
    start: Path | None
    told: dict[str, Any]

    @property
    def apart(self) -> bool:
        """Whether no label is negative, so that classes are told from one another."""
        return tells_classes_apart(self.content)

    @property
    def of_slices(self) -> bool:
        """Whether slices have labels of their own."""
        return self.recipe is VOLUMES and any(labels_slices(case) for case in self.content["training"])

    @property
    def begun(self) -> bool:
        """Whether an epoch has ended in the folder, or thresholds were chosen for the weights to begin with."""
        trainings = (self.home / "training", *self.home.glob("round[0-9]*"))
        # Weights to begin with are the user's own until thresholds are chosen for them.
        made = [self.home / "start" / CHOSEN, *(place / name for place in trainings for name in MADE)]
        return any(file.is_file() for file in made)

    def merged_settings(self) -> dict[str, Any]:
        """Settings of the data, below those that were given."""
        return settings_of(self.listed, read_json(self.root / "configs" / "train.json")) | self.settings


def requested(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    datalist: str | None,
    configs: str | Sequence[str],
    rounds: int | None,
    start_ckpt: str | None,
    settings: dict[str, Any],
) -> Request:
    """Check what `fit` is asked for, see there; nothing is written.

    Raises:
        FileNotFoundError: no datalist, an image that it names, or the weights to begin with.
        ValueError: the data cannot be learned from, a setting is unknown, or one contradicts another.
    """
    listed = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    root = bundle_root(bundle)
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} does not exist: write it by `python -m common prepare table labels.csv`")
    content = read_json(listed)
    check_data(listed, content, dataset_dir, root)
    settings = plain(settings)
    recipe = recipe_of(root, content, dataset_dir, flat="backend" in settings)
    if isinstance(settings.get("classes"), str | tuple):
        settings["classes"] = names(settings["classes"])
    check_settings(root, settings, recipe)
    check_findings(root, settings.get("classes", content["classes"]), recipe, names(configs))
    apart = tells_classes_apart(content)
    if rounds is not None and rounds < 0:
        raise ValueError(f"--rounds: expected 0 or more, got {rounds}")
    if rounds and apart:
        raise ValueError(f"--rounds: a second training learns where nothing is from negatives, and {listed} has none")
    told: dict[str, Any] = {"bundle": root.name, "configs": names(configs), "settings": settings, "rounds": rounds}
    start = Path(start_ckpt).resolve() if start_ckpt else None
    if start:
        if recipe is SLIDES or apart:
            raise ValueError("--start_ckpt: of volumes with negatives alone")
        settings = settings_of_start(start, root, settings, content)
        told["start_ckpt"] = file_digest(start)
    home = Path(output_dir).resolve()
    return Request(root, dataset_dir, home, listed, content, recipe, names(configs), settings, start, told)


def remember(asked: Request) -> str:
    """Keep in the folder what it is for; one that is not `begun` may become another's.

    Returns:
        A digest of the masks, which score: these alone may change.

    Raises:
        ValueError: it is begun with other data or settings.
        RuntimeError: another `fit` is at work there.
    """
    digests = data_digests(asked.listed, asked.dataset_dir)
    masks = digests.pop(MASKS)
    try:
        check_same(asked.home, {**digests, **asked.told}, newer=(IMAGES,))
    except ValueError:
        if asked.begun:
            raise
        forget(asked.home)
        check_same(asked.home, {**digests, **asked.told})
    return masks


def with_shown_cases(asked: Request) -> Request:
    """With `skip_outside_window` a request without the cases of which the window shows nothing.

    Raises:
        ValueError: those that are left cannot be learned from.
    """
    settings = dict(asked.settings)
    asked_for = settings.pop(KEY, False)
    asked = replace(asked, settings=settings)
    if not asked_for or asked.recipe is not VOLUMES:
        return asked
    options: dict[str, Any] = {"over": asked.configs, "settings": asked.merged_settings()}
    target = asked.home / "datalist.json"
    listed = shown_datalist(asked.root, asked.listed, target, dataset_dir=asked.dataset_dir, **options)
    content = read_json(listed)
    check_data(listed, content, asked.dataset_dir, asked.root)
    return replace(asked, listed=listed, content=content)


def check_settings(root: Path, settings: Mapping[str, Any], recipe: Recipe = VOLUMES) -> None:
    """Refuse settings that no config of the bundle has, and those that are chosen here.

    Raises:
        ValueError: naming the nearest key.
    """
    configs = [read_json(path) for path in (root / "configs").glob("[!.]*.json") if path.name != "metadata.json"]
    of_any = set().union(*map(tops, configs))
    of_volumes = set().union(*(tops(config) for config in configs if "mpp" not in config))
    known = of_any if recipe is VOLUMES else slide_settings(root) - {KEY}
    chosen = {key for config in configs for key, value in config.items() if "@chosen[" in str(value)}
    for key in sorted(tops(settings)):
        if recipe is VOLUMES and key in of_any - of_volumes:
            raise ValueError(
                f"--{key} is of whole slides, and these images are none; a TIFF without levels is one with "
                "--backend tifffile"
            )
        if key not in known:
            kind = " for slides" if recipe is SLIDES else ""
            near = [f"; did you mean {one}?" for one in get_close_matches(key, known, n=1)]
            raise ValueError(f"--{key}: no config of {root.name} has it{kind}{''.join(near)}")
        if key in chosen:
            raise ValueError(f"--{key} is chosen from labels here; give it to the made bundle's {recipe.inference}")


def forget(home: Path) -> None:
    """Let another `fit` have a folder in which none has come to the end of an epoch: what stopped it may be mended.

    Raises:
        RuntimeError: one is at work there.
    """
    with alone(home, "fit"):
        for name in ("fit.json", "datalist.json"):  # the second without cases of which a window shows nothing
            (home / name).unlink(missing_ok=True)


def check_same(home: Path, told: Mapping[str, Any], *, name: str = "fit.json", newer: Sequence[str] = ()) -> None:
    """Remember, in a file of the folder, what it is for; a later command that says otherwise is refused.

    What is finished in the folder stays, so that it would be of one kind in part and of another in part.

    Args:
        home: the folder.
        told: what it is for.
        name: of the file.
        newer: keys that earlier versions did not remember: such a folder is taken as it is.

    Raises:
        ValueError: naming what differs.
    """
    path = home / name
    before = read_json(path) if path.is_file() else dict(told)
    before = {key: told[key] for key in newer if key in told} | before
    differing = [WORDS.get(key, key) for key in {**before, **told} if before.get(key) != told.get(key)]
    if differing:
        raise ValueError(f"{home} holds what was made with another {', '.join(differing)}; choose another folder")
    write_json(path, told)
