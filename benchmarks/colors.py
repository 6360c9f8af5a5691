"""What color alone finds on slides, fitted on outlines of training slides: `python -m benchmarks colors DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from skimage.color import rgb2hed

from common import masks
from common.commands.run import BUNDLES
from common.data import cases, multi_hot
from common.files import read_json, write_json
from common.metrics import roc_auc

from .heads import Found, scores

ROOT = BUNDLES / "insight_ct"
COLORS = ("hematoxylin", "darkness")
QUANTILES = (*np.linspace(0.0, 0.99, 100), 0.995, 0.999)  # of all training tissue: the thresholds
OF_SLIDE = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # quantiles of a slide's tissue: the scores to choose from


def benchmark_colors(
    dataset_dir: str, output: str | None = None, datalist: str | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Mark what has much, or little, of a color; no network, and no gate.

    Colors are means of cells: hematoxylin by scikit-image's deconvolution, and 1 minus the mean of red, green and blue.
    They are smoothed in the tissue as the heat of the shipped weights is. On outlines of training slides sign and
    threshold with the best mean Dice are chosen; on their labels the sign and the quantile in the tissue that orders
    slides best. The test section scores.

    Args:
        dataset_dir: folder of the slides; those labeled ill have outlines in both sections.
        output: JSON file for the rows.
        datalist: by default `datalist.json` in `dataset_dir`.
        settings: top-level keys of `wsi.json`, e.g. `--mpp 2`.

    Raises:
        ValueError: no training slide has an outline, or all have the same label.

    Returns:
        A row a color, see `fitted`, and one of all tissue.
    """
    listed = str(datalist or Path(dataset_dir) / "datalist.json")
    sys.path.insert(0, str(ROOT))
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("train.json", "wsi.json")])
    parser.update({"threads": 1, **settings})
    tiler, classes = parser.get_parsed_content("preprocessing"), read_json(listed)["classes"]
    smooth_um = read_json(ROOT / "configs" / "wsi_calibrate.json")["smooth_um"]
    training, tested = (
        [colored(case, tiler, classes, smooth_um) for case in cases(dataset_dir, "", datalist=listed, section=section)]
        for section in ("training", "test")
    )
    rows = []
    for k, name in enumerate(COLORS):
        own = [[one_of(each, k) for each in part] for part in (training, tested)]
        rows.append({"color": name, **fitted(*own)})
    alike = [replace(each, heat=np.ones_like(each.heat[:1]), probability=np.zeros(1)) for each in tested]
    rows.append({"color": "all tissue", **told(alike, 0.0)})
    for row in rows:
        print(line_of(row), flush=True)
    if output:
        write_json(output, rows)
    return rows


def colored(case: dict[str, Any], tiler: Any, classes: Sequence[str], smooth_um: float, cells: int = 14) -> Found:
    """A slide's smoothed colors in place of heat, `[2, rows, columns]`; its label is whether it has any."""
    from scripts.slides.output import smooth_cells  # type: ignore[import-not-found]
    from scripts.slides.truth import polygons_to_cells, read_polygons  # type: ignore[import-not-found]

    tiled = tiler(case["image"], cells=cells)
    try:
        raw = np.zeros((len(COLORS), *tiled.grid.shape), np.float32)
        for number, (row, column) in enumerate(tiled.corners.tolist()):
            pixels = np.moveaxis(tiled.tiles[number : number + 1][0].numpy(), 0, -1)
            raw[:, row : row + cells, column : column + cells] = cell_colors(pixels, cells)
    finally:
        tiled.slide.close()
    inside = tiled.coverage > 0.5
    colors = smooth_cells(raw, inside, smooth_um / tiled.grid.cell_um, np.zeros_like(raw))
    ill = bool(np.any(multi_hot(case["cls"], classes)))
    truth = None if ill else np.zeros(inside.shape, bool)
    if "label" in case:
        truth = polygons_to_cells(read_polygons(case["label"]), shape=inside.shape, cell_px=tiled.grid.cell_px)
    return Found(np.array([ill]), np.zeros(1), colors, inside, truth)


def cell_colors(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Mean hematoxylin and darkness, `[2, cells, cells]`, of a tile `[side, side, 3]` in [0, 1]."""
    colors = np.stack([rgb2hed(pixels)[..., 0], 1 - pixels.mean(axis=-1)])
    part = pixels.shape[0] // cells
    return colors.reshape(len(COLORS), cells, part, cells, part).mean(axis=(2, 4))


def one_of(found: Found, color: int, sign: int = 1) -> Found:
    """The slide with one of its colors, or the opposite of it, as heat."""
    return replace(found, heat=sign * found.heat[color : color + 1])


def fitted(training: Sequence[Found], tested: Sequence[Found]) -> dict[str, Any]:
    """The signs, threshold and quantile that are best in training, how good they are there, and `told` of the test."""
    cells = [(*best_threshold([one_of(each, 0, sign) for each in training]), sign) for sign in (1, -1)]
    overlap, threshold, sign = max(cells)
    labels = [bool(each.labels[0]) for each in training]
    if len(set(labels)) < 2:
        raise ValueError("all training slides have the same label: no order of slides can be fitted")
    slides = [(roc_auc([of_slide(each, s, q) for each in training], labels), q, s) for s in (1, -1) for q in OF_SLIDE]
    area, quantile, turned = max(slides)
    shown = [replace(one_of(x, 0, sign), probability=np.array([of_slide(x, turned, quantile)])) for x in tested]
    row = {"sign": sign, "threshold": threshold, "dice_training": overlap}
    return row | {"sign_of_slide": turned, "quantile": quantile, "auc_training": area} | told(shown, threshold)


def best_threshold(found: Sequence[Found]) -> tuple[float, float]:
    """The best mean Dice on slides with outlines, and the threshold that gives it; see `common.masks`."""
    outlined = [one for one in found if one.overlap(one.inside) is not None]
    if not outlined:
        raise ValueError("no training slide has an outline: nothing to fit a color to")
    candidates = np.quantile(np.concatenate([one.heat[0][one.inside] for one in found]), QUANTILES)
    heats = [np.where(one.inside, one.heat[0], candidates[0] - 1) for one in outlined]
    truths = [np.asarray(one.truth) for one in outlined]
    threshold, overlap = masks.best_threshold(heats, truths, candidates)
    return overlap, threshold


def of_slide(found: Found, sign: int, quantile: float) -> float:
    """A slide's score: a quantile of the color, or of its opposite, in the tissue."""
    return float(np.quantile(sign * found.heat[0][found.inside], quantile))


def told(found: Sequence[Found], threshold: float) -> dict[str, Any]:
    """`auc`, `mean` and `std` of Dice, and `marked`, the mean share of tissue in healthy slides; as in `heads`."""
    given = scores(found, [-np.inf], {"fit": [threshold]})
    return {"auc": given["auc"]} | {key: given["fit"].get(key) for key in ("mean", "std", "marked")}


def line_of(row: dict[str, Any]) -> str:
    """The row as a line of a Markdown table."""
    numbers = [("auc", ".3f"), ("mean", ".3f"), ("std", ".3f"), ("marked", ".1%")]
    area, mean, std, marked = ("n/a" if row[key] is None else f"{row[key]:{form}}" for key, form in numbers)
    return f"| {row['color']} | {area} | {mean} ± {std} | {marked} |"
