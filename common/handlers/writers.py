"""What inference leaves behind for each case: heatmap, mask, montage and a row of predictions.csv."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from ..files import atomic_path, write_csv
from ..images import file_of, write_nifti
from .base import CaseHandler
from .montage import draw_montage


class PredictionWriter(CaseHandler):
    """Handler: `predictions.csv`, a row a case; subclasses write a case's files in `_collect`, and append its row.

    Args:
        output_dir: folder, made when needed.
        classes: class names; one probability column each, the first is "nothing there".
    """

    def __init__(self, output_dir: str | Path, *, classes: Sequence[str]) -> None:
        super().__init__(output_dir)
        self.classes = list(classes)

    def _start(self) -> None:
        super()._start()
        self.output_dir.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _files(self, case: str) -> Iterator[Callable[[str], Path]]:
        """Gives the path of a case's file by its suffix, in a block at whose end all of them appear, or none does."""
        with ExitStack() as finished:
            yield lambda suffix: finished.enter_context(atomic_path(self.output_dir / f"{case}_{suffix}"))

    def _probabilities(self, case: str, probability: Iterable[Any]) -> dict[str, Any]:
        """The beginning of a row."""
        named = zip(self.classes, probability, strict=True)
        return {"case": case, **{f"probability_{name}": round(float(p), 4) for name, p in named}}

    def _write(self) -> None:
        write_csv(self.output_dir / "predictions.csv", self.rows)


class CaseWriter(PredictionWriter):
    """Handler: writes `<case>_heatmap.nii.gz`, `<case>_seg.nii.gz`, `<case>_montage.png` and `predictions.csv`.

    A handler and not a transform, so that a server which does its own saving can use the same postprocessing.

    Args:
        output_dir, classes: see `PredictionWriter`.
        save_heatmap, save_mask, save_montage: what to write.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        classes: Sequence[str],
        save_heatmap: bool = True,
        save_mask: bool = True,
        save_montage: bool = True,
    ) -> None:
        super().__init__(output_dir, classes=classes)
        self.save_heatmap = save_heatmap
        self.save_mask = save_mask
        self.save_montage = save_montage

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        case = batch["case"]
        image: MetaTensor = batch["image"]
        affine = np.asarray(image.meta["original_affine"])
        heatmap = np.asarray(output["heatmap"])[0].astype(np.float32)
        mask = np.asarray(output["pred"])[0].astype(np.uint8)
        with self._files(case) as file:
            if self.save_heatmap:
                write_nifti(file("heatmap.nii.gz"), heatmap, affine, like=file_of(image))
            if self.save_mask:
                write_nifti(file("seg.nii.gz"), mask, affine, like=file_of(image))
            if self.save_montage:
                scan = np.asarray(batch["scan"])[0]
                truth = np.asarray(batch["label"])[0] > 0 if "label" in batch else None
                draw_montage(scan, heatmap, mask, truth, affine=affine).save(file("montage.png"))
        self.rows.append(self._row(case, mask, affine, output, time.perf_counter() - engine.started))

    def _row(self, case: str, mask: np.ndarray, affine: np.ndarray, output: Mapping, seconds: float) -> dict[str, Any]:
        milliliter = abs(np.linalg.det(affine[:3, :3])) / 1000.0
        row = self._probabilities(case, np.asarray(output["probability"]))
        row["threshold"] = round(float(output["threshold"]), 4)
        row["volume_ml"] = round(float((mask > 0).sum() * milliliter), 3)
        row["seconds"] = round(seconds, 2)
        return row
