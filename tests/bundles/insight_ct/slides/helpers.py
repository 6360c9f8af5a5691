"""Slides whose lesions are known, and a network that knows their color."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from tests.bundles.conftest import load_script

TILE = 256
GLASS, TISSUE, LESION = (244, 243, 245), (230, 160, 200), (90, 40, 140)
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the finest level
TISSUE_BOX: Box = (350, 400, 2100, 1950)
LESIONS: tuple[Box, ...] = ((600, 700, 1100, 900), (1500, 1300, 1600, 1800))


def write_slide(
    path: Path,
    size: tuple[int, int],
    *,
    tissue: Sequence[Box] = (),
    lesions: Sequence[Box] = (),
    mpp: float | None = 0.5,
    levels: int = 3,
    colors: Sequence[tuple[int, int, int]] = (GLASS, TISSUE, LESION),
    step: int = 4,
) -> Path:
    """A tiled pyramid of flat colors, each level `step` times smaller; `size` is `(width, height)`.

    A tile is packed once for each pattern, so that a large slide is written in a moment.
    """
    packed: dict[bytes, bytes] = {}

    def tiles(width: int, height: int, scale: int) -> Iterator[bytes]:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                kind = np.zeros((TILE, TILE), np.uint8)
                for value, boxes in ((1, tissue), (2, lesions)):
                    for box in boxes:
                        x0, y0, x1, y1 = (round(edge / scale) for edge in box)
                        kind[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = value
                key = kind.tobytes() if kind.any() else b""
                if key not in packed:
                    packed[key] = zlib.compress(np.asarray(colors, np.uint8)[kind].tobytes(), 1)
                yield packed[key]

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            scale = step**level
            width, height = size[0] // scale, size[1] // scale
            known: dict[str, Any] = {}
            if mpp is not None:
                known = {"resolution": (1e4 / (mpp * scale),) * 2, "resolutionunit": "CENTIMETER"}
            file.write(
                tiles(width, height, scale),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="rgb",
                subfiletype=int(level > 0),
                metadata=None,
                **known,
            )
    return path


def slide_case(folder: Path, name: str = "a", cls: Any = 1, *, side: int = 2500, **options: Any) -> dict[str, Any]:
    """A case of `side` × `side` pixels, 2500 of 0.5 µm or fewer that are larger; boxes are in pixels of 0.5 µm."""
    options = {"tissue": [TISSUE_BOX], "lesions": LESIONS if cls else (), "mpp": 0.5 * 2500 / side} | options
    options |= {key: [scaled(box, side / 2500) for box in options[key]] for key in ("tissue", "lesions")}
    path = write_slide(folder / f"{name}.tif", (side, side), **options)
    return {"case": name, "patient": name, "image": str(path), "cls": cls}


def scaled(box: Box, factor: float) -> Box:
    """The box in pixels of another size."""
    left, top, right, bottom = (round(edge * factor) for edge in box)
    return left, top, right, bottom


class ColorEncoder(nn.Module):
    """The mean color of each cell; 16 × 16 cells a tile."""

    channels = 3
    fingerprint = "c0104a" * 10

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros(1), persistent=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 16, 16

    def forward(self, image: Tensor) -> Tensor:
        self.calls += len(image)
        return nn.functional.adaptive_avg_pool2d(image, 16)


class ColorHead(nn.Module):
    """Heat of label k: 1 at the lesion's color, 0 at the tissue's; label 2, if any, has none."""

    in_channels, pooling, alpha, otsu = 3, "max", 1.0, False

    def __init__(self, num_labels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.weight = nn.Parameter(torch.zeros(1))

    def heatmap(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        green = 255 * features[:, 1:2]
        heat = ((TISSUE[1] - green) / (TISSUE[1] - LESION[1])).clamp(0, 1)
        heat = torch.cat([heat, *[torch.zeros_like(heat)] * (self.num_labels - 1)], dim=1)
        return heat if inside is None else heat.masked_fill(inside <= 0.5, 0.0)

    def stream(self) -> Any:
        return load_script("insight_ct", "networks").HeatmapStream(self)


def write_annotation(path: Path, polygons: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Path:
    """ASAP's XML: groups and corners in pixels of the finest level."""
    parts = []
    for number, (group, corners) in enumerate(polygons):
        points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
        head = f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
        parts.append(f"{head}<Coordinates>{points}</Coordinates></Annotation>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<ASAP_Annotations><Annotations>{''.join(parts)}</Annotations></ASAP_Annotations>", encoding="utf-8"
    )
    return path


def corners_of(box: Box, side: int = 2500) -> list[tuple[float, float]]:
    """Of a box in pixels of 0.5 µm, in pixels of a `slide_case` of that side."""
    x0, y0, x1, y1 = scaled(box, side / 2500)
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def color_network(num_labels: int = 1) -> nn.Module:
    return load_script("insight_ct", "networks").Insight(ColorEncoder(), ColorHead(num_labels))


def run_slides(
    cases: Sequence[dict],
    output_dir: Path,
    *,
    classes: Sequence[str] = ("none", "tumor"),
    pictures: bool = False,
    **options: Any,
):
    """The evaluator over some slides with the color network; returns it after the run.

    Pictures of slides as small as these are drawn from their finest level: without them it takes a third of the time.
    """
    inference, tiles = load_script("insight_ct", "slides.inference"), load_script("insight_ct", "slides.tiles")
    truth = load_script("insight_ct", "slides.truth")
    tiler = tiles.Tiler(**options.pop("tiler", {}))
    writer = inference.SlideWriter(output_dir, classes=classes, save_overlay=pictures, save_cells=pictures)
    handlers = [writer, *options.pop("handlers", ())]
    if any("cls" in case for case in cases):
        handlers.append(truth.SlideScores(output_dir, classes=classes, resamples=20))
    evaluator = inference.SlideEvaluator(
        "cpu",
        inference.SlideDataset(cases, classes=classes),
        options.pop("network", None) or color_network(len(classes) - 1),
        inferer=inference.SlideInferer(tiler, tiles_dir=output_dir if pictures else None, **options),
        val_handlers=handlers,
        progress=False,
    )
    evaluator.run()
    return evaluator
