"""The runs that `fit` is made of, and which configs they take for volumes and for whole slides."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Case, labels_slices
from ..files import file_digest, read_json, write
from .console import step
from .fit_start import begin_with, draws
from .run import for_configs, names, run_bundle

# A second training on masks counts unless the AUC of validation falls by more: with some ten slides less is noise.
WORSE = 0.05


@dataclass(frozen=True)
class Recipe:
    """Names of a bundle's files for one kind of data.

    Attributes:
        unit: what a case is.
        train, refine: configs of a training, and what lies over them in one on masks of the training before.
        inference, evaluate, calibrate: configs; the last two lie over the first.
        weights: in `models/`, where `inference` looks for them.
        scores: what `evaluate` writes from labels.
        compared: a second training counts only where its AUC is not worse.
    """

    unit: str = "volume"
    train: tuple[str, ...] = ("train.json",)
    refine: tuple[str, ...] = ("train_refine.json",)
    inference: str = "inference.json"
    evaluate: str = "evaluate.json"
    calibrate: str = "calibrate_labels.json"
    weights: str = "model.pt"
    scores: str = "labels.json"
    compared: bool = False


DRAW = "train_draw.json"
VOLUMES = Recipe()
SLIDES = Recipe(
    unit="slide",
    train=("train.json", "wsi.json"),
    refine=("train_refine.json", "wsi_refine.json"),
    inference="wsi_inference.json",
    evaluate="wsi_evaluate.json",
    calibrate="wsi_calibrate.json",
    weights="slides.pt",
    scores="summary.json",
    compared=True,
)


def merged(own: Path, configs: tuple[str, ...]) -> dict[str, Any]:
    """Top-level keys of configs that lie over each other; empty where the bundle lacks one of them."""
    if not _has(own, configs):
        return {}
    return {key: value for name in configs for key, value in read_json(own / "configs" / name).items()}


def _has(own: Path, configs: tuple[str, ...]) -> bool:
    return all((own / "configs" / name).is_file() for name in configs)


def has_refine(own: Path, recipe: Recipe) -> bool:
    """Whether the bundle has a training on masks of the training before."""
    return _has(own, recipe.refine)


def refining(own: Path, recipe: Recipe, **over: Any) -> tuple[str, ...]:
    """The configs of that training; one finding in volumes is drawn by a network of its own where a bundle has one.

    That sees a frame of some pixels, so their size must be known: volumes are resampled.

    Args:
        own: the bundle.
        recipe: of the kind of data.
        over: settings that lie over those of the training.
    """
    settings = merged(own, recipe.train) | over
    one_finding, resampled = len(settings.get("classes", [])) == 2, settings.get("spacing", [-1.0])[0] > 0
    draws = recipe.unit == VOLUMES.unit and (own / "configs" / DRAW).is_file() and one_finding and resampled
    return (*recipe.refine, DRAW) if draws and DRAW not in recipe.refine else recipe.refine


def supervised(own: Path, recipe: Recipe, **over: Any) -> tuple[str, ...]:
    """The configs of the training with true masks of the network that `refining` trains with its own; () without one.

    Args:
        own, recipe, over: see `refining`.
    """
    draws = DRAW in refining(own, recipe, **over)
    configs = (DRAW, "draw_supervised.json") if draws else ("train_supervised.json",)
    return configs if _has(own, configs) else ()


def natural_threshold(own: Path, recipe: Recipe, choice: str) -> dict[str, Any]:
    """The threshold that maps have by themselves once they were trained against masks, for a config that takes it."""
    takes = "natural_threshold" in merged(own, (choice,))
    return {"natural_threshold": merged(own, recipe.refine).get("natural_threshold")} if takes else {}


def usual_rounds(training: Sequence[Case], recipe: Recipe) -> int:
    """Trainings on masks of the training before: one of slices, halves of scans, parts or slides; none of volumes.

    Args:
        training: cases of that section.
        recipe: of the kind of data.
    """
    return int(recipe is SLIDES or any(labels_slices(case) or "half" in case or "side" in case for case in training))


def steps(own: Path, rounds: int, recipe: Recipe = VOLUMES) -> int:
    """How many runs there will be: two a training, or three where its maps are made before, and two at the end."""
    if not has_refine(own, recipe):
        return 4
    return 4 + rounds * (3 if "pseudo_dir" in merged(own, recipe.refine) else 2)


def learn(
    own: Path,
    home: Path,
    rounds: int,
    section: str,
    shared: Mapping[str, Any],
    recipe: Recipe,
    *,
    start: Path | None = None,
) -> Path:
    """Train, choose from labels, and that again on the masks of the training before; weights of the last that counts.

    Args:
        own: the bundle.
        home: gets `training`, `round1` ….
        rounds: of training on masks.
        section: whose labels choose.
        shared: settings of all runs.
        recipe: whose configs are run.
        start: weights in place of the first training, with which the next one begins.
    """

    def choose(place: Path, *, drawn: bool) -> None:
        title = f"gate and thresholds from the labels of {section.replace('+', ' and ')}"
        more = natural_threshold(own, recipe, recipe.calibrate) if drawn else {}
        settings = {**shared, "ckpt": str(place / "model.pt"), "section": section, **more}
        once(place / "calibrated.json", title, own, recipe, recipe.calibrate, **settings)

    best = home / ("start" if start else "training")
    if start:
        begin_with(start, best)
    else:
        _train(own, best, None, "training", shared, recipe)
    choose(best, drawn=start is not None and draws(start))
    if rounds and not has_refine(own, recipe):
        print(f"{own.name} has no second training")
        return best / "model.pt"
    for number in range(1, rounds + 1):
        place, teacher = home / f"round{number}", best / "model.pt"
        try:
            _train(own, place, teacher, f"round {number}", shared, recipe, goes_on=start is not None)
            choose(place, drawn=True)
        except subprocess.CalledProcessError:
            print(f"round {number} failed, see above; the training before it counts")
            break
        if recipe.compared:
            before, after = best_auc(best), best_auc(place)
            print(f"AUC of validation: {before:.3f} before round {number}, {after:.3f} after it")
            if after < before - WORSE:
                print("the training before it counts")
                break
        best = place
    return best / "model.pt"


def best_auc(place: Path) -> float:
    """Of a training, the validation AUC of the epoch whose weights were kept."""
    with open(place / "training_log.csv", newline="", encoding="utf-8") as file:
        return max(float(row["auc"]) for row in csv.DictReader(file) if row.get("auc"))


def _train(
    own: Path,
    place: Path,
    teacher: Path | None,
    title: str,
    shared: Mapping[str, Any],
    recipe: Recipe,
    *,
    goes_on: bool = False,
) -> None:
    """Train into a folder, on the masks of a teacher if there is one; once.

    With `goes_on` it begins with the teacher's weights; where configs have no key for that, it does so anyway.
    """
    finished = place / "finished"
    if finished.is_file():
        check_kept(place, "model.pt", "model.json")
        step(f"{title}: done before")
        return
    configs, more = [*recipe.train], {}
    if teacher:
        configs += refining(own, recipe)
        more["teacher_ckpt"] = str(teacher)
        if goes_on and "start_ckpt" in merged(own, tuple(configs)):
            more["start_ckpt"] = str(teacher)
        if "pseudo_dir" in merged(own, recipe.refine):  # its maps are made before
            more["pseudo_dir"] = str(place / "maps")
            maps = {**shared, "section": "training", "ckpt": str(teacher)}
            once(place / "maps" / "predictions.csv", "maps of the training section", own, recipe, **maps)
    step(title)
    run_bundle(own, configs, output_dir=str(place), **for_configs(own, configs, shared), **more)
    (place / "calibrated.json").unlink(missing_ok=True)  # of weights that were lost; what was chosen lay beside them
    say_trained(place)


def say_trained(place: Path) -> None:
    """Note that the training of a folder has ended, and with which weights."""
    write(place / "finished", file_digest(place / "model.pt"))


def check_kept(place: Path, *files: str) -> None:
    """Refuse the folder of a finished training that has lost what it made, or holds the weights of another.

    Raises:
        FileNotFoundError: naming the file, and how to train anew.
        ValueError: likewise, of other weights: what had taught them is unknown, test patients perhaps.
    """
    for file in (place / name for name in files):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is gone, though its training is finished: put it back, or remove `finished` and "
                "`checkpoint.pt` there to train anew"
            )
    told = (place / "finished").read_text(encoding="utf-8")  # empty: of an earlier version, which noted no weights
    if told and told != file_digest(place / "model.pt"):
        raise ValueError(
            f"{place / 'model.pt'} is not what the training there has made: put that back, or remove `finished` and "
            "`checkpoint.pt` there to train anew"
        )


def once(
    result: Path,
    title: str,
    own: Path,
    recipe: Recipe,
    over: str | Sequence[str] = "",
    *,
    made_from: str = "",
    **settings: Any,
) -> bool:
    """Run inference, with configs laid over it, into the folder of `result`, unless that was done.

    Done is what a whole run made with these very weights, and from the same data: after an interrupted second training
    that is taken up, the scores and masks of the first one are made anew.

    Args:
        result: the file that the run leaves at its end.
        title: for the console.
        own: the bundle.
        recipe: whose inference runs.
        over: configs laid over it.
        made_from: tells the data from others that may come to lie in their place.
        settings: of the run.

    Returns:
        Whether it ran.
    """
    made_from = file_digest(settings.get("ckpt", own / "models" / recipe.weights)) + made_from
    if done_before(result, made_from):
        step(f"{title}: done before")
        return False
    step(title)
    run_bundle(own, [recipe.inference, *names(over)], output_dir=str(result.parent), **settings)
    say_done(result, made_from)
    return True


def done_before(result: Path, made_from: str) -> bool:
    """Whether a run that came to its end has left this file, made from what `say_done` was told then."""
    stamp = _stamp(result)
    return result.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from


def say_done(result: Path, made_from: str) -> None:
    """Note, when a run has ended, what its result was made from."""
    write(_stamp(result), made_from)


def _stamp(result: Path) -> Path:
    return result.with_name(f".{result.name}.finished")
