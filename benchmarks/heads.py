"""INSIGHT beside other heads and without its parts, on the same slides: `python -m benchmarks heads DIR OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.commands.arguments import read_json
from common.commands.fit import calibration_section, check_data, check_same
from common.commands.fit_runs import SLIDES, learn, once
from common.commands.own_bundle import make_slide_bundle
from common.commands.run import names
from common.files import file_digest

# Settings of each row; a head of the others ignores what is INSIGHT's alone.
VARIANTS: dict[str, dict[str, Any]] = {
    "insight": {},
    "no_context": {"context": False},
    "no_regularizer": {"decoupling": 0.0},
    "max_pooling": {"pooling": "max"},
    "mean_pooling": {"pooling": "avg"},
    "not_standardized": {"standardize": False},
    "abmil": {"head_name": "abmil"},
    "clam_sb": {"head_name": "clam_sb"},
    "clam_mb": {"head_name": "clam_mb"},
    "transmil": {"head_name": "transmil"},
}


def benchmark_heads(
    dataset_dir: str,
    output_dir: str,
    datalist: str | None = None,
    only: str | Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train each head on labeled slides, choose gate and threshold from labels, score the test section; one stage.

    What is finished is skipped. Features are computed once, into `--store_dir`.

    Args:
        dataset_dir: folder of the slides.
        output_dir: gets `<variant>_<seed>/`.
        datalist: by default `datalist.json` in `dataset_dir`.
        only: names of the variants to take, comma-separated; by default all.
        seeds: of the training.
        settings: top-level keys of `wsi.json` for all variants, e.g. `--max_epochs 3`.

    Returns:
        A row a variant: AUC of each seed, and over the ill slides Dice, mean and standard deviation, averaged over
        seeds, and the tissue marked in slides without the finding.
    """
    listed = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    content = read_json(listed)
    check_data(listed, content, dataset_dir)
    store = settings.pop("store_dir", None) or Path(dataset_dir) / "features"
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "datalist": str(listed)}
    shared["store_dir"] = str(Path(store).resolve())
    rows = []
    for name in names(only) or VARIANTS:
        found = []
        for seed in seeds:
            home = Path(output_dir).resolve() / f"{name}_{seed}"
            given = {**settings, **VARIANTS[name], "seed": seed, "classes": content["classes"]}
            check_same(home, {"datalist_sha256": file_digest(listed), "settings": given})
            target = home / "insight_ct"
            own = make_slide_bundle("insight_ct", target, over=(), settings=given, datalist=listed, counts="")
            best = learn(own, home, 0, calibration_section(content), shared, SLIDES)
            scores = home / "evaluation" / SLIDES.scores
            chosen = {**shared, "ckpt": str(best), "section": "test"}
            once(scores, f"{name}, seed {seed}: scores of the test section", own, SLIDES, SLIDES.evaluate, **chosen)
            found.append(read_json(scores))
        rows.append(row_of(name, found))
        print(line_of(rows[-1]), flush=True)
    return rows


def row_of(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A variant's row from the `summary.json` of its seeds."""
    marked = [label["tissue_in_negatives"] for scores in found for label in scores["labels"].values()]
    row: dict[str, Any] = {"variant": name, "auc": [scores.get("auc_macro") for scores in found]}
    if all("dice" in scores for scores in found):
        row |= {key: float(np.mean([scores["dice"][key] or 0.0 for scores in found])) for key in ("mean", "std")}
    return row | {"marked": float(np.mean([share or 0.0 for share in marked]))}


def line_of(row: dict[str, Any]) -> str:
    """The row as a line of a Markdown table."""
    areas = ", ".join("n/a" if area is None else f"{area:.3f}" for area in row["auc"])
    dice = f"{row['mean']:.3f} ± {row['std']:.3f}" if "mean" in row else "n/a"
    return f"| {row['variant']} | {len(row['auc'])} | {areas} | {dice} | {100 * row['marked']:.1f} % |"
