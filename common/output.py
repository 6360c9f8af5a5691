"""What inference leaves behind for each case: heatmap, mask, montage and a row of predictions.csv."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.distributed import get_rank
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents

from .data import atomic_path
from .montage import montage
from .processes import gathered_rows


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write `[H, W, D]` with a RAS+ millimetre `affine` (as nibabel and MONAI use it)."""
    image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the union of their keys as columns, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with floats to four decimals."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def pairs(engine: Engine) -> Iterator[tuple[dict, dict]]:
    """The decollated `(batch, output)` of each volume of an iteration."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return zip(batch, output, strict=True)


class PredictionWriter:
    """Handler: `predictions.csv`, a row a case; subclasses write a case's files and append its row to `rows`.

    Args:
        output_dir: folder, made when needed.
        classes: class names; one probability column each, the first is "nothing there".
    """

    def __init__(self, output_dir: str | Path, *, classes: Sequence[str]) -> None:
        self.output_dir = Path(output_dir)
        self.classes = list(classes)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._write_case)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows = []
        self.output_dir.mkdir(parents=True, exist_ok=True)

    def _write_case(self, engine: Engine) -> None:
        raise NotImplementedError

    def _probabilities(self, case: str, probability: Iterable[Any]) -> dict[str, Any]:
        """The beginning of a row."""
        named = zip(self.classes, probability, strict=True)
        return {"case": case, **{f"probability_{name}": round(float(p), 4) for name, p in named}}

    def _finish(self, engine: Engine) -> None:
        rows = gathered_rows(self.rows, getattr(engine, "cases", ()))
        if get_rank() == 0:
            write_csv(self.output_dir / "predictions.csv", rows)


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

    def _write_case(self, engine: Engine) -> None:
        for batch, output in pairs(engine):
            case = batch["case"]
            image: MetaTensor = batch["image"]
            affine = np.asarray(image.meta["original_affine"])
            heatmap = np.asarray(output["heatmap"])[0].astype(np.float32)
            mask = np.asarray(output["pred"])[0].astype(np.uint8)
            with ExitStack() as finished:  # a case's files appear together, or none does
                base = self.output_dir / case
                if self.save_heatmap:
                    write_nifti(finished.enter_context(atomic_path(f"{base}_heatmap.nii.gz")), heatmap, affine)
                if self.save_mask:
                    write_nifti(finished.enter_context(atomic_path(f"{base}_seg.nii.gz")), mask, affine)
                if self.save_montage:
                    picture = montage(np.asarray(batch["scan"])[0], heatmap, mask, _truth(batch, mask), affine=affine)
                    picture.save(finished.enter_context(atomic_path(f"{base}_montage.png")))
            self.rows.append(self._row(case, mask, affine, output, time.perf_counter() - engine.started))  # type: ignore[attr-defined]

    def _row(self, case: str, mask: np.ndarray, affine: np.ndarray, output: Mapping, seconds: float) -> dict[str, Any]:
        millilitre = abs(np.linalg.det(affine[:3, :3])) / 1000.0
        row = self._probabilities(case, np.asarray(output["probability"]))
        row["threshold"] = round(float(output["threshold"]), 4)
        row["volume_ml"] = round(float((mask > 0).sum() * millilitre), 3)
        row["seconds"] = round(seconds, 2)
        return row


def _truth(batch: Mapping, mask: np.ndarray) -> np.ndarray | None:
    """The ground truth, if there is one and it can be outlined: `CaseScores` complains about one on another grid."""
    label = np.asarray(batch["label"])[0] if "label" in batch else None
    return label > 0 if label is not None and label.shape == mask.shape else None
