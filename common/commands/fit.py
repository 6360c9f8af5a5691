"""From yes/no labels to masks in one command: `python -m common fit BUNDLE DIR OUT`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import read_beside
from ..data import SECTIONS, labels_in_words, patient_of
from ..data.splits import tells_classes_apart
from ..files import alone, atomic_path, read_json, write
from ..handlers.label_calibration import FEW
from ..report import write_report
from .console import logged
from .fit_checks import check_images, doubt_about_patients, labels_of_cases
from .fit_minutes import LOOKED_AT, cases_of, minutes, read_grids
from .fit_request import Request, remember, requested, with_shown_cases
from .fit_runs import DRAW, SLIDES, VOLUMES, Recipe, learn, merged, once, refining, steps, usual_rounds
from .fit_slides import check_slides, found_slides, minutes_of_slides, summary_of_slides
from .fit_summary import summary, summary_of_classes
from .format import format_json
from .own_bundle import make_bundle, make_slide_bundle, with_settings


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
    asked = requested(
        bundle,
        dataset_dir,
        output_dir,
        datalist=datalist,
        configs=configs,
        rounds=rounds,
        start_ckpt=start_ckpt,
        settings=settings,
    )
    masks_digest, begun = remember(asked), asked.begun
    asked = with_shown_cases(asked)
    content, recipe, home = asked.content, asked.recipe, asked.home
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "datalist": str(asked.listed)}
    if recipe is SLIDES:  # whose features are computed once, by whichever run needs them first
        store = asked.settings.pop("store_dir", None) or Path(dataset_dir) / "features"
        shared["store_dir"] = str(Path(store).resolve())
    own = _own_bundle(asked)
    if rounds is None:
        rounds = 0 if asked.apart else usual_rounds(content["training"], recipe)
        if not (rounds or asked.apart):
            print("one training, as a label stands for a volume; of stacks all of whose slices are alike, --rounds 1")
    runs = steps(own, rounds, recipe) - bool(asked.start)
    print(f"about {_minutes(asked, own, rounds, runs)} minutes on two CPU cores", flush=True)
    if recipe is VOLUMES and content.get("test") and not begun:
        said = asked.merged_settings()
        how = {"channels": said["channels"], "dicom_geometry": said.get("dicom_geometry")}
        check_images(asked.listed, "test", dataset_dir, **how)
    elif recipe is SLIDES and not begun:
        check_slides(own, content, Path(dataset_dir))
    scored = "test" if content.get("test") else "validation"
    everything = "+".join(section for section in SECTIONS if content.get(section))
    scores, masks = home / "evaluation" / recipe.scores, home / "masks" / "predictions.csv"
    with alone(home, "fit"), logged(home / "log.txt", verbose=verbose, steps=runs):
        best = learn(own, home, rounds, calibration_section(content), shared, recipe, start=asked.start)
        _keep(best, own, recipe)
        title = f"scores of the {scored} section"
        evaluate = [recipe.evaluate, *(["paper_scores.json"] if asked.apart else [])]
        shared |= {"made_from": masks_digest}  # they are scored, and drawn into pictures
        scored_anew = once(scores, title, own, recipe, evaluate, **shared, section=scored)
        once(masks, "masks of all cases", own, recipe, **shared, section=everything)
    page = home / "evaluation" / "report.html"
    if scored_anew or not page.is_file():
        write_report(page.parent)
    if asked.apart:
        print(read_beside(own / "models" / recipe.weights)["chosen_from"]["rule"])
        print(summary_of_classes(page.parent, scored, content["classes"]))
    else:
        print(summary(page.parent, scored) if recipe is VOLUMES else summary_of_slides(page.parent, scored))
    print(f"bundle: {own}\nmasks, heatmaps and pictures: {home / 'masks'}\nlog: {home / 'log.txt'}\nreport: {page}")


def _own_bundle(asked: Request) -> Path:
    """Say what the data hold, and make the bundle that will have their weights."""
    counts = "; ".join(
        described(section, asked.content, asked.recipe) for section in SECTIONS if asked.content.get(section)
    )
    print(f"{asked.listed}: {counts}")
    if doubt := doubt_about_patients(asked.content["training"]):
        print(f"WARNING: {doubt}")
    by_case = not (asked.of_slices or asked.recipe is SLIDES)
    over = with_volumes(asked.root, asked.configs) if by_case else asked.configs
    make = make_bundle if asked.recipe is VOLUMES else make_slide_bundle
    about: dict[str, Any] = {"datalist": asked.listed, "dataset_dir": asked.dataset_dir, "counts": counts}
    return make(str(asked.root), asked.home / asked.root.name, over=over, settings=asked.merged_settings(), **about)


def _minutes(asked: Request, own: Path, rounds: int, runs: int) -> int:
    """Look at some images or slides, say what they are like, and guess how long all will take."""
    if asked.recipe is SLIDES:
        found = found_slides(own, asked.content, Path(asked.dataset_dir))
        print(found)
        return minutes_of_slides(found, asked.content, merged(own, SLIDES.train), rounds)
    grids = read_grids(asked.content, Path(asked.dataset_dir))
    of = f" (of the first {LOOKED_AT} cases)" if len(cases_of(asked.content)) > LOOKED_AT else ""
    print(f"images: {', '.join(asked.content['modalities'])}; {grids.in_words()}{of}")
    settings = merged(own, (VOLUMES.inference, *VOLUMES.train))
    drawing = merged(own, (DRAW,)) if DRAW in refining(own, VOLUMES) else None
    trainings: dict[str, Any] = {"rounds": rounds - bool(asked.start), "runs": runs, "drawing": drawing}
    return minutes(asked.root.name, asked.content, settings, grids, **trainings)


def _keep(best: Path, own: Path, recipe: Recipe) -> None:
    """Put weights, and what lies beside them, into the made bundle; its config says what they depend on, too.

    Servers read `inference.json`, and run none of its steps.
    """
    weights = own / "models" / recipe.weights
    for end in (".pt", ".json"):
        with atomic_path(weights.with_suffix(end)) as temporary:
            shutil.copy2(best.with_suffix(end), temporary)
    path = own / "configs" / recipe.inference
    config = with_settings(read_json(path), read_beside(weights).get("trained", {}))
    write(path, format_json(config))


def with_volumes(root: Path, configs: Sequence[str]) -> list[str]:
    """The configs, each followed by what it asks for where volumes have one label: `phantom_volumes.json`."""
    pairs = [(name, f"{Path(name).stem}_volumes.json") for name in configs]
    return [one for name, more in pairs for one in (name, *([more] if (root / "configs" / more).is_file() else []))]


def described(section: str, content: Mapping[str, Any], recipe: Recipe = VOLUMES) -> str:
    """A section's cases, patients and labels in words."""
    return f"{section} {labels_in_words(content[section], content['classes'], whole=f'{recipe.unit}s')}"


def calibration_section(content: Mapping[str, Any]) -> str:
    """Validation, or both sections that training may see where that has few labels of one kind, or few patients."""
    if tells_classes_apart(content):
        return "validation"
    cases = content.get("validation") or []
    labels, patients = labels_of_cases(cases), {*map(patient_of, cases)}
    return "validation" if min(sum(labels), len(labels) - sum(labels), len(patients)) >= FEW else "training+validation"
