"""Public sets of magnetic resonance images whose masks give one label per slice: BraTS, TCGA-LGG, Decathlon."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import tifffile
from tqdm import tqdm

from ..data import Case, slice_labels
from ..data.matches import some
from ..files import PathLike, read_json
from .files import load_volume, one_file, save_volume, told_by, up_to_date

logger = logging.getLogger(__name__)

BRATS_MODALITIES = ("t1", "t2", "t1ce", "flair")
KAGGLE_CHANNELS = ("pre", "flair", "post")
_GRADES = {"LGG": 1, "HGG": 2}
# Voxels of the kaggle_3m images carry no spacing; the affine is LPS in NIfTI's RAS+ world.
_KAGGLE_AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])


def brats2020(root: PathLike, *, modalities: Sequence[str] = BRATS_MODALITIES, binary: bool = False) -> list[Case]:
    """Read the training part of BraTS 2020 (`MICCAI_BraTS2020_TrainingData`).

    Layout: `BraTS20_Training_XXX/BraTS20_Training_XXX_{t1,t2,t1ce,flair,seg}.nii` (or `.nii.gz`) and
    `name_mapping.csv` with the columns `Grade` and `BraTS_2020_subject_ID`. Case 355 was published with its
    mask named `W39_1998.09.19_Segm.nii`; any `*Segm.nii*` is accepted as the mask.

    Args:
        root: the folder that holds the case folders and `name_mapping.csv`.
        modalities: of `t1`, `t2`, `t1ce`, `flair`; one makes `image` a path, more a list in this order.
        binary: label slices by tumor, yes or no, whatever its grade; `name_mapping.csv` is then not read.

    Returns:
        Cases with `cls` per slice: 0 where the mask is empty, else the grade of the patient, 1 = LGG, 2 = HGG, or 1
        with `binary`.

    Raises:
        FileNotFoundError: no case folder, no `name_mapping.csv`, or a case lacks a modality or the mask.
        ValueError: an unknown modality; the CSV lacks a column or a case, or states an unknown grade.
    """
    if set(modalities) - set(BRATS_MODALITIES) or not modalities:
        raise ValueError(f"modalities must be among {BRATS_MODALITIES}; got {tuple(modalities)}.")
    root = Path(root).absolute()
    folders = sorted(path for path in root.glob("BraTS20_Training_*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"no folder BraTS20_Training_* in {root}; give the folder of the training cases.")
    grades = {} if binary else told_by(root / "name_mapping.csv", "BraTS_2020_subject_ID", "Grade")
    cases: list[Case] = []
    for path in tqdm(folders, desc="reading masks", unit="case", disable=None):
        name = path.name
        if not binary and grades.get(name) not in _GRADES:
            raise ValueError(
                f"{root / 'name_mapping.csv'}: the Grade of {name} is {grades.get(name)!r}; expected one of "
                f"{tuple(_GRADES)}."
            )
        label = one_file(path, f"{name}_seg.nii*", "*Segm.nii*")
        images = [one_file(path, f"{name}_{m}.nii*") for m in modalities]
        positive = 1 if binary else _GRADES[grades[name]]
        cases.append(_case(name, name, images, label, slice_labels(label, images, class_if_positive=positive)))
    return cases


def _case(name: str, patient: str, images: list[str], label: str, cls: int | list[int]) -> Case:
    image = images[0] if len(images) == 1 else images
    return {"case": name, "patient": patient, "image": image, "label": label, "cls": cls}


def kaggle_3m(root: PathLike, out_dir: PathLike, *, modalities: Sequence[str] = ("flair",)) -> list[Case]:
    """Read the TCGA-LGG slices published as `kaggle_3m` (Buda et al. 2019) and convert them to NIfTI volumes.

    Layout: `TCGA_XX_NNNN_DATE/TCGA_XX_NNNN_DATE_<slice>.tif` (RGB = pre-contrast, FLAIR, post-contrast; uint8,
    256×256; where a sequence was missing its owners repeated FLAIR: a case in which that is one of `modalities` is left
    out, with a warning) and `..._<slice>_mask.tif`; slices count from 1, inferior→superior. Written per case:
    `out_dir/<case>/{pre,flair,post,mask}.nii.gz`, LPS, with a nominal spacing of
    1×1×5 mm: the TIFF files do not tell the true one, so volumes in ml are nominal, too. Finished cases are skipped
    unless their files have changed since, so an interrupted conversion can be run again.

    Args:
        root: the folder `kaggle_3m`.
        out_dir: where the volumes go.
        modalities: which of `pre`, `flair`, `post` make the `image` (one: a path; more: a list).

    Returns:
        Cases with `patient` = `TCGA_XX_NNNN` and `cls` per slice, 0 or 1.

    Raises:
        FileNotFoundError: no case folder, or a slice or its mask is missing.
        ValueError: unknown modality, a slice of another shape, or a modality that every case lacks.
    """
    unknown = set(modalities) - set(KAGGLE_CHANNELS)
    if unknown or not modalities:
        raise ValueError(f"modalities must be among {KAGGLE_CHANNELS}; got {tuple(modalities)}.")
    root, out_dir = Path(root).absolute(), Path(out_dir).absolute()
    folders = sorted(path for path in root.glob("TCGA_*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"no folder TCGA_* in {root}; give the folder kaggle_3m itself.")
    cases: list[Case] = []
    repeated: list[str] = []
    for path in tqdm(folders, desc="converting slices", unit="case", disable=None):
        files = {name: out_dir / path.name / f"{name}.nii.gz" for name in (*KAGGLE_CHANNELS, "mask")}
        folder = [path] if path.parent != out_dir else []  # which tells of slices taken out, unless this writes there
        if not up_to_date(files.values(), [*folder, *path.glob("[!.]*.tif")]):
            image, mask = _read_slices(path)
            for name, volume in zip(files, (*np.moveaxis(image, -1, 0), mask), strict=True):
                save_volume(nib.Nifti1Image(np.ascontiguousarray(volume), _KAGGLE_AFFINE), files[name])
        images, label = [str(files[modality]) for modality in modalities], str(files["mask"])
        if any(_same(files[modality], files["flair"]) for modality in modalities if modality != "flair"):
            repeated.append(path.name)
            continue
        patient = "_".join(path.name.split("_")[:3])
        cases.append(_case(path.name, patient, images, label, slice_labels(label, images)))
    if repeated:
        lacking = f"{len(repeated)} case(s) have FLAIR in place of another of {', '.join(modalities)}"
        if not cases:
            raise ValueError(f"{root}: {lacking}, and no case is left; choose other modalities.")
        logger.warning("%s: %s, and are left out: %s", root, lacking, some(repeated))
    return cases


def _same(one: Path, other: Path) -> bool:
    first, second = (np.asanyarray(load_volume(file).dataobj) for file in (one, other))
    return np.array_equal(first, second)


def _read_slices(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image (x, y, z, 3) uint8 and mask (x, y, z) uint8 of one case folder; x towards left, y towards posterior."""
    numbers = sorted(int(m[1]) for f in path.glob("[!.]*.tif") if (m := re.search(r"_(\d+)\.tif$", f.name)))
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        gaps = sorted(set(range(1, max(numbers, default=1) + 1)) - set(numbers))
        raise FileNotFoundError(f"{path}: slices must count from 1 without gaps; missing: {gaps[:5]}.")
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for number in numbers:
        for suffix, into, dimensions in (("", images, 3), ("_mask", masks, 2)):
            file = path / f"{path.name}_{number}{suffix}.tif"
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; every slice needs its mask.")
            pixels = tifffile.imread(file)
            if pixels.ndim != dimensions or (dimensions == 3 and pixels.shape[2] != 3):
                raise ValueError(f"{file}: shape {pixels.shape}; expected RGB slices and one-channel masks.")
            into.append(pixels)
    if len({pixels.shape[:2] for pixels in images + masks}) > 1:
        raise ValueError(f"{path}: slices and masks differ in size; expected one size per case.")
    # An image's rows run towards posterior and its columns towards the patient's left: (row, column) → (y, x).
    image = np.stack(images, axis=2).transpose(1, 0, 2, 3)
    mask = (np.stack(masks, axis=2) > 0).astype(np.uint8).transpose(1, 0, 2)
    return image, mask


def decathlon(
    root: PathLike,
    out_dir: PathLike,
    *,
    modalities: Sequence[str] = ("ADC",),
    cls_per: Literal["slice", "volume"] = "slice",
) -> list[Case]:
    """Read the training part of a task of the Medical Segmentation Decathlon, e.g. `Task05_Prostate`.

    Layout (medicaldecathlon.com): `dataset.json` with `modality` (`{"0": "T2", "1": "ADC"}`; brain tumors,
    Task01: FLAIR, T1w, t1gd, T2w) and `training` (pairs of `image` and `label`), `imagesTr/<case>.nii.gz` with
    the modalities along the fourth axis, `labelsTr/<case>.nii.gz`. Written per case, in RAS order:
    `out_dir/<case>/<modality>.nii.gz` for the chosen modalities and `mask.nii.gz`. Finished cases are skipped
    unless their files, or `dataset.json`, have changed since.
    Any label > 0 is positive.
    Every case counts as a patient of its own, since the owners give no patient ids: Task01 draws on earlier BraTS
    sets, where a patient may have several scans.

    Args:
        root: the folder that holds `dataset.json`.
        out_dir: where the volumes go.
        modalities: of `dataset.json`; one makes `image` a path, more a list in this order.
        cls_per: one `cls` per axial slice, or one per volume.

    Raises:
        FileNotFoundError: no `dataset.json`, or a file that it lists is missing.
        ValueError: it has no `modality` or `training`, a modality or `cls_per` is unknown, or an image has other
            channels.
    """
    if cls_per not in ("slice", "volume"):
        raise ValueError(f"cls_per must be 'slice' or 'volume'; got {cls_per!r}.")
    root, out_dir = Path(root).absolute(), Path(out_dir).absolute()
    path = root / "dataset.json"
    names, pairs = _read_task(path)
    if set(modalities) - set(names) or not modalities:
        raise ValueError(f"{path}: modalities must be among {names}; got {list(modalities)}.")
    cases: list[Case] = []
    for pair in tqdm(pairs, desc="taking modalities", unit="case", disable=None):
        image, truth = root / pair["image"], root / pair["label"]
        for file in (image, truth):
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist, but {path} lists it; complete the case.")
        name = re.sub(r"\.nii(\.gz)?$", "", image.name)
        files = {modality: out_dir / name / f"{modality}.nii.gz" for modality in modalities}
        mask = out_dir / name / "mask.nii.gz"
        if not up_to_date((*files.values(), mask), (path, image, truth)):
            volume = _take_modalities(image, names, files)
            save_volume(load_volume(truth, like=volume), mask)
        images = [str(files[modality]) for modality in modalities]
        labels = slice_labels(mask, images)
        cases.append(_case(name, name, images, str(mask), labels if cls_per == "slice" else max(labels)))
    return cases


def _read_task(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The modalities of a task in their order, and its pairs of image and label."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder of one task, e.g. Task05_Prostate.")
    content = read_json(path)
    if not content.get("modality") or not content.get("training"):
        raise ValueError(f"{path}: 'modality' or 'training' is missing; expected the owners' file.")
    return [content["modality"][key] for key in sorted(content["modality"], key=int)], content["training"]


def _take_modalities(image: Path, names: Sequence[str], files: Mapping[str, Path]) -> nib.Nifti1Image:
    """Write those of the modalities along the fourth axis for which there is a file; returns all of them."""
    volume = load_volume(image)
    channels = volume.shape[3] if volume.ndim == 4 else 1
    if channels != len(names):
        raise ValueError(f"{image}: shape {volume.shape}; expected {len(names)} modalities {names}.")
    for modality, file in files.items():
        save_volume(volume.slicer[..., names.index(modality)] if volume.ndim == 4 else volume, file)
    return volume
