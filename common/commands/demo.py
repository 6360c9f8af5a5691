"""The whole way on a phantom: yes/no labels in, masks out, scored beside trivial baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .arguments import read_json
from .fit import fit
from .phantom import phantom_dataset
from .run import bundle_root


def demo(output_dir: str = "demo", bundle: str = "gp_unet_brats", cases: int = 24, epochs: int = 0) -> None:
    """Train a bundle on a phantom from yes/no labels, as `fit` does it, and score it beside what needs no network.

    Args:
        output_dir: gets the data, and what `fit` writes.
        bundle: name under `bundles/`.
        cases: phantom volumes.
        epochs: of training; 0 takes those of the bundle's `phantom.json`.

    Example:
        `python -m common demo --output_dir demo --bundle tonno_mosmed`
    """
    bundle_root(bundle)  # before anything is written
    home = Path(output_dir).resolve()
    print(f"phantom data: {cases} volumes with known truth; no mask is opened before the scores")
    data = phantom_dataset(home / "data", cases=cases)
    more: dict[str, Any] = {"max_epochs": epochs} if epochs else {}
    fit(bundle, str(data), str(home), configs="phantom.json", rounds=0, **more)
    print(table(read_json(home / "evaluation" / "summary.json")))
    print(f"scores by case, with the truth outlined in the pictures: {home / 'evaluation'}")


def table(summary: dict) -> str:
    """The comparison of a `summary.json` as text: Dice of the method and of its baselines, AUC where one exists."""
    auc = _number(summary["slices"]["auc"])
    rows = [
        ("method (mask)", "dice", auc),
        ("method (raw map)", "dice_raw", auc),
        ("empty mask", "dice_empty", "0.500"),
        ("intensity threshold", "dice_baseline_threshold", "-"),
        ("threshold, gated by the method", "dice_baseline_gated", auc),
        ("threshold without thin parts", "dice_baseline_opened", "-"),
        ("the same, gated by the method", "dice_baseline_opened_gated", auc),
    ]
    lines = [f"{'':32}{'3D Dice':>9}  {'95 % interval':16}{'slice AUC':>9}"]
    for name, key, shown_auc in rows:
        if key in summary:
            score = summary[key]
            interval = f"{_number(score['low'])} - {_number(score['high'])}"
            lines.append(f"{name:32}{_number(score['mean']):>9}  {interval:16}{shown_auc:>9}")
    position = summary["slices"].get("auc_position_alone")
    if position is not None:
        lines.append(f"{'slice position alone':32}{'-':>9}  {'-':16}{position:>9.3f}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Three decimals; a score that is undefined (one case, one class) is null in the summary."""
    return "n/a" if value is None else f"{value:.3f}"
