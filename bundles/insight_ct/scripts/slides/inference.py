"""Whole slides: tiles in, probability, heat and mask out; `CaseEvaluator` skips and names a bad one."""

from __future__ import annotations

import io
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common.data import multi_hot
from common.engines import CaseDataset, CaseEvaluator
from common.features import FeatureStore, encode_batches
from common.files import atomic_path
from common.handlers import PredictionWriter

from .bags import grid_of, stored_features
from .output import HeatCanvas, class_mask, on_disk, otsu_of_cells, overlay, smooth_cells, write_pyramid
from .tiles import TiledSlide, Tiler
from .truth import polygons_to_cells, read_polygons


@dataclass
class SlideResult:
    """What was found on a slide; its arrays lie in files that exist until the next slide.

    Attributes:
        case: entry of the datalist.
        tiled: the slide and its tiles.
        folder: for files in the making.
        probability: `[K]`.
        heat: `[K, rows, columns]` in [0, 1], smoothed.
        levels: how often `rows` and `columns` can be halved, and one.
        inside: `[cells of the grid]` bool, where tissue is.
        thresholds: K, of the heat.
        mask: `[rows, columns]` uint8, k + 1 for label k.
        truth: `[rows, columns]` bool, where known.
    """

    case: Mapping[str, Any]
    tiled: TiledSlide
    folder: Path
    probability: np.ndarray
    heat: np.ndarray
    levels: int
    inside: np.ndarray
    thresholds: list[float]
    mask: np.ndarray
    truth: np.ndarray | None


class SlideInferer:
    """From the file of a slide to its heat and mask, in memory that does not grow with the slide.

    Args:
        tiler: opens slides and chooses tiles.
        batch_size: tiles at once.
        gate: a label with a lower probability has an empty mask: Otsu's method would find something on any slide. One
            number, or one for each label.
        smooth_um: sigma of a Gaussian, in micrometers of the slide, that the heat is smoothed with inside the tissue.
            The probability is of the heat before.
        binarize: `otsu` of the tissue's heat, or `fixed`.
        threshold: for `fixed`; one number, or one for each label.
        store: a `FeatureStore` from which features are taken and where they are kept; None computes and forgets them.
        tiles_dir: where `<case>_tiles.png` goes, before the network runs; None: nowhere.
        truth: read the polygons of cases that have them.
        work_dir: folder for temporary files, about 16 bytes a cell; None: the system's.
    """

    def __init__(
        self,
        tiler: Tiler,
        *,
        batch_size: int = 32,
        gate: float | Sequence[float] = 0.5,
        smooth_um: float = 0.0,
        binarize: Literal["otsu", "fixed"] = "otsu",
        threshold: float | Sequence[float] = 0.5,
        store: FeatureStore | None = None,
        tiles_dir: str | Path | None = None,
        truth: bool = True,
        work_dir: str | Path | None = None,
    ) -> None:
        if binarize not in ("otsu", "fixed"):
            raise ValueError(f"binarize must be 'otsu' or 'fixed', got {binarize!r}")
        self.tiler = tiler
        self.batch_size = batch_size
        self.gate = gate
        self.smooth_um = smooth_um
        self.binarize = binarize
        self.threshold = threshold
        self.store = store
        self.tiles_dir = tiles_dir
        self.truth = truth
        self.work_dir = work_dir
        self._open = ExitStack()

    def close(self) -> None:
        """Close the slide and remove the files of the last result."""
        self._open.close()

    def __call__(self, case: Mapping[str, Any], network: nn.Module) -> SlideResult:
        """Run an `Insight` network on `case["image"]`.

        Raises:
            ValueError: the slide cannot be read, or holds no tissue; the polygons cannot be read.
        """
        self.close()
        tiled = self.tiler(case["image"], cells=grid_of(network.encoder, self.tiler.tile_px))
        self._open.callback(tiled.slide.close)
        if self.tiles_dir is not None:
            with atomic_path(Path(self.tiles_dir) / f"{case['case']}_tiles.png") as path:
                tiled.picture().save(path, compress_level=1)  # stained tissue hardly packs
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(dir=self.work_dir)))
        canvas = HeatCanvas(folder, tiled.grid.shape, network.num_labels)  # type: ignore[arg-type]
        stream = network.head.stream()  # type: ignore[operator, union-attr]
        for index, features, inside in self._features(case, tiled, network):
            heat = stream.update(features, inside)
            canvas.add(heat.cpu().numpy(), tiled.corners[index])
        probability = stream.compute().cpu().numpy()
        heat = canvas.finish()
        inside = tiled.coverage > 0.5
        if self.smooth_um > 0:
            sigma, raw = self.smooth_um / tiled.grid.cell_um, heat
            heat = smooth_cells(raw, inside, sigma, on_disk(folder / "smooth", raw.shape, np.float32))
        limits = zip(*(np.broadcast_to(v, len(heat)) for v in (self.gate, self.threshold)), strict=True)
        thresholds = [self._threshold(p, h, inside, *two) for p, h, two in zip(probability, heat, limits, strict=True)]
        mask = class_mask(heat, inside, thresholds, on_disk(folder / "mask", heat.shape[1:], np.uint8))
        truth = self._truth(case, tiled, mask.shape) if self.truth else None
        return SlideResult(case, tiled, folder, probability, heat, canvas.levels, inside, thresholds, mask, truth)

    def _features(
        self, case: Mapping[str, Any], tiled: TiledSlide, network: nn.Module
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        device = next(network.parameters()).device
        indices = [slice(i, i + self.batch_size) for i in range(0, len(tiled.tiles), self.batch_size)]
        if self.store is None:
            parts = encode_batches(network.encoder, tiled.tiles, self.batch_size)  # type: ignore[arg-type]
            for index, features in zip(indices, parts, strict=True):
                yield index, features, tiled.inside(index).to(device)
            return
        entry = stored_features(self.store, case, tiled, self.tiler, network.encoder, batch_size=self.batch_size)
        for index in indices:
            yield index, entry[index.start : index.stop].to(device), tiled.inside(index).to(device)

    def _threshold(self, probability: float, heat: np.ndarray, inside: np.ndarray, gate: float, fixed: float) -> float:
        if probability < gate:
            return np.inf
        return otsu_of_cells(heat, inside) if self.binarize == "otsu" else float(fixed)

    def _truth(self, case: Mapping[str, Any], tiled: TiledSlide, shape: tuple[int, int]) -> np.ndarray | None:
        """Polygons as cells; a slide that is labeled as negative needs none."""
        if "label" in case:
            return polygons_to_cells(read_polygons(case["label"]), shape=shape, cell_px=tiled.grid.cell_px)
        negative = "labels" in case and not np.any(case["labels"])
        return np.zeros(shape, bool) if negative else None


class SlideDataset(CaseDataset):
    """Cases of slides: the file's name is all that is loaded; `labels` is the label, `[K]` 0 or 1, where known.

    Args:
        data: cases.
        classes: names, the negative one first.

    Raises:
        ValueError: a label is none of these classes.
    """

    def __init__(self, data: Sequence[dict], *, classes: Sequence[str]) -> None:
        super().__init__(data, dict)
        self.labels = [_label(case, classes) for case in data]

    def __getitem__(self, index: int) -> dict:
        case, labels = super().__getitem__(index), self.labels[index]
        return case if labels is None else case | {"labels": torch.tensor(labels)}


def _label(case: Mapping[str, Any], classes: Sequence[str]) -> list[int] | None:
    try:
        return None if case.get("cls") is None else multi_hot(case["cls"], classes)
    except ValueError as error:
        raise ValueError(f"case {case['case']!r}: {error} Do the weights have other classes?") from None


def prepare_slide(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[dict[str, Any], None]:
    """The one case of a batch, and no target: slides do not fit into tensors."""
    return {k: v[0].numpy() if isinstance(v, Tensor) else v[0] for k, v in batch.items()}, None


class SlideEvaluator(CaseEvaluator):
    """A `CaseEvaluator` whose inferer takes a case, and leaves nothing open when the case is done.

    Args:
        device, dataset, network, inferer: see `CaseEvaluator`; the inferer is a `SlideInferer`.
        kwargs: see `CaseEvaluator`.
    """

    runs_ahead = False  # what was found on a slide lies in files until the next one

    def __init__(self, *args: Any, inferer: SlideInferer, **kwargs: Any) -> None:
        options = {"prepare_batch": prepare_slide, "decollate": False} | kwargs
        super().__init__(*args, inferer=inferer, **options)  # type: ignore[arg-type]

    def _iteration(self, engine: Any, batchdata: dict) -> Any:
        try:
            return super()._iteration(engine, batchdata)
        finally:
            self.inferer.close()  # type: ignore[attr-defined]


def cells_of(result: SlideResult, labels: Sequence[str], *, longest: int = 800) -> dict[str, np.ndarray]:
    """What `common.report.slides` reads of a slide, beside its heat and mask.

    Returns:
        `names` and `thresholds` of the labels, `tissue` and, where known, `truth` (`[rows, columns]` bool), `cell_um`,
        `extent` (how many cells the slide is wide and high) and `view` (the bytes of a JPEG).
    """
    buffer = io.BytesIO()
    Image.fromarray(result.tiled.view(longest)).save(buffer, "JPEG", quality=80)
    grid, sides = result.tiled.grid, result.tiled.slide.size
    found = {
        "names": np.array(labels),
        "thresholds": np.array(result.thresholds, np.float64),
        "tissue": result.inside,
        "cell_um": np.array(grid.cell_um),
        "extent": np.array([side / cell for side, cell in zip(sides, grid.cell_px, strict=True)]),
        "view": np.frombuffer(buffer.getvalue(), np.uint8),
    }
    return found if result.truth is None else found | {"truth": result.truth}


class SlideWriter(PredictionWriter):
    """Handler: writes heat, mask and overlay of each slide, and `predictions.csv`.

    - `<case>_heatmap.ome.tif`: raw heat, float32, one channel a label (Bio-Formats: QuPath, ImageJ);
    - `<case>_heatmap_<label>.tif`: heat 0 to 1 as 0 to 255 (OpenSlide: QuPath, most viewers);
    - `<case>_seg.tif`: the mask, k for class k (OpenSlide);
    - `<case>_overlay.png`;
    - `<case>_cells.npz`: what a report needs to move thresholds: tissue, truth, exact thresholds, the slide's view.

    The TIFF files have the slide's upper left corner, and the size of a cell in their resolution tags.

    Args:
        output_dir, classes, overwrite: see `PredictionWriter`.
        save_heatmap, save_mask, save_overlay, save_cells: what to write.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        classes: Sequence[str],
        overwrite: bool = True,
        save_heatmap: bool = True,
        save_mask: bool = True,
        save_overlay: bool = True,
        save_cells: bool = True,
    ) -> None:
        super().__init__(output_dir, classes=classes, overwrite=overwrite)
        self.save_heatmap = save_heatmap
        self.save_mask = save_mask
        self.save_overlay = save_overlay
        self.save_cells = save_cells

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        result: SlideResult = output["pred"]
        labels = self.classes[1:]
        options: dict[str, Any] = {
            "levels": result.levels,
            "cell_um": result.tiled.grid.cell_um,
            "folder": result.folder,
        }
        with self._files(result.case["case"]) as file:
            if self.save_heatmap:
                write_pyramid(file("heatmap.ome.tif"), result.heat, names=labels, **options)
                for name, heat in zip(labels, result.heat, strict=True):
                    name = re.sub(r'[/\\:*?"<>|]', "_", name)  # which no name of a file can hold on any system
                    write_pyramid(file(f"heatmap_{name}.tif"), heat[None], as_bytes=True, **options)
            if self.save_mask:
                write_pyramid(file("seg.tif"), result.mask[None], **options)
            if self.save_overlay:
                picture = overlay(result.tiled, result.heat, result.mask, result.truth)
                picture.save(file("overlay.png"), compress_level=1)
            if self.save_cells:
                np.savez_compressed(file("cells.npz"), **cells_of(result, labels))
        self.rows.append(self._row(result, time.perf_counter() - engine.started))

    def _row(self, result: SlideResult, seconds: float) -> dict[str, Any]:
        mm2 = (result.tiled.grid.cell_um / 1000) ** 2
        probability = [1 - max(result.probability), *result.probability]
        row = self._probabilities(result.case["case"], probability)
        row |= {f"threshold_{k}": round(t, 4) for k, t in zip(self.classes[1:], result.thresholds, strict=True)}
        for number, name in enumerate(self.classes[1:], 1):
            row[f"area_mm2_{name}"] = round(float((result.mask == number).sum() * mm2), 4)
        row["tissue_mm2"] = round(float(result.inside.sum() * mm2), 3)
        row |= {"tiles": len(result.tiled.tiles), "seconds": round(seconds, 2)}
        return row | {"warnings": result.tiled.grid.doubt}
