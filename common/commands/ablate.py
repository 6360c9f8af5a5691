"""An ablation in one command: cross-validation of every variant of a bundle, and a table that compares them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import json_text, read_json, write, write_csv
from .crossvalidate import crossvalidate
from .run import names

SCORES = ("dice.mean", "dice_raw.mean", "volumes.method.auc", "parts.volumes.method.auc")


def ablate(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    *,
    variants: str,
    only: str | Sequence[str] = (),
    scores: str | Sequence[str] = SCORES,
    folds: int = 4,
    verbose: bool = False,
    **options: Any,
) -> None:
    """Cross-validate variants of a bundle on the same folds, and compare them.

    Written to `output_dir`: `<variant>/` as `crossvalidate` does, with its settings in `variant.json`, and `table.csv`:
    mean and standard deviation over folds of each score, a row a variant. What is finished is skipped.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the data.
        output_dir: gets all files.
        variants: JSON file, `{"name": {top-level key: value}}`. The keys reach training, choice and evaluation, and
            win over `options`.
        only: names of the variants to take, comma-separated; by default all.
        scores: names in `crossvalidation.json`, comma-separated; one that no variant has is left
            out. By default Dice of masks and of raw maps, and AUC of volumes.
        folds: number of folds.
        verbose: show on the console what otherwise goes to `<variant>/log.txt` alone.
        options: of `crossvalidate` (`scans`, `train`, `seed` …), and top-level keys for all variants.

    Example:
        `python -m common ablate gp_unet_brats DIR OUT --variants variants.json --folds 2`

    Raises:
        ValueError: `only` names a variant that there is not, or a variant was begun with other settings.
        RuntimeError: (after all others are done) some variants failed.
    """
    settings: dict[str, dict[str, Any]] = read_json(variants)
    if unknown := set(names(only)) - set(settings):
        raise ValueError(f"{variants} has no variants {sorted(unknown)}; it has {list(settings)}")
    home = Path(output_dir)
    results: dict[str, dict] = {}
    failed: list[str] = []
    for name in names(only) or settings:
        given = {"folds": folds, **options, **settings[name]}
        _keep(home / name / "variant.json", given)
        print(f"variant {name}: {settings[name]}")
        try:
            crossvalidate(bundle, dataset_dir, str(home / name), verbose=verbose, **given)
        except subprocess.CalledProcessError:  # the run has said why
            failed.append(name)
            continue
        results[name] = read_json(home / name / "crossvalidation.json")
    shown = [score for score in names(scores) if any(score in result for result in results.values())]
    write_csv(home / "table.csv", [{"variant": name, **_row(result, shown)} for name, result in results.items()])
    print(table(results, shown))
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(results) + len(failed)} variants failed: {', '.join(failed)}")


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]], scores: Sequence[str]) -> str:
    """Mean ± standard deviation of each score, a line a variant; `-` where a variant has none."""
    rows = [["variant", *scores]]
    for name, result in results.items():
        found = [result.get(score) for score in scores]
        rows.append([name, *(f"{score['mean']:.3f} ± {score['std']:.3f}" if score else "-" for score in found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _row(result: Mapping[str, Mapping[str, float]], scores: Sequence[str]) -> dict[str, float]:
    present = [score for score in scores if score in result]
    return {f"{score.removesuffix('.mean')}.{key}": result[score][key] for score in present for key in ("mean", "std")}


def _keep(path: Path, given: Mapping[str, Any]) -> None:
    """Write a variant's settings, unless its folds were begun with these already."""
    text = json_text(given)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path.parent} was begun with other settings; remove it, or name the variant otherwise")
    write(path, text)
