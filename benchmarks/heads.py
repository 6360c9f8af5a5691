"""INSIGHT beside other heads and without its parts, on the same slides: `python -m benchmarks heads DIR OUT`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from common.checkpoint import load_weights
from common.commands.fit import calibration_section
from common.commands.fit_checks import IMAGES, MASKS, check_data, data_digests
from common.commands.fit_request import check_same
from common.commands.own_bundle import slide_settings
from common.commands.run import BUNDLES, names
from common.data import cases, multi_hot
from common.engines.settings import tops
from common.files import read_json, write_json
from common.masks import choose_gate, heat_threshold
from common.metrics import dice, roc_auc

ROOT = BUNDLES / "insight_ct"
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
# Thresholds that compete for the best Dice on masks of validation: quantiles of the heat in all of its tissue.
QUANTILES = (*np.linspace(0.5, 0.99, 50), 0.995, 0.999)


@dataclass(frozen=True)
class Found:
    """What a network says of a slide, and what is true.

    Attributes:
        labels, probability: `[K]`.
        heat: `[K, rows, columns]`.
        inside: `[rows, columns]` bool, the tissue.
        truth: `[rows, columns]` bool, any label; None where it is not known.
    """

    labels: np.ndarray
    probability: np.ndarray
    heat: np.ndarray
    inside: np.ndarray
    truth: np.ndarray | None

    def mask(self, gates: Sequence[float], thresholds: Sequence[float]) -> np.ndarray:
        """`[rows, columns]` bool: any label's heat above its threshold, of the labels that pass their gates."""
        limits = np.where(self.probability >= gates, thresholds, np.inf)
        return (self.heat > limits[:, None, None]).any(axis=0) & self.inside

    def overlap(self, mask: np.ndarray) -> float | None:
        """Dice of a mask; None where there is no outline."""
        return dice(mask, self.truth) if self.truth is not None and self.truth.any() else None


def benchmark_heads(
    dataset_dir: str,
    output_dir: str,
    datalist: str | None = None,
    only: str | Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train each head on labeled slides and score the test section; one stage, all in this process.

    Gate and threshold come from labels as `fit` chooses them; beside that stands, behind the same gate, the threshold
    with the best Dice on the outlines of validation slides. What is finished is skipped. Features are computed once,
    into `--store_dir`.

    Args:
        dataset_dir: folder of the slides.
        output_dir: gets `<variant>_<seed>/`.
        datalist: by default `datalist.json` in `dataset_dir`.
        only: names of the variants to take, comma-separated; by default all.
        seeds: of the training.
        settings: top-level keys of `wsi.json` for all variants, e.g. `--max_epochs 3`.

    Returns:
        A row a variant, see `row_of`.

    Raises:
        ValueError: a setting that no config of slides has, or data that cannot be trained on.
    """
    listed = Path(datalist or Path(dataset_dir) / "datalist.json").resolve()
    content = read_json(listed)
    check_data(listed, content, dataset_dir)
    digests = data_digests(listed, dataset_dir)
    if unknown := tops(settings) - slide_settings(ROOT):
        raise ValueError(f"no config of slides has {sorted(unknown)}; wsi.json and train.json name the settings")
    store = settings.pop("store_dir", None) or Path(dataset_dir) / "features"
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "datalist": str(listed), "progress": False}
    shared["store_dir"] = str(Path(store).resolve())
    sys.path.insert(0, str(ROOT))
    rows: list[dict[str, Any]] = []
    tilers: dict[str, Any] = {}
    for name in names(only) or VARIANTS:
        found = []
        for seed in seeds:
            home = Path(output_dir).resolve() / f"{name}_{seed}"
            given = {**settings, **VARIANTS[name], "seed": seed, "classes": content["classes"]}
            check_same(home, {**digests, "settings": given}, newer=(IMAGES, MASKS))
            result = home / "scores.json"
            if not result.is_file():
                options = {**given, **shared, "output_dir": str(home)}
                write_json(result, _scored(options, calibration_section(content), tilers))
            found.append(read_json(result))
        rows.append(row_of(name, found))
        print(line_of(rows[-1]), flush=True)
    return rows


def _scored(settings: Mapping[str, Any], section: str, tilers: dict[str, Any]) -> dict[str, Any]:
    """Train with these settings, choose on a section, score the test section."""
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("train.json", "wsi.json")])
    parser.update(dict(settings))
    set_determinism(seed=settings["seed"])
    parser.get_parsed_content("train#trainer").run()
    set_determinism(seed=None)
    network = load_weights(parser.get_parsed_content("network_def"), Path(settings["output_dir"]) / "model.pt").eval()
    from scripts.slides.inference import SlideInferer  # type: ignore[import-not-found]

    calibrate = read_json(ROOT / "configs" / "wsi_calibrate.json")
    tiler = parser.get_parsed_content("preprocessing")
    inferer = SlideInferer(
        tilers.setdefault(tiler.recipe, RememberedTiles(tiler)),
        smooth_um=calibrate["smooth_um"],
        binarize="fixed",
        store=parser.get_parsed_content("store"),
    )
    where = {"image_pattern": "", "datalist": settings["datalist"]}
    chosen, tested = (
        [
            _found(inferer, network, case, settings["classes"])
            for case in cases(settings["dataset_dir"], section=part, **where)
        ]
        for part in (section, "test")
    )
    gates = [gate_of(chosen, k, calibrate["sensitivity"]) for k in range(len(settings["classes"]) - 1)]
    limits = {
        "labels": thresholds_from_labels(chosen, calibrate["heat_quantile"]),
        "masks": thresholds_from_masks(chosen, gates),
    }
    return scores(tested, gates, limits)


class RememberedTiles:
    """A tiler that looks at each slide once. Its slides are closed: features of them are stored.

    Args:
        tiler: `scripts.slides.tiles.Tiler`.
    """

    def __init__(self, tiler: Any) -> None:
        self.tiler = tiler
        self.tile_px, self.recipe = tiler.tile_px, tiler.recipe
        self.known: dict[tuple[str, int], Any] = {}

    def __call__(self, path: str, *, cells: int) -> Any:
        if (path, cells) not in self.known:
            tiled = self.tiler(path, cells=cells)
            tiled.slide.close()
            self.known[path, cells] = replace(tiled, slide=BytesIO())  # may be closed again
        return self.known[path, cells]


def _found(inferer: Any, network: Any, case: Mapping[str, Any], classes: Sequence[str]) -> Found:
    labels = np.array(multi_hot(case["cls"], classes))
    result = inferer({**case, "labels": labels}, network)
    rows, columns = result.inside.shape
    heat = np.array(result.heat[:, :rows, :columns], np.float32)
    truth = None if result.truth is None else result.truth[:rows, :columns]
    found = Found(labels, np.array(result.probability), heat, result.inside, truth)
    inferer.close()
    return found


def gate_of(found: Sequence[Found], label: int, sensitivity: float) -> float:
    """The gate that `fit` chooses; 0 where it refuses, as the probabilities are no higher in positives."""
    labels, probability = (np.array([getattr(one, key)[label] for one in found]) for key in ("labels", "probability"))
    try:
        return choose_gate(probability, labels, sensitivity=sensitivity)
    except ValueError:
        return 0.0


def thresholds_from_labels(found: Sequence[Found], quantile: float) -> list[float]:
    """For each label a quantile of the heat in the tissue of slides without it."""
    return [
        heat_threshold([one.heat[k][one.inside] for one in found if not one.labels[k]], quantile)
        for k in range(len(found[0].labels))
    ]


def thresholds_from_masks(found: Sequence[Found], gates: Sequence[float]) -> list[float] | None:
    """The thresholds, one quantile of the heat for all labels, with the best mean Dice on slides with outlines."""
    outlined = [one for one in found if one.overlap(one.inside) is not None]
    if not outlined:
        return None
    heat = np.concatenate([one.heat[:, one.inside] for one in found], axis=1)
    candidates = np.quantile(heat, QUANTILES, axis=1)
    means = [np.mean([one.overlap(one.mask(gates, limits)) for one in outlined]) for limits in candidates]
    return candidates[int(np.argmax(means))].tolist()


def scores(
    found: Sequence[Found], gates: Sequence[float], limits: Mapping[str, Sequence[float] | None]
) -> dict[str, Any]:
    """AUC, mean over labels, and for each way to choose thresholds Dice and the tissue marked where nothing is.

    Args:
        found: of the slides that score.
        gates: K.
        limits: thresholds by the way in which they were chosen; None where they could not be.

    Returns:
        `auc`, and for each way `mean` and `std` of Dice over the slides with outlines, and `marked`, the mean share of
        tissue in slides without a label. None where there is no such slide.
    """
    labels, probability = (np.stack([getattr(one, key) for one in found]) for key in ("labels", "probability"))
    areas = [roc_auc(p, y) for p, y in zip(probability.T, labels.T, strict=True) if 0 < y.sum() < len(y)]
    told: dict[str, Any] = {"auc": float(np.mean(areas)) if areas else None, "gates": list(gates)}
    for way, thresholds in limits.items():
        if thresholds is None:
            continue
        masks = [(one, one.mask(gates, thresholds)) for one in found]
        overlaps = [value for one, mask in masks if (value := one.overlap(mask)) is not None]
        shares = [mask.sum() / max(1, one.inside.sum()) for one, mask in masks if not one.labels.any()]
        told[way] = {"thresholds": list(thresholds), "marked": float(np.mean(shares)) if shares else None}
        told[way] |= {"mean": float(np.mean(overlaps)), "std": float(np.std(overlaps))} if overlaps else {}
    return told


def row_of(name: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A variant's row from the `scores` of its seeds: AUC of each, all else averaged over them."""
    row: dict[str, Any] = {"variant": name, "auc": [one["auc"] for one in found]}
    for way in ("labels", "masks"):
        parts = [one.get(way, {}) for one in found]
        for key in ("mean", "std", "marked"):
            values = [part.get(key) for part in parts]
            row[f"{way}_{key}"] = None if None in values else float(np.mean(values))
    return row


def line_of(row: Mapping[str, Any]) -> str:
    """The row as a line of a Markdown table: Dice and tissue marked, by thresholds from labels and from masks."""

    def shown(value: float | None, form: str) -> str:
        return "n/a" if value is None else f"{value:{form}}"

    areas = ", ".join(shown(area, ".3f") for area in row["auc"])
    dices = [f"{shown(row[f'{way}_mean'], '.3f')} ± {shown(row[f'{way}_std'], '.3f')}" for way in ("labels", "masks")]
    marked = ", ".join(shown(row[f"{way}_marked"], ".1%") for way in ("labels", "masks"))
    return f"| {row['variant']} | {len(row['auc'])} | {areas} | {dices[0]} | {dices[1]} | {marked} |"
