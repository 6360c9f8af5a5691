"""From yes/no labels to masks in one command: `python -m common fit BUNDLE DIR OUT`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from ..checkpoint import read_beside
from ..data import SECTIONS, label_of
from ..engines.settings import plain
from ..files import write
from ..images import read_grid
from .arguments import read_json
from .format import format_json
from .own_bundle import make_bundle, settings_of, with_settings
from .run import bundle_root, for_configs, names, run_bundle

# Seconds on two CPU cores for one epoch over 1,000 slices (for `tonno_mosmed`: planes), and one volume of masks.
COSTS = {"gp_unet_brats": (12, 1), "ensemble_gradcam_brats": (40, 2), "insight_ct": (3, 8), "tonno_mosmed": (20, 20)}
FEW = 4  # labels of a kind: with fewer in validation, training patients are calibrated on, too


def fit(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    datalist: str | None = None,
    configs: str | Sequence[str] = "",
    rounds: int | None = None,
    **settings: Any,
) -> None:
    """Train on yes/no labels, choose every threshold from labels, score what can be scored, write all masks.

    What is finished is skipped, so an interrupted run goes on where it was. Written to `output_dir`:

    - `<bundle>`: a complete bundle with these weights and settings, as `monai.bundle run`, `export`, `verify` and
      MONAI Label take it;
    - `training`, and `round1` … with what belongs to a second training on the first one's masks;
    - `evaluation`: scores of the test section (of validation where there is none); Dice where there are masks;
    - `masks`: mask, heatmap and picture of every case.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the data.
        output_dir: gets all files.
        datalist: as `prepare` writes it; by default `datalist.json` in `dataset_dir`.
        configs: config files of the bundle, laid over those of training and inference.
        rounds: of training on masks of the training before, where the bundle has a `train_refine.json`; by default one
            where slices have labels, none where volumes have.
        settings: top-level keys of the configs, e.g. `--max_epochs 30 --spacing "[1,1,-1]"`.
    """
    home = Path(output_dir).resolve()
    listed = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    content = read_json(listed)
    root = bundle_root(bundle)
    said = settings_of(listed, read_json(root / "configs" / "train.json")) | plain(settings)
    counts = "; ".join(described(section, content) for section in SECTIONS if content.get(section))
    print(f"{listed}: {counts}")
    print(f"images: {', '.join(content['modalities'])}; {grid_of(content, Path(dataset_dir))}")
    own = make_bundle(bundle, home / root.name, over=names(configs), settings=said, datalist=listed, counts=counts)
    print(f"about {minutes(root.name, content, read_json(own / 'configs' / 'train.json'))} minutes on two CPU cores")
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "datalist": str(listed)}
    few = calibration_section(content)
    teacher: Path | None = None
    of_slices = any(labels_slices(case) for case in content["training"])
    for number in range(1 + (int(of_slices) if rounds is None else rounds)):
        if number and not (own / "configs" / "train_refine.json").is_file():
            break
        place = home / (f"round{number}" if number else "training")
        _train(own, place, teacher, f"round {number}" if number else "training", **shared)
        teacher = place / "model.pt"
        title = f"gate and thresholds from the labels of {few.replace('+', ' and ')}"
        more = {"natural_threshold": natural(own)} if number else {}
        _once(
            place / "calibrated.json", title, own, "calibrate_labels", **shared, ckpt=str(teacher), section=few, **more
        )
    assert teacher is not None
    for end in (".pt", ".json"):
        shutil.copy2(teacher.with_suffix(end), own / "models" / f"model{end}")
    _as_trained(own)
    scored = "test" if content.get("test") else "validation"
    _once(
        home / "evaluation" / "labels.json",
        f"scores of the {scored} section",
        own,
        "evaluate",
        **shared,
        section=scored,
    )
    everything = "+".join(section for section in SECTIONS if content.get(section))
    _once(home / "masks" / "predictions.csv", "masks of all cases", own, **shared, section=everything)
    print(summary(home / "evaluation", scored))
    print(f"bundle: {own}\nmasks, heatmaps and pictures: {home / 'masks'}")


def _train(own: Path, place: Path, teacher: Path | None, title: str, **shared: Any) -> None:
    """Train into a folder, on the masks of a teacher if there is one; once."""
    finished = place / "finished"
    if finished.is_file():
        return
    configs, more = ["train.json"], {}
    if teacher:
        configs.append("train_refine.json")
        more["teacher_ckpt"] = str(teacher)
        if "pseudo_dir" in read_json(own / "configs" / "train_refine.json"):  # its maps are made before
            more["pseudo_dir"] = str(place / "maps")
            maps = {**shared, "section": "training", "ckpt": str(teacher)}
            _once(place / "maps" / "predictions.csv", "maps of the training section", own, **maps)
    print(title)
    run_bundle(own, configs, output_dir=str(place), **for_configs(own, configs, shared), **more)
    finished.touch()


def _once(result: Path, title: str, own: Path, over: str = "", **settings: Any) -> None:
    """Run inference, with a config laid over it, into the folder of `result`, unless that file is there."""
    if not result.is_file():
        print(title)
        configs = ["inference.json", f"{over}.json"] if over else ["inference.json"]
        run_bundle(own, configs, output_dir=str(result.parent), **settings)


def _as_trained(own: Path) -> None:
    """Write into `inference.json` what the weights depend on, for servers that read it and run none of its steps."""
    path = own / "configs" / "inference.json"
    config = with_settings(read_json(path), read_beside(own / "models" / "model.pt").get("trained", {}))
    write(path, format_json(config))


def natural(own: Path) -> float | None:
    """The threshold that maps have by themselves once they were trained against masks."""
    return read_json(own / "configs" / "train_refine.json").get("natural_threshold")


def described(section: str, content: Mapping[str, Any]) -> str:
    """A section's cases, patients and labels in words."""
    cases, classes = content[section], content["classes"]
    volumes, slices = Counter[str](), Counter[str]()
    for case in cases:
        cls = label_of(case)
        if isinstance(cls, int):
            volumes[classes[cls]] += 1
        elif labels_slices(case):
            slices.update(classes[c] for c in cls)
        else:
            volumes.update(cls or [classes[0]])
    parts = [f"{len(cases)} cases of {len({case['patient'] for case in cases})} patients"]
    for what, count in (("volumes", volumes), ("slices", slices)):
        if count:
            parts.append(f"{what} " + ", ".join(f"{name} {count[name]}" for name in classes))
    return f"{section} {', '.join(parts)}"


def labels_slices(case: Mapping[str, Any]) -> bool:
    """Whether a case has one label a slice; else it has one, or the names of several, for the volume."""
    cls: Any = label_of(dict(case))
    return isinstance(cls, list) and bool(cls) and not isinstance(cls[0], str)


def calibration_section(content: Mapping[str, Any]) -> str:
    """Validation, or both sections that training may see where that has few labels of one kind."""
    cases = content.get("validation") or []
    labels = [one for case in cases for one in (label_of(case) if labels_slices(case) else [label_of(case)])]
    positive = sum(bool(label) for label in labels)
    return "validation" if min(positive, len(labels) - positive) >= FEW else "training+validation"


def grid_of(content: Mapping[str, Any], root: Path) -> str:
    """Spacing of the first cases, from their headers."""
    spacings = []
    for case in [case for section in SECTIONS for case in content.get(section) or []][:20]:
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        spacings.append(np.sort(voxel_sizes(read_grid(root / images[0])[1])))
    low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
    spans = [f"{a:.3g}" if np.isclose(a, b) else f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)]
    return f"spacing {' × '.join(spans)} mm"


def minutes(bundle: str, content: Mapping[str, Any], train: Mapping[str, Any]) -> int:
    """A guess, from what a slice costs: all steps of `fit` on two CPU cores."""
    epoch, volume = COSTS.get(bundle, (20, 5))
    cases = sum(len(content.get(section) or []) for section in SECTIONS)
    draws = train.get("volumes_per_epoch") or train.get("bags_per_epoch") or 25 * len(content["training"])
    training = train["max_epochs"] * draws / 1000 * epoch
    return max(1, round((2 * training + 2 * cases * volume + 120) / 60))


def summary(folder: Path, section: str) -> str:
    """What labels say about the masks, and what masks say where there are any."""
    scores = read_json(folder / "labels.json")
    volumes, slices = scores["volumes"], scores.get("slices")
    lines = [f"{section}, from labels: volume AUC {_shown(volumes['auc'])} {volumes['auc_interval']}"]
    if slices:
        lines[0] += f", slice AUC {_shown(slices['auc'])} {slices['auc_interval']}"
    lines.append(
        f"at the gate {scores['gate']:.3f}: {_shown(volumes['positives_marked'])} of positive volumes marked, "
        f"{_shown(volumes['negatives_empty'])} of negative ones left empty, "
        f"{_shown(volumes['ml_in_negatives']['mean'])} ml in a negative one"
    )
    if (folder / "summary.json").is_file():
        dice = read_json(folder / "summary.json")["dice"]
        lines.append(
            f"with masks, which chose nothing: 3D Dice {_shown(dice['mean'])}, median {_shown(dice['median'])}"
        )
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
