"""What inference leaves behind for each case: heatmap, mask, montage and a row of predictions.csv."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ignite.distributed import get_rank
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..data.matches import some
from ..data.outputs import is_result
from ..files import atomic_path, write_csv, writing
from ..images import (
    DicomCodes,
    dicom_results,
    file_of,
    is_dicom,
    is_picture,
    write_dicom,
    write_heat_picture,
    write_mask_picture,
    write_nifti,
    write_raw_picture,
)
from .base import CaseHandler
from .finished import FinishedCases, case_stamp, run_settings
from .montage import draw_montage

logger = logging.getLogger(__name__)


class PredictionWriter(CaseHandler):
    """Handler: `predictions.csv`, a row a case; subclasses write a case's files in `_collect`, and append its row.

    Args:
        output_dir: folder, made when needed. Files in it that no run wrote are never replaced.
        classes: class names; one probability column each, the first is "nothing there".
        overwrite: make every case anew. False: a case is skipped, and its row kept, where an earlier run with the same
            weights, settings and input left all its files; so an interrupted run goes on where it was.
    """

    def __init__(self, output_dir: str | Path, *, classes: Sequence[str], overwrite: bool = True) -> None:
        super().__init__(output_dir)
        self.classes = list(classes)
        self.overwrite = overwrite
        self._done = FinishedCases(self.output_dir)
        self._settings: str | None = None
        self._kept: dict[str, dict[str, Any]] = {}  # rows of cases that an earlier run has finished
        self._names: list[str] = []
        self._asked: list[str] = []

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._take_over)

    def finished(self, engine: Any) -> set[str]:
        self._kept = {}
        if self.overwrite:
            return set()
        self._settings = settings = run_settings(engine, self._options())
        rows = {case: self._done.row(case, case_stamp(settings, entry)) for case, entry in engine.cases.items()}
        self._kept = {case: row for case, row in rows.items() if row is not None}
        other = sum(case in self._done for case in engine.cases) - len(self._kept)
        if other:
            logger.warning(
                "%d cases in %s are of other weights, settings or input, or not whole: they are made anew",
                other,
                self.output_dir,
            )
        return set(self._kept)

    def _options(self) -> dict[str, Any]:
        """The writer's own settings, as far as they decide on what is written."""
        free = ("output_dir", "overwrite", "rows")
        return {k: v for k, v in vars(self).items() if k not in free and not k.startswith("_")}

    def _start(self) -> None:
        super()._start()
        with writing(self.output_dir):
            self.output_dir.mkdir(parents=True, exist_ok=True)

    def _take_over(self, engine: Any) -> None:
        """Rows of the cases that are skipped; and what the others are made with."""
        if self.overwrite or self._settings is None:  # else `finished` has told them
            try:
                self._settings = run_settings(engine, self._options())
            except ValueError as error:
                self._settings = None
                logger.info("a run that is interrupted cannot be taken up: %s", error)
        self._asked = list(getattr(engine, "cases", ()))
        if get_rank() == 0:
            self.rows += [row for case, row in self._kept.items() if case in getattr(engine, "skipped", ())]

    def _iterate(self, engine: Engine) -> None:
        before = len(self.rows)
        super()._iterate(engine)
        cases: Mapping[str, Any] = getattr(engine, "cases", {})
        new, self.rows = self.rows[before:], self.rows[:before]
        for row in new:
            if self._settings is not None and row["case"] in cases:
                self._done.add(row["case"], case_stamp(self._settings, cases[row["case"]]), self._names, row)
            self.rows.append(row)

    @contextmanager
    def _files(self, case: str) -> Iterator[Callable[[str], Path]]:
        """Gives the path of a case's file by its suffix, in a block at whose end all of them appear, or none does.

        What an earlier run wrote for the case, and this one did not, goes.

        Raises:
            FileExistsError: (of the path) there is a file of that name that no run wrote, e.g. a reader's mask.
        """
        own = self._done.files(case)
        if own:
            self._done.begin(case, own)
        self._names = []

        def file(suffix: str) -> Path:
            path = self.output_dir / f"{case}_{suffix}"
            if path.exists() and path.name not in own and not is_result(path):
                raise FileExistsError(f"{path} is not of a run and stays as it is; give another output_dir, or move it")
            self._names.append(path.name)
            return finished.enter_context(atomic_path(path))

        with ExitStack() as finished:
            yield file
            self._done.begin(case, own.union(self._names))
        for name in own.difference(self._names):  # of a run with other settings: of another mask than these
            (self.output_dir / name).unlink(missing_ok=True)

    def _probabilities(self, case: str, probability: Iterable[Any]) -> dict[str, Any]:
        """The beginning of a row."""
        named = zip(self.classes, probability, strict=True)
        return {"case": case, **{f"probability_{name}": round(float(p), 6) for name, p in named}}

    def _write(self) -> None:
        write_csv(self.output_dir / "predictions.csv", self.rows)
        failed = set(self._asked) - {row["case"] for row in self.rows}
        if stale := sorted(case for case in failed if any(map(self._exists, self._done.files(case)))):
            told = "%d case(s) failed whose files of an earlier run are still in %s: %s"
            logger.warning(told, len(stale), self.output_dir, some(stale, 5))

    def _exists(self, name: str) -> bool:
        return (self.output_dir / name).exists()


class CaseWriter(PredictionWriter):
    """Handler: writes `<case>_heatmap.nii.gz`, `<case>_seg.nii.gz`, `<case>_montage.png` and `predictions.csv`.

    Of a picture (PNG, JPEG, TIFF) mask and heatmap are pictures of its size: `<case>_seg.png`, whose pixels are label
    values, `<case>_heatmap.png` for the eye and `<case>_heatmap.tif` with the heat itself.

    What is doubtful about a case (`warnings` of the batch) is said in the console, too.

    A handler and not a transform, so that a server which does its own saving can use the same postprocessing.

    Args:
        output_dir, classes, overwrite: see `PredictionWriter`.
        save_heatmap, save_mask, save_montage: what to write.
        dicom: of an image that is a DICOM series, mask and heatmap are written as DICOM, too: `<case>_seg.dcm`,
            `<case>_heatmap.dcm`. Arguments of `common.images.DicomCodes.of_bundle`; None writes none.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        classes: Sequence[str],
        overwrite: bool = True,
        save_heatmap: bool = True,
        save_mask: bool = True,
        save_montage: bool = True,
        dicom: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(output_dir, classes=classes, overwrite=overwrite)
        self.save_heatmap = save_heatmap
        self.save_mask = save_mask
        self.save_montage = save_montage
        self.dicom = None if dicom is None else asdict(DicomCodes.of_bundle(**dicom))

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        case = batch["case"]
        image: MetaTensor = batch["image"]
        affine = np.asarray(image.meta["original_affine"])
        heatmap = np.asarray(output["heatmap"])[0].astype(np.float32)
        mask = np.asarray(output["pred"])[0].astype(np.uint8)
        with self._files(case) as file:
            if is_picture(file_of(image)):
                self._write_pictures(file, mask, heatmap)
            else:
                self._write_volumes(file, file_of(image), affine, mask, heatmap)
            if self.save_montage:
                scan = np.asarray(batch["scan"])[0]
                truth = np.asarray(batch["label"])[0] > 0 if "label" in batch else None
                draw_montage(scan, heatmap, mask, truth, affine=affine).save(file("montage.png"))
            unwritten = self._write_dicom(file, file_of(image), affine, mask, heatmap)
        milliliter = None if is_picture(file_of(image)) else abs(np.linalg.det(affine[:3, :3])) / 1000.0
        row = self._row(case, mask, milliliter, output, time.perf_counter() - engine.started)
        row["warnings"] = "; ".join(text for text in (str(batch.get("warnings", "")), unwritten) if text)
        if row["warnings"]:
            logger.warning("case %s: %s", case, row["warnings"])
        self.rows.append(row)

    def _write_volumes(
        self, file: Callable[[str], Path], path: str, affine: np.ndarray, mask: np.ndarray, heatmap: np.ndarray
    ) -> None:
        if self.save_heatmap:
            write_nifti(file("heatmap.nii.gz"), heatmap, affine, like=path)
        if self.save_mask:
            write_nifti(file("seg.nii.gz"), mask, affine, like=path)

    def _write_pictures(self, file: Callable[[str], Path], mask: np.ndarray, heatmap: np.ndarray) -> None:
        if self.save_heatmap:
            write_heat_picture(file("heatmap.png"), heatmap)
            write_raw_picture(file("heatmap.tif"), heatmap)
        if self.save_mask:
            write_mask_picture(file("seg.png"), mask)

    def _write_dicom(
        self, file: Callable[[str], Path], path: str, affine: np.ndarray, mask: np.ndarray, heatmap: np.ndarray
    ) -> str:
        """Results of a DICOM series as DICOM; why there are none, else an empty text."""
        if self.dicom is None or not is_dicom(path):
            return ""
        codes = DicomCodes(**self.dicom)
        try:
            results, unwritten = dicom_results(path, affine, mask, heatmap, classes=self.classes, codes=codes)
        except ImportError:
            raise
        except Exception as error:  # highdicom has many, and what is written as NIfTI is no worse for them
            return f"no DICOM results: {type(error).__name__}: {' '.join(str(error).split())}"
        for suffix, wanted in (("seg.dcm", self.save_mask), ("heatmap.dcm", self.save_heatmap)):
            if wanted and suffix in results:
                write_dicom(file(suffix), results[suffix])
        return unwritten

    def _row(
        self, case: str, mask: np.ndarray, milliliter: float | None, output: Mapping, seconds: float
    ) -> dict[str, Any]:
        """Of a case whose voxels have a size of `milliliter`; a picture's pixels have none."""
        row = self._probabilities(case, np.asarray(output["probability"]))
        row |= {"gate": round(float(output["gate"]), 6)} if "gate" in output else {}
        row["threshold"] = round(float(output["threshold"]), 4)
        marked = int((mask > 0).sum())
        row |= {"area_pixels": marked} if milliliter is None else {"volume_ml": round(marked * milliliter, 3)}
        row["seconds"] = round(seconds, 2)
        return row
