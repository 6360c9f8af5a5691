"""From yes/no labels to masks in one command: `python -m common fit BUNDLE DIR OUT`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..checkpoint import read_beside
from ..data import SECTIONS, labels_in_words, labels_slices
from ..data.splits import tells_classes_apart
from ..engines.settings import plain, tops
from ..files import alone, atomic_path, file_digest, read_json, write, write_json
from ..handlers.label_calibration import FEW
from ..report import write_report
from .console import logged
from .fit_checks import (
    DATALIST,
    IMAGES,
    MASKS,
    check_data,
    check_findings,
    check_images,
    data_digests,
    doubt_about_patients,
    labels_of_cases,
    recipe_of,
)
from .fit_minutes import LOOKED_AT, cases_of, minutes, read_grids
from .fit_runs import DRAW, SLIDES, VOLUMES, Recipe, learn, merged, once, refining, steps, usual_rounds
from .fit_slides import found_slides, minutes_of_slides, summary_of_slides
from .fit_start import settings_of_start
from .fit_summary import summary, summary_of_classes
from .fit_windows import KEY, shown_datalist
from .format import format_json
from .own_bundle import make_bundle, make_slide_bundle, settings_of, slide_settings, with_settings
from .run import bundle_root, names

WORDS = {DATALIST: "datalist"} | {
    key: f"set of {name} (the same names, other files)" for key, name in ((IMAGES, "images"), (MASKS, "masks"))
}


def fit(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    datalist: str | None = None,
    configs: str | Sequence[str] = "",
    rounds: int | None = None,
    start_ckpt: str | None = None,
    verbose: bool = False,
    **settings: Any,
) -> None:
    """Train on yes/no labels, choose every threshold from labels, score what can be scored, write all masks.

    What is finished is skipped, so an interrupted run goes on where it was; after a change of masks of findings all is
    scored and drawn anew, nothing trained. Written to `output_dir`:

    - `<bundle>`: a complete bundle with these weights and settings, as `monai.bundle run`, `export`, `verify` and
      MONAI Label take it;
    - `training` (or `start`), and `round1` … with what belongs to a second training on the first one's masks;
    - `evaluation`: scores of the test section (of validation where there is none), Dice where there are masks, and
      `report.html`; where no label is negative, `class_scores.json` as well;
    - `masks`: mask, heatmap and picture of every case;
    - `log.txt`: what the runs said beside their warnings and errors;
    - with `--skip_outside_window true`, `datalist.json` without the cases of which the window shows nothing.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the data.
        output_dir: gets all files.
        datalist: as `prepare` writes it; by default `datalist.json` in `dataset_dir`.
        configs: config files of the bundle, laid over those of training and inference; of one label a volume,
            `<name>_volumes.json` over `<name>.json`, where there is one.
        rounds: of training on masks of the training before, where the bundle has a `train_refine.json`; by default one
            where slices, halves or slides have labels, none where volumes have, and none where no label is negative.
        start_ckpt: weights in place of a first training, e.g. `bundles/gp_unet_brats/models/model.pt`: thresholds are
            chosen for them, and the training on masks begins with them. `--rounds 0`: thresholds alone.
        verbose: show on the console what otherwise goes to `log.txt` alone.
        settings: top-level keys of the configs, e.g. `--max_epochs 30 --spacing "[1,1,-1]"`.

    Example:
        `python -m common fit gp_unet_brats DIR OUT --max_epochs 30`
    """
    home = Path(output_dir).resolve()
    listed = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    root = bundle_root(bundle)
    if not listed.is_file():
        raise FileNotFoundError(f"{listed} does not exist: write it by `python -m common prepare table labels.csv`")
    content = read_json(listed)
    check_data(listed, content, dataset_dir, root)
    apart = tells_classes_apart(content)
    settings = plain(settings)
    recipe = recipe_of(root, content, dataset_dir, flat="backend" in settings)
    if isinstance(settings.get("classes"), str | tuple):
        settings["classes"] = names(settings["classes"])
    check_settings(root, settings, recipe)
    check_findings(root, settings.get("classes", content["classes"]), recipe, names(configs))
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
    digests = data_digests(listed, dataset_dir)
    masks_digest = digests.pop(MASKS)
    begun = any((home / name / "checkpoint.pt").is_file() for name in ("training", "round1"))
    try:
        check_same(home, {**digests, **told}, newer=(IMAGES,))
    except ValueError:
        if begun:
            raise
        forget(home)
        check_same(home, {**digests, **told})
    if settings.pop(KEY, False) and recipe is VOLUMES:
        read = settings_of(listed, read_json(root / "configs" / "train.json")) | settings
        options: dict[str, Any] = {"dataset_dir": dataset_dir, "over": names(configs), "settings": read}
        listed = shown_datalist(root, listed, home / "datalist.json", **options)
        content = read_json(listed)
        check_data(listed, content, dataset_dir, root)
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "datalist": str(listed)}
    if recipe is SLIDES:  # whose features are computed once, by whichever run needs them first
        shared["store_dir"] = str(Path(settings.pop("store_dir", None) or Path(dataset_dir) / "features").resolve())
    said = settings_of(listed, read_json(root / "configs" / "train.json")) | settings
    counts = "; ".join(described(section, content, recipe) for section in SECTIONS if content.get(section))
    print(f"{listed}: {counts}")
    if doubt := doubt_about_patients(content["training"]):
        print(f"WARNING: {doubt}")
    of_slices = recipe is VOLUMES and any(labels_slices(case) for case in content["training"])
    over = names(configs) if of_slices or recipe is SLIDES else with_volumes(root, names(configs))
    make = make_bundle if recipe is VOLUMES else make_slide_bundle
    about: dict[str, Any] = {"datalist": listed, "dataset_dir": dataset_dir, "counts": counts}
    own = make(bundle, home / root.name, over=over, settings=said, **about)
    if rounds is None:
        rounds = 0 if apart else usual_rounds(content["training"], recipe)
        if not (rounds or apart):
            print("one training, as a label stands for a volume; of stacks all of whose slices are alike, --rounds 1")
    runs = steps(own, rounds, recipe) - bool(start)
    if recipe is VOLUMES:
        grids = read_grids(content, Path(dataset_dir))
        of = f" (of the first {LOOKED_AT} cases)" if len(cases_of(content)) > LOOKED_AT else ""
        print(f"images: {', '.join(content['modalities'])}; {grids.in_words()}{of}")
        settings_of_all = merged(own, (recipe.inference, *recipe.train))
        drawing = merged(own, (DRAW,)) if DRAW in refining(own, recipe) else None
        trainings: dict[str, Any] = {"rounds": rounds - bool(start), "runs": runs, "drawing": drawing}
        guess = minutes(root.name, content, settings_of_all, grids, **trainings)
    else:
        found = found_slides(own, content, Path(dataset_dir))
        print(found)
        guess = minutes_of_slides(found, content, merged(own, recipe.train), rounds)
    print(f"about {guess} minutes on two CPU cores", flush=True)
    if recipe is VOLUMES and content.get("test") and not begun:
        how = {"channels": said["channels"], "dicom_geometry": said.get("dicom_geometry")}
        check_images(listed, "test", dataset_dir, **how)
    scored = "test" if content.get("test") else "validation"
    everything = "+".join(section for section in SECTIONS if content.get(section))
    scores, masks = home / "evaluation" / recipe.scores, home / "masks" / "predictions.csv"
    with alone(home, "fit"), logged(home / "log.txt", verbose=verbose, steps=runs):
        best = learn(own, home, rounds, calibration_section(content), shared, recipe, start=start)
        weights = own / "models" / recipe.weights
        for end in (".pt", ".json"):
            with atomic_path(weights.with_suffix(end)) as temporary:
                shutil.copy2(best.with_suffix(end), temporary)
        _as_trained(own, recipe)
        title = f"scores of the {scored} section"
        evaluate = [recipe.evaluate, *(["paper_scores.json"] if apart else [])]
        shared |= {"made_from": masks_digest}  # they are scored, and drawn into pictures
        scored_anew = once(scores, title, own, recipe, evaluate, **shared, section=scored)
        once(masks, "masks of all cases", own, recipe, **shared, section=everything)
    page = home / "evaluation" / "report.html"
    if scored_anew or not page.is_file():
        write_report(page.parent)
    if apart:
        print(read_beside(own / "models" / recipe.weights)["chosen_from"]["rule"])
        print(summary_of_classes(page.parent, scored, content["classes"]))
    else:
        print(summary(page.parent, scored) if recipe is VOLUMES else summary_of_slides(page.parent, scored))
    print(f"bundle: {own}\nmasks, heatmaps and pictures: {home / 'masks'}\nlog: {home / 'log.txt'}\nreport: {page}")


def with_volumes(root: Path, configs: Sequence[str]) -> list[str]:
    """The configs, each followed by what it asks for where volumes have one label: `phantom_volumes.json`."""
    pairs = [(name, f"{Path(name).stem}_volumes.json") for name in configs]
    return [one for name, more in pairs for one in (name, *([more] if (root / "configs" / more).is_file() else []))]


def check_settings(root: Path, settings: Mapping[str, Any], recipe: Recipe = VOLUMES) -> None:
    """Refuse settings that no config of the bundle has, and those that are chosen here.

    Raises:
        ValueError: naming the nearest key.
    """
    configs = [read_json(path) for path in (root / "configs").glob("[!.]*.json") if path.name != "metadata.json"]
    known = set().union(*map(tops, configs)) if recipe is VOLUMES else slide_settings(root) - {KEY}
    of_slides = set().union(*(tops(config) for config in configs if "mpp" in config))
    of_slides -= set().union(*(tops(config) for config in configs if "mpp" not in config))
    chosen = {key for config in configs for key, value in config.items() if "@chosen[" in str(value)}
    for key in tops(settings):
        if recipe is VOLUMES and key in of_slides:
            raise ValueError(
                f"--{key} is of whole slides, and these images are none; a TIFF without levels is one with "
                "--backend tifffile"
            )
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise ValueError(
                f"--{key}: no config of {root.name} has it"
                + (" for slides" if recipe is SLIDES else "")
                + (f"; did you mean {near[0]}?" if near else "")
            )
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


def _as_trained(own: Path, recipe: Recipe) -> None:
    """Write into `inference.json` what the weights depend on, for servers that read it and run none of its steps."""
    path = own / "configs" / recipe.inference
    config = with_settings(read_json(path), read_beside(own / "models" / recipe.weights).get("trained", {}))
    write(path, format_json(config))


def described(section: str, content: Mapping[str, Any], recipe: Recipe = VOLUMES) -> str:
    """A section's cases, patients and labels in words."""
    return f"{section} {labels_in_words(content[section], content['classes'], whole=f'{recipe.unit}s')}"


def calibration_section(content: Mapping[str, Any]) -> str:
    """Validation, or both sections that training may see where that has few labels of one kind, or few patients."""
    if tells_classes_apart(content):
        return "validation"
    cases = content.get("validation") or []
    labels, patients = labels_of_cases(cases), {case["patient"] for case in cases}
    return "validation" if min(sum(labels), len(labels) - sum(labels), len(patients)) >= FEW else "training+validation"
