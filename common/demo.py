"""The whole way on a phantom: yes/no labels in, training, heatmaps and masks out, scored beside trivial rivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .adapters import folder
from .data import make_datalist, write_datalist
from .phantom import write_phantom

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def run_bundle(bundle: str | Path, configs: list[str], **overrides: object) -> None:
    """`python -m monai.bundle run` in a process of its own, as a user would type it.

    Args:
        bundle: name under `bundles/`, or a path.
        configs: file names in the bundle's `configs/`, later ones override earlier ones.
        overrides: top-level keys.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    root = BUNDLES / bundle
    files = [str(root / "configs" / name) for name in configs]
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        files[0] if len(files) == 1 else str(files),
    ]
    command += ["--logging_file", str(root / "configs" / "logging.conf")]
    for key, value in overrides.items():
        # The command line reads Python literals, and drops what is None.
        command += [f"--{key}", "$None" if value is None else str(value)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    subprocess.run(command, check=True, env=environment)


def phantom_dataset(output_dir: str | Path, *, cases: int = 24, seed: int = 0) -> Path:
    """Write the phantom and its datalist (half training, a fifth validation, the rest test); returns the folder."""
    output_dir = Path(output_dir)
    write_phantom(output_dir, cases=cases, seed=seed)
    datalist = make_datalist(
        folder(output_dir),
        name="phantom",
        classes=["none", "tumour"],
        modalities=["flair"],
        dataset_dir=output_dir,
        fractions=(0.5, 0.2, 0.3),
        seed=seed,
    )
    write_datalist(output_dir / "datalist.json", datalist)
    return output_dir


def demo(output_dir: str = "demo", bundle: str = "gp_unet_brats", cases: int = 24, epochs: int = 0) -> None:
    """Train a bundle on a phantom from image-level labels alone, evaluate it, and print where everything is.

    Args:
        output_dir: gets the data, the training, the evaluation and the inference.
        bundle: name under `bundles/`.
        cases: phantom volumes.
        epochs: of training; 0 takes those of the bundle's `phantom.json`.
    """
    home = Path(output_dir).resolve()
    print(f"1/4  phantom data: {cases} volumes with known truth")
    data = str(phantom_dataset(home / "data", cases=cases))
    training, evaluation, inference = (str(home / name) for name in ("training", "evaluation", "inference"))
    more = {"max_epochs": epochs} if epochs else {}
    print("2/4  training from slice labels; no mask is opened")
    run_bundle(bundle, ["train.json", "phantom.json"], dataset_dir=data, output_dir=training, **more)
    ckpt = str(Path(training) / "model.pt")
    print("3/4  evaluation on unseen volumes")
    run_bundle(bundle, ["evaluate.json", "phantom.json"], dataset_dir=data, output_dir=evaluation, ckpt=ckpt)
    print("4/4  inference on all volumes, as on new ones")
    run_bundle(bundle, ["inference.json", "phantom.json"], dataset_dir=data, output_dir=inference, ckpt=ckpt)
    print(table(json.loads((Path(evaluation) / "summary.json").read_text())))
    print(f"heatmaps, masks, montage pictures and predictions.csv: {inference}")
    print(f"scores by case, with the truth outlined in the pictures: {evaluation}")


def table(summary: dict) -> str:
    """The comparison of a `summary.json` as text: Dice of the method and of its rivals, AUC where one exists."""
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
