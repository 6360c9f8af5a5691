"""Bundles under one protocol, and a page that compares them: `python -m common benchmark_suite lgg DIR OUT`."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import labels_in_words
from ..files import read_json, write, write_json
from .arguments import ending_in_words
from .crossvalidate import crossvalidate
from .fit import fit
from .fit_minutes import cases_of
from .fit_runs import Recipe, supervised
from .folds import scans_of_fold, write_folds
from .phantom import phantom
from .run import BUNDLES, bundle_root, names
from .suite_page import Method, page_of

SUITES = ("lgg", "covid", "phantom")


def benchmark_suite(
    suite: str,
    dataset_dir: str,
    output_dir: str,
    *,
    bundles: str | Sequence[str] = (),
    datalist: str | None = None,
    scans: str | None = None,
    folds: int = 3,
    seed: int = 0,
    rounds: int | None = None,
    upper_bound: bool = True,
    page: str | None = None,
    **settings: Any,
) -> None:
    """Fit bundles on the same folds of the same labels, score them on patients they never saw, compare them.

    Each fold of each bundle is a `fit`: every threshold comes from yes/no labels of the fold's validation patients, and
    masks do nothing but score. The upper bound, where a bundle has a training with masks (`train_supervised.json`, or
    `draw_supervised.json` where `fit` takes `train_draw.json`), is its network trained and calibrated with the masks of
    the same patients. What is finished is skipped, so an interrupted suite goes on.

    Written to `output_dir`: `<bundle>/fold<k>` as `fit` does, `upper_bound/<bundle>` as `crossvalidate` does, and the
    page: scores with intervals by patient (AUC of slices, volumes and patients by fold, then averaged, inside each
    bootstrap draw too), differences between methods by paired bootstrap, baselines, minutes, memory.

    Args:
        suite: `lgg`, `covid` or `phantom`: bundles are taken with their config of this name.
        dataset_dir: folder of the data; `phantom` is written there if it has no `datalist.json`.
        output_dir: gets all files.
        bundles: names, comma-separated; by default those which have a config of the suite's name.
        datalist: as `prepare` writes it, whose sections are dissolved; by default `datalist.json` in `dataset_dir`.
        scans: datalist of whole scans, where that of the suite has parts of them: these teach and choose, and the scans
            of test patients are scored. Paths relative to `dataset_dir`, too.
        folds: number of folds; every patient is a test patient once.
        seed: of the folds.
        rounds: of training on masks of the training before, see `fit`; the upper bound has none.
        upper_bound: train with masks, too.
        page: Markdown file; by default `docs/results/<suite>.md`, below where one is.
        settings: top-level keys, for all bundles that have them, e.g. `--max_epochs 4`.

    Example:
        `python -m common benchmark_suite lgg DIR runs/lgg --bundles gp_unet_brats,ensemble_gradcam_brats`

    Raises:
        ValueError: there is no such suite, a bundle has no config for it, or halves of scans come without the scans.
        RuntimeError: (after all others are done) some bundles failed; the page has the others.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    chosen = bundles_of(suite, names(bundles))
    home, source = Path(output_dir).resolve(), Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    if suite == "phantom" and not source.is_file():
        phantom(dataset_dir, cases=40, healthy_fraction=0.4)
    if not scans and any("half" in case for case in cases_of(read_json(source))):
        raise ValueError(f"{source}: halves of scans teach, whole scans score: list these by --scans FILE")
    lists = write_folds(source, home, count=folds, seed=seed)
    if scans:
        lists = [scans_of_fold(scans, fold, sections=["test"]) for fold in lists]
    recipe = Recipe(train=("train.json", f"{suite}.json"))
    methods: list[Method] = []
    failed: list[str] = []
    for bundle in chosen:
        given = {"configs": f"{suite}.json", "rounds": rounds, **settings}
        with_masks = supervised(bundle_root(bundle), recipe, **settings) if upper_bound else ()
        bound = home / "upper_bound" / bundle if with_masks else None
        same: dict[str, Any] = {"datalist": str(source), "scans": scans, "folds": folds, "seed": seed}
        try:
            parts = [
                _fit(bundle, dataset_dir, home / bundle / f"fold{k}", datalist=str(path), **given)
                for k, path in enumerate(lists)
            ]
            if bound:
                crossvalidate(bundle, dataset_dir, str(bound), train=(*recipe.train, *with_masks), **same, **settings)
        except (RuntimeError, subprocess.CalledProcessError):  # the run has said why
            failed.append(bundle)
            continue
        methods.append(Method.read(bundle, parts, bound))
    if not methods:
        raise RuntimeError(f"all bundles failed ({', '.join(failed)}), see above; the same command goes on from there")
    content = read_json(source)
    data = labels_in_words(cases_of(content), content["classes"])
    if scans:
        data = f"{len(cases_of(read_json(scans)))} scans are scored; parts of them teach: {data}"
    path = Path(page or Path("docs") / "results" / f"{suite}.md")
    write(path, page_of(suite, methods, data, folds=folds, seed=seed))
    print(f"{path}: {', '.join(f'{method.name} {method.headline()}' for method in methods)}")
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see above, and not in {path}; the same command goes on")


def bundles_of(suite: str, asked: Sequence[str]) -> list[str]:
    """The bundles asked for, or all that have a config of the suite's name.

    Raises:
        ValueError: one asked for has none.
    """
    able = sorted(path.parents[1].name for path in BUNDLES.glob(f"*/configs/{suite}.json"))
    if lacking := [name for name in asked if name not in able]:
        raise ValueError(f"no {suite}.json in {', '.join(lacking)}; the suite {suite} takes {', '.join(able)}")
    return list(asked) or able


def _fit(bundle: str, dataset_dir: str, output_dir: Path, **options: Any) -> Path:
    """One fold, in a process of its own, whose steps' peak memory is then known."""
    process = multiprocessing.get_context("spawn").Process(
        target=_measured, args=(bundle, dataset_dir, str(output_dir)), kwargs=options
    )
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{bundle}: {output_dir.name} failed")
    return output_dir


def _measured(bundle: str, dataset_dir: str, output_dir: str, **options: Any) -> None:
    with ending_in_words():
        fit(bundle, dataset_dir, output_dir, **options)
    import resource  # not on every system

    path = Path(output_dir) / "peak_memory.json"
    before = read_json(path)["mib"] if path.is_file() else 0  # a fold that goes on has the steps before, too
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    write_json(path, {"mib": max(before, round(peak))})
