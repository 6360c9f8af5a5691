"""The whole way on a phantom: yes/no labels in, masks out, scored beside trivial baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_json
from ..report.scores import BASELINES
from .fit import fit
from .phantom import phantom_dataset
from .run import bundle_root

# Masks reach at least so far beyond what a map marks: two voxels of the phantom; the rule itself is for finer scans.
REACH_MM = 6.0
# What is compared, by its key in `summary.json`; what was learned has the slice AUC of the method.
LEARNED = {"dice": "method (mask)", "dice_raw": "method (raw map)"}
LEARNED |= {key: name for key, (name, learned) in BASELINES.items() if learned}
NOT_LEARNED = {key: name for key, (name, learned) in BASELINES.items() if not learned}
LINE = "{:47}{:>8}  {:13}{:>10}"


def demo(
    output_dir: str = "demo",
    bundle: str = "gp_unet_brats",
    cases: int = 60,
    epochs: int = 0,
    rounds: int | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> None:
    """Train a bundle on a phantom from yes/no labels, as `fit` does it, and score it beside what needs no network.

    The phantom is that of `phantom --kind clinic`: a threshold finds other bodies as well as the lesion.

    Args:
        output_dir: gets the data, and what `fit` writes.
        bundle: name under `bundles/`.
        cases: phantom volumes.
        epochs: of training; 0 takes those of the bundle's configs.
        rounds: of training on masks of the training before, as in `fit`; by default see `rounds_of`.
        seed: of phantom, split and training.
        verbose: show on the console what otherwise goes to `log.txt` alone.

    Example:
        `python -m common demo --output_dir demo --bundle tonno_mosmed`
    """
    configs = configs_of(bundle)  # before anything is written
    rounds = rounds_of(bundle) if rounds is None else rounds
    home = Path(output_dir).resolve()
    print(f"phantom data: {cases} volumes with known truth; no mask is opened before the scores")
    data = phantom_dataset(home / "data", cases=cases, seed=seed, kind="clinic")
    more: dict[str, Any] = {**reach_of(bundle), "seed": seed} | ({"max_epochs": epochs} if epochs else {})
    fit(bundle, str(data), str(home), configs=configs, rounds=rounds, verbose=verbose, **more)
    print(table(read_json(home / "evaluation" / "summary.json")))
    print(f"scores by case, with the truth outlined in the pictures: {home / 'evaluation'}")
    print(f"report: {home / 'evaluation' / 'report.html'}")


def configs_of(bundle: str) -> list[str]:
    """Configs that make a bundle train on the phantom: `phantom.json`, and what the clinic's lesions need over it."""
    folder = bundle_root(bundle) / "configs"
    return [name for name in ("phantom.json", "clinic.json") if (folder / name).is_file()]


def rounds_of(bundle: str) -> int:
    """1 where a network gets map heads in its second training: the maps of the first are too coarse for a body."""
    second = bundle_root(bundle) / "configs" / "train_refine.json"
    return int(second.is_file() and "map_width" in read_json(second))


def reach_of(bundle: str) -> dict[str, float]:
    """The setting of `fit` that lets masks reach `REACH_MM`, or what the bundle's own rule has where that is more."""
    rule = read_json(bundle_root(bundle) / "configs" / "calibrate_labels.json")["start"]["refine"]
    return {"start#refine#dilate_mm": max(REACH_MM, rule["dilate_mm"])}


def table(summary: Mapping[str, Any]) -> str:
    """The comparison of a `summary.json` as text: Dice of the method and of its baselines, AUC where one exists."""
    slices = summary["slices"]
    lines = [LINE.format("", "3D Dice", "95 % interval", "slice AUC"), "learned from yes/no labels"]
    lines += [_row(name, summary[key], _number(slices["auc"])) for key, name in LEARNED.items() if key in summary]
    lines.append("not learned (thresholds fitted with the masks of the training cases)")
    lines += [_row(name, summary[key], "-") for key, name in NOT_LEARNED.items() if key in summary]
    if slices.get("auc_position_alone") is not None:
        lines.append(LINE.format("  slice position alone", "-", "-", _number(slices["auc_position_alone"])))
    best = max((summary[key]["mean"] or 0.0 for key in NOT_LEARNED if key in summary), default=0.0)
    if summary["dice"]["mean"] is not None:
        lines.append(f"learning gained {summary['dice']['mean'] - best:+.3f} Dice over the best that is not learned")
    return "\n".join(lines)


def _row(name: str, score: Mapping[str, Any], auc: str) -> str:
    interval = f"{_number(score['low'])} - {_number(score['high'])}"
    return LINE.format(f"  {name}", _number(score["mean"]), interval, auc)


def _number(value: float | None) -> str:
    """Three decimals; a score that is undefined (one case, one class) is null in the summary."""
    return "n/a" if value is None else f"{value:.3f}"
