"""A training in a page: losses and validation over epochs, the epoch whose weights were kept, rates, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import read_checkpoint
from ..files import PathLike
from ..handlers.validation_montages import FOLDER, LABELS
from .pictures import pictures
from .record import described_weights
from .supervision import learned
from .tables import read_json, read_rows

LOG = "training_log.csv"
RECORD = "training.json"
PICTURES = 3_000_000  # bytes of all pictures on the page
OTHERS = ("epoch", "seconds")  # columns that are no curve


def build_training(folder: PathLike) -> dict[str, Any] | None:
    """Curves of a training's log, None where a folder holds none.

    Returns:
        `epochs`; `curves`, each with `name` and `y`, a value an epoch; `kept`: `epoch`, and `why` in words; `seconds`
        of all epochs; `montages`: of each validation case, `case`, `positive` (its label) and
        `pictures`, each with its `epoch`.
    """
    folder = Path(folder)
    rows = read_rows(folder / LOG)
    if not rows:
        return None
    names = [key for key in rows[0] if key not in OTHERS]
    return {
        "epochs": [int(row["epoch"]) for row in rows],
        "curves": [{"name": name.replace("_", " "), "y": [row.get(name) for row in rows]} for name in names],
        "kept": kept_epoch(rows, best=_best(folder)),
        "seconds": round(sum(row.get("seconds") or 0 for row in rows), 1),
        "montages": montages(folder / FOLDER, last=int(rows[-1]["epoch"])),
    }


def montages(folder: Path, *, last: int) -> list[dict[str, Any]]:
    """Pictures that `common.handlers.ValidationMontages` left, by case and epoch up to the last one of the log."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("[!.]*_epoch_*.png")):
        case, _, epoch = path.stem.rpartition("_epoch_")
        if epoch.isdigit() and int(epoch) <= last:
            found.setdefault(case, {})[int(epoch)] = path
    paths = [path for epochs in found.values() for path in epochs.values()]
    texts = dict(zip(paths, pictures(paths, most_bytes=PICTURES), strict=True))
    labels = read_json(folder / LABELS)
    return [
        {
            "case": case,
            "positive": labels.get(case),
            "pictures": [{"epoch": epoch, "picture": texts[path]} for epoch, path in sorted(epochs.items())],
        }
        for case, epochs in found.items()
    ]


def kept_epoch(rows: Sequence[Mapping[str, Any]], *, best: float | None) -> dict[str, Any]:
    """Which epoch's weights are those of `model.pt`, as `common.checkpoint.TrainingCheckpoint` keeps them.

    Args:
        rows: of the log.
        best: the highest value of the metric that decides; -inf where the last epoch counts; None: unknown.
    """
    last = {"epoch": int(rows[-1]["epoch"]), "why": "the last one"}
    if best is None:
        return last | {"epoch": None, "why": "not known: checkpoint.pt is not there"}
    if math.isinf(best):
        return last
    metrics = [key for key in rows[0] if key not in (*OTHERS, "loss", "learning_rate")]
    for name in metrics:
        # Of equals the later one, which has learned more.
        reached = [int(row["epoch"]) for row in rows if row.get(name) is not None and abs(row[name] - best) < 1e-5]
        if reached:
            title = "AUC" if name == "auc" else name.replace("_", " ")
            return {"epoch": reached[-1], "why": f"the highest {title} of validation, {best:.3f}"}
    return last | {"epoch": None, "why": "not known: the log lacks the metric that decided"}


def training_supervision(folder: PathLike) -> list[str]:
    """What a training was told, in sentences."""
    told = learned(described_weights(Path(folder) / "model.pt"))
    return told or ["What this training saw is not recorded in its folder."]


def _best(folder: Path) -> float | None:
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return None
    best = read_checkpoint(path).get("best")
    return None if best is None else float(best)
