"""Cross-validation by patient in one command: `python -m common crossvalidate BUNDLE DATASET_DIR OUTPUT_DIR`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import SECTIONS, write_datalist
from ..files import PathLike, write_csv, write_json
from .arguments import read_json
from .console import logged, step
from .folds import write_folds
from .run import for_configs, names, run_bundle


def crossvalidate(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    datalist: str | None = None,
    scans: str | None = None,
    folds: int = 3,
    seed: int = 0,
    train: str | Sequence[str] = "train.json",
    choose: str | Sequence[str] = "calibrate.json",
    evaluate: str | Sequence[str] = "inference.json,evaluate.json",
    rounds: int = 0,
    refine: str | Sequence[str] = "train_refine.json",
    verbose: bool = False,
    **overrides: Any,
) -> None:
    """Train, choose thresholds and score once per fold; every patient is a test patient once.

    What is finished is skipped, so an interrupted run goes on where it was. Written to `output_dir`:
    `fold<k>/{training,<choose>,evaluation}`, `metrics.csv` (every case with its fold) and `crossvalidation.json` (mean
    and standard deviation over folds of every number of the folds' `summary.json`).

    With `rounds`, each fold's network is the teacher of a next one, which learns from its pseudo-masks; thresholds are
    chosen anew, and the last network is scored. What belongs to them is in `fold<k>/round<n>`.

    Where training used parts of scans (half-lungs, stacks of slices), `scans` lists the whole ones: thresholds are
    chosen and masks scored on these, and `fold<k>/parts` holds the scores of the parts, their AUC among them.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the data.
        output_dir: gets all files.
        datalist: as `prepare` writes it, whose sections are dissolved; by default `datalist.json` in `dataset_dir`.
        scans: datalist of whole scans of the same patients; paths relative to `dataset_dir`, too.
        folds: number of folds.
        seed: of the folds.
        train: config files of the training, later ones override earlier ones.
        choose: config files, each laid over `evaluate` in turn, that write `calibrated.json`, a config for all that
            follows; empty for none.
        evaluate: config files of the evaluation.
        rounds: of training on pseudo-masks after the first training; 0: none.
        refine: config files laid over `train`, and over these what was chosen for the teacher; `teacher_ckpt` is its
            weights.
        verbose: show on the console what otherwise goes to `log.txt` alone.
        overrides: top-level keys, e.g. `max_epochs`, each for all runs whose configs have it.

    Example:
        `python -m common crossvalidate gp_unet_brats DIR OUT --folds 4 --max_epochs 10`
    """
    home = Path(output_dir).resolve()
    source = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    lists = write_folds(source, home, count=folds, seed=seed)
    whole = [_of_patients(scans, fold) for fold in lists] if scans else lists
    train, choose, evaluate, refine = (names(x) for x in (train, choose, evaluate, refine))
    summaries, rows = [], []
    with logged(home / "log.txt", verbose=verbose):
        for k, (part_list, fold_list) in enumerate(zip(lists, whole, strict=True)):
            fold = home / f"fold{k}"
            shared = {"dataset_dir": str(Path(dataset_dir).resolve()), **overrides}
            on_parts, on_scans = ({**shared, "datalist": str(path)} for path in (part_list, fold_list))
            chosen: list[str] = []
            teacher: dict[str, str] = {}
            for number in range(rounds + 1):
                place = fold / f"round{number}" if number else fold
                title = f"fold {k}, round {number}" if rounds else f"fold {k}"
                ckpt, finished = place / "training" / "model.pt", place / "training" / "finished"
                configs = [*train, *refine, *chosen] if number else train
                _once(finished, f"{title}: training", bundle, configs, **on_parts, **teacher)
                finished.touch()
                teacher = {"teacher_ckpt": str(ckpt)}
                on_scans |= {"ckpt": str(ckpt)}
                chosen = []
                for choice in choose:
                    result = place / Path(choice).stem / "calibrated.json"
                    _once(result, f"{title}: {choice}", bundle, [*evaluate, *chosen, choice], **on_scans)
                    chosen.append(str(result))
            summary, parts = place / "evaluation" / "summary.json", place / "parts" / "summary.json"
            _once(summary, f"fold {k}: evaluation", bundle, [*evaluate, *chosen], **on_scans)
            if scans:
                configs = [*evaluate, *chosen]
                _once(parts, f"fold {k}: evaluation of the parts", bundle, configs, **on_parts, ckpt=str(ckpt))
            summaries.append(_scores(summary.parent) | ({"parts": _scores(parts.parent)} if scans else {}))
            with open(summary.parent / "metrics.csv", newline="") as file:
                rows += [{"fold": k, **row} for row in csv.DictReader(file)]
    write_csv(home / "metrics.csv", rows)
    scores = over_folds(summaries)
    write_json(home / "crossvalidation.json", scores)
    for name, score in scores.items():
        if name.endswith((".mean", ".auc", ".miou", ".paper_dsc")):
            print(f"{name:44} {score['mean']:.4f} ± {score['std']:.4f}")


def _once(result: Path, title: str, bundle: str, configs: list[str], **overrides: Any) -> None:
    """Run a bundle, its output into the folder of `result`, unless that file is there; settings as `for_configs`."""
    if not result.is_file():
        step(title)
        run_bundle(bundle, configs, output_dir=str(result.parent), **for_configs(bundle, configs, overrides))


def _scores(folder: Path) -> dict[str, Any]:
    """What the handlers of an evaluation wrote: by case, and where there are any by volume."""
    scores = read_json(folder / "summary.json")
    volumes = folder / "volumes.json"
    return scores | ({"volumes": read_json(volumes)} if volumes.is_file() else {})


def _of_patients(scans: PathLike, fold: Path) -> Path:
    """Write the datalist of whole scans, split by patient as a fold of their parts is; `<fold>_scans.json`.

    Raises:
        ValueError: a scan of a patient who is in no section of the fold.
    """
    content, parts = map(read_json, (scans, fold))
    everything = [case for section in SECTIONS for case in content.get(section, [])]
    patients = {section: {case["patient"] for case in parts[section]} for section in SECTIONS}
    unknown = {case["patient"] for case in everything} - set().union(*patients.values())
    if unknown:
        raise ValueError(f"{scans}: patients {sorted(unknown)} have no parts in {fold}; name them alike in both")
    split = {section: [case for case in everything if case["patient"] in patients[section]] for section in SECTIONS}
    path = fold.with_name(f"{fold.stem}_scans.json")
    write_datalist(path, content | split)
    return path


def over_folds(summaries: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n − 1) over folds of each number that all summaries hold, by its dotted path."""
    flat = [dict(_numbers(summary)) for summary in summaries]
    shared = [name for name in flat[0] if all(name in other for other in flat)]
    result = {}
    for name in shared:
        values = np.array([one[name] for one in flat])
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        result[name] = {"mean": round(float(values.mean()), 4), "std": round(std, 4)}
    return result


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (int, float)):
        yield path, float(value)
