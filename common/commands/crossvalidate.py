"""Cross-validation by patient in one command: `python -m common crossvalidate BUNDLE DATASET_DIR OUTPUT_DIR`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import read_beside
from ..data import SECTIONS, write_datalist
from ..files import PathLike, file_digest, json_text, read_json, write_csv, write_json
from .console import logged, step
from .fit_checks import IMAGES, MASKS, data_digests
from .fit_request import check_same
from .fit_runs import Recipe, check_kept, done_before, merged, natural_threshold, refining, say_done, say_trained
from .folds import scans_of_fold, write_folds
from .run import bundle_root, config_files, for_configs, names, run_bundle

# Settings that change where and how fast a run goes, and not what it finds.
WITHOUT_CONSEQUENCE = ("dataset_dir", "device", "num_workers", "progress")
# Scores of an evaluation beside those of its cases: of volumes, and (`paper_scores.json`) of slices of several classes.
FURTHER = ("volumes", "class_scores")
NOTE, BEGUN = "made_from.json", ("finished", "checkpoint.pt")  # files in the folder of a training


def crossvalidate(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    datalist: str | None = None,
    scans: str | None = None,
    keep: str | None = None,
    folds: int = 3,
    seed: int = 0,
    train: str | Sequence[str] = "train.json",
    choose: str | Sequence[str] | None = None,
    evaluate: str | Sequence[str] = "inference.json,evaluate.json",
    rounds: int = 0,
    refine: str | Sequence[str] = "train_refine.json",
    verbose: bool = False,
    **overrides: Any,
) -> None:
    """Train, choose thresholds and score once per fold; every patient is a test patient once.

    What is finished is skipped, so an interrupted run goes on where it was; what was chosen or scored with other
    weights, configs, settings, cases, images or masks is made anew, and a training with others (masks only where it
    learns from these), or in whose folder other weights lie than it made, is refused. Written to `output_dir`:
    `fold<k>/{training,<choose>,evaluation}`, `metrics.csv` (every case with its fold) and `crossvalidation.json` (mean
    and standard deviation over folds of every number of the folds' `summary.json`, and of their `volumes.json` and
    `class_scores.json` where there are any).

    With `rounds`, each fold's network is the teacher of a next one, which learns from its pseudo-masks as in `fit`;
    thresholds are chosen anew, and the last network is scored. What belongs to them is in `fold<k>/round<n>`.

    Where training used parts of scans (half-lungs, stacks of slices), `scans` lists the whole ones: thresholds are
    chosen and masks scored on these, and `fold<k>/parts` holds the scores of the parts, their AUC among them.

    With `keep`, one section of the datalist is dealt into no fold: each fold's network is scored on its own test part
    and, in `fold<k>/kept`, on that section, whose cases go to `kept_metrics.csv`. So INSIGHT's protocol for MosMed:
    five folds of the volumes without masks for classification, the 50 with masks for Dice. Test cases without masks
    are scored by their labels alone. A test section that `prepare --masked_section test` made is kept unasked.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the data.
        output_dir: gets all files.
        datalist: as `prepare` writes it, whose sections are dissolved; by default `datalist.json` in `dataset_dir`.
        scans: datalist of whole scans of the same patients; paths relative to `dataset_dir`, too.
        keep: `test`, say: the section that is not dissolved; not together with `scans`. An empty text dissolves all.
        folds: number of folds.
        seed: of the folds.
        train: config files of the training, later ones override earlier ones.
        choose: config files, each laid over `evaluate` in turn, that write `calibrated.json`, a config for all that
            follows; empty for none; by default `calibrate.json`, and `calibrate_labels.json` unless every case of the
            folds has a mask.
        evaluate: config files of the evaluation.
        rounds: of training on pseudo-masks after the first training; 0: none.
        refine: config files laid over `train` there (with `train_draw.json` where `fit` takes it); `teacher_ckpt` is
            the teacher's weights, beside which lies what was chosen for it.
        verbose: show on the console what otherwise goes to `log.txt` alone.
        overrides: top-level keys, e.g. `max_epochs`, each for all runs whose configs have it.

    Example:
        `python -m common crossvalidate gp_unet_brats DIR OUT --folds 4 --max_epochs 10`
    """
    if keep and scans:
        raise ValueError("keep and scans do not go together: list the kept scans in a datalist without parts")
    home = Path(output_dir).resolve()
    source = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    data = _data([source, *([scans] if scans else [])], dataset_dir)
    if keep is None and not scans and read_json(source).get("masked_section") == "test":
        keep = "test"
        print("the section 'test' holds all masks and is kept, as by --keep test; --keep '' deals it into folds, too")
    lists = _dealt(source, home, count=folds, seed=seed, keep=keep or None)
    if choose is None:
        choose = "calibrate.json" if _all_have_masks(scans or source, but=keep) else "calibrate_labels.json"
    whole = [scans_of_fold(scans, fold) for fold in lists] if scans else lists
    train, choose, evaluate, refine = (names(x) for x in (train, choose, evaluate, refine))
    if rounds and not choose:
        raise ValueError("--rounds: pseudo-masks are cut at what --choose chooses for the teacher, and it is empty")
    recipe = Recipe(train=tuple(train), refine=tuple(refine))
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), **overrides}
    protocol = _Protocol(bundle, recipe, choose, evaluate, rounds, data, shared)
    summaries: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    kept_rows: list[dict[str, Any]] = []
    with logged(home / "log.txt", verbose=verbose):
        for k, (part_list, fold_list) in enumerate(zip(lists, whole, strict=True)):
            network = protocol.learn(home / f"fold{k}", f"fold {k}", part_list, fold_list)
            title = f"fold {k}: evaluation"
            summaries.append(protocol.score(network, "evaluation", title, fold_list))
            rows += _cases_of(network.place / "evaluation", k)
            if scans:
                summaries[-1]["parts"] = protocol.score(network, "parts", f"{title} of the parts", part_list)
            if keep:
                kept = _with_test(source, keep, fold_list)
                summaries[-1]["kept"] = protocol.score(network, "kept", f"{title} of the kept section", kept)
                kept_rows += _cases_of(network.place / "kept", k)
    for name, found in (("metrics.csv", rows), ("kept_metrics.csv", kept_rows)):
        if found:
            write_csv(home / name, found)
    scores = over_folds(summaries)
    write_json(home / "crossvalidation.json", scores)
    for name, score in scores.items():
        if name.endswith((".mean", ".auc", ".miou", ".paper_dsc")):
            print(f"{name:44} {score['mean']:.4f} ± {score['std']:.4f}")


class _Network(NamedTuple):
    """The last network of a fold: the folder of its training, its weights, configs with what was chosen for it."""

    place: Path
    ckpt: Path
    chosen: list[str]


@dataclass(frozen=True)
class _Protocol:
    """How the network of each fold is trained, its thresholds are chosen, and it is scored.

    Attributes:
        recipe: configs of the first training, and those laid over them in a training on pseudo-masks.
        choose: configs that write `calibrated.json`.
        evaluate: configs of the evaluation, over which those of `choose` lie.
        rounds: of training on pseudo-masks.
        data: of `_data`.
        shared: settings of all runs.
    """

    bundle: str
    recipe: Recipe
    choose: list[str]
    evaluate: list[str]
    rounds: int
    data: dict[str, list[str]]
    shared: dict[str, Any]

    def learn(self, fold: Path, title: str, parts: Path, scans: Path) -> _Network:
        """Train on one datalist, each further network on the masks of the one before, and choose on the other."""
        place, ckpt, chosen = fold, Path(), list[str]()
        for number in range(self.rounds + 1):
            teacher, place = ckpt, fold / f"round{number}" if number else fold
            called = f"{title}, round {number}" if self.rounds else title
            ckpt = self._train(place, called, teacher if number else None, {**self.shared, "datalist": str(parts)})
            chosen = []
            for choice in self.choose:
                on = {**self.shared, "datalist": str(scans), "ckpt": str(ckpt)}
                on |= natural_threshold(bundle_root(self.bundle), self.recipe, choice) if number else {}
                result = place / Path(choice).stem / "calibrated.json"
                configs = [*self.evaluate, *chosen, choice]
                _once(result, f"{called}: {choice}", self.bundle, configs, self.data, **on)
                chosen.append(str(result))
        return _Network(place, ckpt, chosen)

    def score(self, network: _Network, folder: str, title: str, listed: Path) -> dict[str, Any]:
        """Scores of a network, with what was chosen for it, on the test section of a datalist, kept in a folder."""
        on = {**self.shared, "datalist": str(listed), "ckpt": str(network.ckpt)}
        configs = [*self.evaluate, *network.chosen]
        _once(_result(network.place / folder, listed), title, self.bundle, configs, self.data, **on)
        return _scores(network.place / folder)

    def _train(self, place: Path, called: str, teacher: Path | None, on: dict[str, Any]) -> Path:
        """Train into `place/training`, on masks of a teacher where there is one; returns the weights."""
        root, configs, further = bundle_root(self.bundle), list(self.recipe.train), dict[str, str]()
        learned: dict[str, Any] = {**self.data}
        if teacher:
            configs += refining(root, self.recipe, **self.shared)
            learned |= {"thresholds of its teacher": read_beside(teacher).get("chosen")}
            further["teacher_ckpt"] = str(teacher)
            if "pseudo_dir" in merged(root, self.recipe.refine):
                as_new_scans = [name for name in self.evaluate if Path(name).name != "evaluate.json"]
                maps, by = place / "maps" / "predictions.csv", {**on, "section": "training", "ckpt": str(teacher)}
                _once(maps, f"{called}: maps that teach", self.bundle, as_new_scans, learned, **by)
                further["pseudo_dir"] = str(maps.parent)
        _train(place / "training", f"{called}: training", self.bundle, configs, learned, **on, **further)
        return place / "training" / "model.pt"


def _dealt(source: Path, home: Path, **deal: Any) -> list[Path]:
    """The datalists of `write_folds`, refused beside trainings with others: those had these test patients, perhaps."""
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=home, prefix=".folds") as made:
        lists = write_folds(source, made, **deal)
        for k, path in enumerate(lists):
            place = home / f"fold{k}" / "training"
            if (place / NOTE).is_file() and any((place / name).is_file() for name in BEGUN):
                check_same(place, read_json(place / NOTE) | {"datalist": file_digest(path)}, name=NOTE)
        return [path.replace(home / path.name) for path in lists]


def _all_have_masks(datalist: PathLike, *, but: str | None) -> bool:
    content = read_json(datalist)
    return all("label" in case for section in SECTIONS if section != but for case in content.get(section) or [])


def _data(lists: Sequence[PathLike], dataset_dir: str) -> dict[str, list[str]]:
    """What tells the images and the masks of datalists from others under the same names, by key."""
    digests = [data_digests(listed, dataset_dir) for listed in lists]
    return {key: [one[key] for one in digests] for key in (IMAGES, MASKS)}


def _train(place: Path, title: str, bundle: str, configs: list[str], data: Mapping[str, Any], **overrides: Any) -> None:
    """Train into a folder, once, with settings as `for_configs`; `data` as of `_data`.

    Raises:
        ValueError: the training that lies there, finished or begun, is of other configs, settings, cases, images or
            teachers, or learned from other masks.
        ValueError, FileNotFoundError: it is finished, and its weights are others, or gone.
    """
    settings = for_configs(bundle, configs, overrides)
    if not any((place / name).is_file() for name in BEGUN):
        (place / NOTE).unlink(missing_ok=True)  # of a try that ended before its first epoch
    keys = {key: value for path in config_files(bundle, configs) for key, value in read_json(path).items()}
    if not any(key.endswith("learns_from") and value == "masks" for key, value in keys.items()):
        data = {key: value for key, value in data.items() if key != MASKS}
    check_same(place, {**_made_from(bundle, configs, settings), **data}, name=NOTE, newer=(IMAGES, MASKS))
    if (place / "finished").is_file():
        check_kept(place, "model.pt")
    else:
        step(title)
        run_bundle(bundle, configs, output_dir=str(place), **settings)
        say_trained(place)


def _once(result: Path, title: str, bundle: str, configs: list[str], data: Mapping[str, Any], **overrides: Any) -> None:
    """Run a bundle, its output into the folder of `result`, unless that was done with the same; see `_train`."""
    settings = for_configs(bundle, configs, overrides)
    made_from = json_text({**_made_from(bundle, configs, settings), **data})
    if not done_before(result, made_from):
        step(title)
        for name in FURTHER:  # of other configs, perhaps, that these do not write again
            (result.parent / f"{name}.json").unlink(missing_ok=True)
        run_bundle(bundle, configs, output_dir=str(result.parent), **settings)
        say_done(result, made_from)


def _made_from(bundle: str, configs: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides on a run: SHA-256 of configs, weights and lists of cases, wherever they lie; other settings."""
    files = {key: file_digest(settings[key]) for key in ("datalist", "ckpt", "teacher_ckpt") if key in settings}
    told = {"configs": [file_digest(path) for path in config_files(bundle, configs)], **settings, **files}
    told = {key: value for key, value in told.items() if key not in WITHOUT_CONSEQUENCE}
    return json.loads(json_text(told))


def _result(folder: Path, datalist: Path) -> Path:
    """What an evaluation leaves at its end: scores of masks, or of labels alone where no test case has a mask."""
    summary = folder / "summary.json"
    masks = summary.is_file() or any("label" in case for case in read_json(datalist)["test"])
    return summary if masks else folder / "labels.json"


def _scores(folder: Path) -> dict[str, Any]:
    """What the handlers of an evaluation wrote: by case (without masks, by label), and what there is of `FURTHER`."""
    summary = folder / "summary.json"
    scores = read_json(summary) if summary.is_file() else {"labels": read_json(folder / "labels.json")}
    return scores | {name: read_json(path) for name in FURTHER if (path := folder / f"{name}.json").is_file()}


def _cases_of(folder: Path, fold: int) -> list[dict[str, Any]]:
    """Rows of the masks' scores, with the fold; none where there were no masks."""
    if not (folder / "metrics.csv").is_file():
        return []
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{"fold": fold, **row} for row in csv.DictReader(file)]


def _with_test(source: Path, section: str, fold: Path) -> Path:
    """Write the datalist of a fold with a kept section as its test cases; `<fold>_kept.json`."""
    path = fold.with_name(f"{fold.stem}_kept.json")
    write_datalist(path, read_json(fold) | {"test": read_json(source)[section]})
    return path


def over_folds(summaries: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n − 1) over folds of each number that all summaries hold, by its dotted path."""
    flat = [dict(_numbers(summary)) for summary in summaries]
    shared = [name for name in flat[0] if all(name in other for other in flat)]
    result = {}
    for name in shared:
        values = np.array([one[name] for one in flat])
        result[name] = {"mean": round(float(values.mean()), 4), "std": round(float(values.std(ddof=1)), 4)}
    return result


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (int, float)):
        yield path, float(value)
