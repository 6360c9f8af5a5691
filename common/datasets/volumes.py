"""Public data sets with one label per volume, as ToNNO uses them: MosMed, AutoPET and Duke breast MRI."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ..data import SECTIONS, Case, find_cases, slice_labels
from ..files import PathLike
from ..images import read_grid
from .files import load_volume, one_file, only, output_folder, read_table, save_volume, told_by

MOSMED_CATEGORIES = ("CT-0", "CT-1", "CT-2", "CT-3", "CT-4")
_BOXES = ("Annotation_Boxes.xlsx", "Annotation_Boxes.csv")
_BOX_COLUMNS = ("Start Column", "End Column", "Start Row", "End Row", "Start Slice", "End Slice")


def mosmed(
    root: PathLike,
    *,
    severity: bool = False,
    registry: str | None = None,
    masked_section: str | None = None,
) -> list[Case]:
    """Read MosMedData `COVID19_1110` (Morozov et al. 2020): 1,110 chest CTs, 50 of them with masks.

    Layout: `studies/CT-<0..4>/study_<NNNN>.nii.gz`, one folder per category of severity (CT-0: no finding), and
    `masks/study_<NNNN>_mask.nii.gz`. Its `dataset_registry.xlsx` lists `study_id`, `category`, `study_file`
    (`/studies/CT-0/study_0001.nii.gz`) and `mask_file`; the folders say the same, so it is read only where asked
    for. Columns as other readers of the file name them. Each study counts as a patient: there are no patient ids.

    Args:
        root: the folder that holds `studies` and `masks`.
        severity: `cls` 0 to 4 for CT-0 to CT-4, instead of 0 for CT-0 and 1 for the others.
        registry: name of the table in `root` (`.xlsx` or saved as `.csv`): takes the categories from it and
            checks that it and the folders name the same studies.
        masked_section: section of the datalist that gets all cases with a mask, instead of a random one; `validation`
            is ToNNO's protocol. Thresholds chosen there have no masked test case left to be scored on.

    Returns:
        Cases with `cls` for the volume, `label` where there is a mask, and `section` where fixed.

    Raises:
        FileNotFoundError: no study, no registry, a study of the registry is missing, a mask has no study, or there is
            none for `masked_section`.
        ValueError: an unknown category or section, or a study that the registry does not list, or that is there twice.
    """
    root = Path(root).absolute()
    if masked_section is not None and masked_section not in SECTIONS:
        raise ValueError(f"masked_section must be among {SECTIONS}; got {masked_section!r}.")
    studies = _by_stem(root.glob("studies/CT-*/study_*.nii*"))
    if not studies:
        raise FileNotFoundError(f"no file studies/CT-*/study_*.nii.gz in {root}; give the folder COVID19_1110.")
    masks = {stem.removesuffix("_mask"): path for stem, path in _by_stem(root.glob("masks/study_*_mask.nii*")).items()}
    if alone := sorted(set(masks) - set(studies)):
        lone = masks[alone[0]]
        raise FileNotFoundError(f"{lone}: there is no study of that name below {root / 'studies'}; complete the case.")
    if masked_section and not masks:
        raise FileNotFoundError(
            f"no file masks/study_*_mask.nii.gz in {root}: {masked_section!r} would get no case; unpack the masks."
        )
    categories = {name: path.parent.name for name, path in studies.items()}
    if registry is not None:
        categories = _listed_categories(root, registry, studies)
    cases: list[Case] = []
    for name, path in studies.items():
        if categories[name] not in MOSMED_CATEGORIES:
            raise ValueError(f"{path}: its category is {categories[name]!r}; expected one of {MOSMED_CATEGORIES}.")
        grade = MOSMED_CATEGORIES.index(categories[name])
        case: Case = {"case": name, "patient": name, "image": str(path), "cls": grade if severity else int(grade > 0)}
        if name in masks:
            case["label"] = str(masks[name])
            case |= {"section": masked_section} if masked_section else {}
        cases.append(case)
    return cases


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Files by their names, each of which there is once: not in two folders of categories, nor packed and not."""
    found: dict[str, list[Path]] = {}
    for path in sorted(files):
        found.setdefault(_stem(path), []).append(path)
    return {stem: only(paths) for stem, paths in found.items()}


def _listed_categories(root: Path, registry: str, studies: Collection[str]) -> dict[str, str]:
    """Categories from the table, which must list these studies, and no others."""
    by_file = told_by(root / registry, "study_file", "category")
    absent = next((file for file in by_file if _stem(Path(file)) not in studies), None)
    if absent is not None:
        raise FileNotFoundError(f"{root}{absent} does not exist, but {registry} lists it.")
    listed = {_stem(Path(file)): category for file, category in by_file.items()}
    if unlisted := set(studies) - set(listed):
        raise ValueError(f"{root / registry}: {min(unlisted)} is not listed; complete the table.")
    return listed


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def autopet(
    root: PathLike,
    *,
    modalities: Sequence[str] = ("SUV",),
    cls_from: Literal["mask", "diagnosis"] = "mask",
    metadata: str = "fdg_metadata.csv",
) -> list[Case]:
    """Read FDG-PET-CT-Lesions (Gatidis et al. 2022; AutoPET), 1,014 whole-body studies, as NIfTI.

    Layout (fdat.uni-tuebingen.de, and the owners' conversion of the DICOM collection): `PETCT_<id>/<study>/` with
    `SUV`, `CTres`, `CT`, `PET` and `SEG` (`.nii.gz`); `CTres` is on the grid of `SUV`. The table of
    metadata has `Subject ID` (`PETCT_<id>`), `File Location` (`./FDG-PET-CT-Lesions/PETCT_<id>/<study>/…`) and
    `diagnosis` (`NEGATIVE` or a tumor); columns as other readers of the file name them.

    Args:
        root: the folder that holds the folders of the patients.
        modalities: file names without suffix, e.g. `SUV,CTres`.
        cls_from: `mask`: 1 where `SEG` is not empty (ToNNO); `diagnosis`: 1 where it is not `NEGATIVE`, and
            `SEG` may be absent.
        metadata: the table, in `root`; read for `diagnosis` only.

    Returns:
        Cases `<patient>_<study>` with `patient` = the folder and `cls` for the volume.

    Raises:
        FileNotFoundError: no study, a study lacks a file, or there is no table.
        ValueError: unknown `cls_from`, or a study without, or with contradicting, diagnoses.
    """
    if cls_from not in ("mask", "diagnosis"):
        raise ValueError(f"cls_from must be 'mask' or 'diagnosis'; got {cls_from!r}.")
    root = Path(root).absolute()
    studies = sorted(path for path in root.glob("PETCT_*/*") if path.is_dir())
    if not studies:
        raise FileNotFoundError(f"no folder PETCT_*/<study> in {root}; give the folder of the patients.")
    rows = read_table(root / metadata, ("Subject ID", "diagnosis")) if cls_from == "diagnosis" else []
    cases: list[Case] = []
    for path in tqdm(studies, desc="reading labels", unit="case", disable=None):
        patient = path.parent.name
        images = [one_file(path, f"{modality}.nii*") for modality in modalities]
        case: Case = {"case": f"{patient}_{path.name}", "patient": patient}
        case["image"] = images[0] if len(images) == 1 else images
        if cls_from == "mask" or any(path.glob("SEG.nii*")):
            case["label"] = one_file(path, "SEG.nii*")
        if cls_from == "mask":
            case["cls"] = max(slice_labels(case["label"], case["image"]))
        else:
            case["cls"] = int(_diagnosis(rows, path, root / metadata) != "NEGATIVE")
        cases.append(case)
    return cases


def _diagnosis(rows: Sequence[dict[str, str]], study: Path, source: Path) -> str:
    """The one diagnosis of a study: by its folder where the table names folders, else by its patient."""
    patient = study.parent.name
    own = [row for row in rows if row["Subject ID"] == patient]
    here = [row for row in own if f"/{patient}/{study.name}/" in row.get("File Location", "").replace("\\", "/") + "/"]
    found = {row["diagnosis"].strip().upper() for row in here or own}
    if len(found) != 1 or not min(found):
        raise ValueError(f"{source}: expected one diagnosis for {patient}/{study.name}; got {sorted(found)}.")
    return found.pop()


def duke(
    root: PathLike,
    out_dir: PathLike,
    *,
    modalities: Sequence[str] = ("post1",),
    boxes: str | None = None,
    first_index: int = 1,
    allow_missing: bool = False,
) -> list[Case]:
    """Read Duke-Breast-Cancer-MRI (Saha et al. 2018; 922 patients, TCIA) and part every scan into its two breasts.

    All patients are positive, with one box around the main tumor; the breast without it is the negative one (ToNNO).
    The collection is DICOM. Convert it beforehand to `<patient>/<modality>.nii.gz` on the DICOM grid: axes columns,
    rows, slices in the order of their instance numbers, with the affine of that order. The owners' table
    (`Annotation_Boxes.xlsx`, first sheet) counts on that grid: `Patient ID` (`Breast_MRI_001`), `Start Row`,
    `End Row`, `Start Column`, `End Column`, `Start Slice`, `End Slice`. Assumed, not verified on the scans:
    it counts from 1 and includes the end. Look at a few boxes before you trust them, above all along slices, where
    converters sort by position and instance numbers may run the other way.

    Written: `out_dir/<patient>_<left|right>/<modality>.nii.gz` in RAS order, cut in the middle of the image. The side
    of the box's center is positive, the box is clipped to it; if it crosses the middle, the other side is left out.

    Args:
        root: folder of the patients' folders and the table.
        out_dir: where the breasts go; files of the same name are replaced.
        modalities: file names without suffix, on one grid.
        boxes: name of the table; by default the owners', or the same saved as `.csv`.
        first_index: index of the first row, column and slice in the table.
        allow_missing: go on where the table lists patients without a folder.

    Returns:
        Cases with `cls` for the volume and, where 1, `box`: voxel corners `[x0, y0, z0, x1, y1, z1]` in the
        written file, ends exclusive, as `common.metrics.max_iou` takes it.

    Raises:
        FileNotFoundError: no table, no patient, a patient lacks a modality, or is listed without a folder.
        ValueError: a patient is not or twice listed, files differ in shape, `out_dir` is `root`, or a box does
            not lie inside its image.
    """
    root = Path(root).absolute()
    out_dir = output_folder(out_dir, root)
    boxes = boxes or next((name for name in _BOXES if (root / name).is_file()), _BOXES[0])
    table = read_table(root / boxes, ("Patient ID", *_BOX_COLUMNS))
    rows = {row["Patient ID"].strip(): row for row in table}
    if len(rows) < len(table):
        raise ValueError(f"{root / boxes}: {len(table)} rows for {len(rows)} patients; expected one box per patient.")
    found = find_cases(root, [f"*/{modality}.nii.gz" for modality in modalities])
    absent = sorted(set(rows) - {case["case"] for case in found})
    if absent and not allow_missing:
        raise FileNotFoundError(
            f"{root / absent[0]}/{modalities[0]}.nii.gz does not exist, but {boxes} lists it ({len(absent)} such "
            "patients); convert them, or set allow_missing."
        )
    cases: list[Case] = []
    for case in tqdm(found, desc="parting breasts", unit="case", disable=None):
        patient = case["case"]
        if patient not in rows:
            raise ValueError(f"{root / boxes}: {patient} is not listed; every scan needs its box.")
        first = load_volume(case["image"][0])
        images = [first, *(load_volume(path, like=first) for path in case["image"][1:])]
        if any(image.ndim != 3 for image in images):
            raise ValueError(f"{patient}: shapes {[image.shape for image in images]}; expected 3D.")
        corners = _canonical_box(rows[patient], case["image"][0], first, first_index, root / boxes)
        for side, (low, high), labels in _breasts(corners, first.shape[0]):
            name = f"{patient}_{side}"
            paths = [
                save_volume(image.slicer[low:high], out_dir / name / f"{modality}.nii.gz")
                for modality, image in zip(modalities, images, strict=True)
            ]
            cases.append({"case": name, "patient": patient, "image": paths[0] if len(paths) == 1 else paths} | labels)
    return cases


def _breasts(corners: np.ndarray, width: int) -> Iterator[tuple[str, tuple[int, int], dict[str, Any]]]:
    """Side, columns and labels of each breast; the one into which a box of the other only reaches is left out."""
    middle = width // 2
    for side, low, high in (("left", 0, middle), ("right", middle, width)):  # RAS: x grows rightwards
        inside = corners - [low, 0, 0]
        inside[:, 0] = inside[:, 0].clip(0, high - low)
        if low <= corners[:, 0].mean() < high:
            yield side, (low, high), {"cls": 1, "box": inside.ravel().tolist()}
        elif inside[0, 0] == inside[1, 0]:
            yield side, (low, high), {"cls": 0}


def _canonical_box(row: dict[str, str], path: str, image: Any, first_index: int, source: Path) -> np.ndarray:
    """Corners `[[x0, y0, z0], [x1, y1, z1]]` (ends exclusive) in the image turned to RAS."""
    try:
        numbers = np.array([int(float(row[column])) for column in _BOX_COLUMNS]).reshape(3, 2)
    except ValueError as error:
        raise ValueError(f"{source}: the box of {row['Patient ID']} is not all numbers ({error}).") from error
    shape, affine = read_grid(path)
    first, last = numbers[:, 0] - first_index, numbers[:, 1] - first_index
    if (first < 0).any() or (last < first).any() or (last >= shape).any():
        raise ValueError(
            f"{source}: the box {numbers.ravel().tolist()} (columns, rows, slices) of {row['Patient ID']} does not lie "
            f"in an image of {shape}; is {path} on the DICOM grid?"
        )
    # From voxel centers on disk over the world to voxel centers in RAS order.
    way = np.linalg.inv(image.affine) @ affine
    ends = np.rint(np.stack([first, last]) @ way[:3, :3].T + way[:3, 3]).astype(int)
    return np.stack([ends.min(axis=0), ends.max(axis=0) + 1])
