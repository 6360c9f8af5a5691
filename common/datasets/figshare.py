"""Brain tumors in contrast-enhanced T1 slices, published on figshare as MATLAB files (Cheng et al.)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.transform import resize
from tqdm import tqdm

from ..data import Case
from ..files import PathLike, atomic_path
from .files import only, up_to_date

CHENG_CLASSES = ("none", "meningioma", "glioma", "pituitary")


def cheng(root: PathLike, out_dir: PathLike, *, size: int | None = None) -> list[Case]:
    """Read the 3,064 T1ce slices of 233 patients by Cheng et al. (figshare 1512427) and convert them to pictures.

    Layout: `<number>.mat`, in any folders below `root`; MATLAB 7.3, i.e. HDF5, with `cjdata/image` (512×512),
    `cjdata/tumorMask`, `cjdata/label` (1 meningioma, 2 glioma, 3 pituitary tumor) and `cjdata/PID`. Axial, coronal and
    sagittal slices are mixed, and none is free of tumor: classes are told from one another, "none" is no label.
    Written per slice: `out_dir/<number>.png` (16 bits) and `<number>_mask.png`. Slices finished in this size are
    skipped unless their files have changed since, so an interrupted conversion can be run again. Needs the extra
    `[figshare]`.

    Args:
        root: the unpacked files.
        out_dir: where the pictures go.
        size: width and height of the pictures; by default as they are.

    Returns:
        Cases with `patient` and the tumor's class as `cls`.

    Raises:
        ImportError: h5py is not installed.
        FileNotFoundError: no such file.
        ValueError: a file is no HDF5, or lacks a part, or a number is there twice.
    """
    root, out_dir = Path(root).absolute(), Path(out_dir).absolute()
    files: dict[int, list[Path]] = {}
    for path in sorted(root.rglob("[!.]*.mat")):
        if path.stem.isdecimal():
            files.setdefault(int(path.stem), []).append(path)
    if not files:
        raise FileNotFoundError(f"no file <number>.mat below {root}; unpack the four archives there.")
    alone = {number: only(paths) for number, paths in files.items()}
    out_dir.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for number, path in tqdm(sorted(alone.items()), desc="converting slices", unit="slice", disable=None):
        name = f"{number:04d}"
        content = _read(path)
        pictures = {"image": out_dir / f"{name}.png", "label": out_dir / f"{name}_mask.png"}
        shape = size or content["image"].shape[::-1]
        if not (up_to_date(pictures.values(), [path]) and all(_is_picture(file, shape) for file in pictures.values())):
            image, mask = (_resized(content[key], size) for key in ("image", "tumorMask"))
            _save(image.clip(0, 65535).round().astype(np.uint16), pictures["image"])
            _save(255 * (mask > 0.5).astype(np.uint8), pictures["label"])
        paths = {key: str(file) for key, file in pictures.items()}
        cases.append({"case": name, "patient": content["PID"], **paths, "cls": content["label"]})
    return cases


def _read(path: Path) -> dict[str, Any]:
    """Image and mask in rows and columns, label and patient."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: reading MATLAB 7.3 needs h5py: pip install 'weakseg-bundles[figshare]'") from error
    try:
        with h5py.File(path) as file:
            parts = {key: np.asarray(file["cjdata"][key]) for key in ("image", "tumorMask", "label", "PID")}
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path}: {error}; expected MATLAB 7.3 with cjdata/image, tumorMask, label and PID."
        ) from error
    label = int(parts["label"].item())
    if not 0 < label < len(CHENG_CLASSES):
        raise ValueError(f"{path}: the label {label}; expected 1, 2 or 3.")
    # MATLAB keeps columns together, and texts as codes of their letters.
    patient = "".join(chr(code) for code in parts["PID"].flatten())
    return {"image": parts["image"].T, "tumorMask": parts["tumorMask"].T, "label": label, "PID": patient}


def _is_picture(path: Path, size: int | tuple[int, ...]) -> bool:
    """Whether a picture has this size, or width and height: not of a run with another size."""
    with Image.open(path) as picture:
        return picture.size == (size if isinstance(size, tuple) else (size, size))


def _resized(pixels: np.ndarray, size: int | None) -> np.ndarray:
    plain = pixels.astype(np.float32)
    return plain if size is None else resize(plain, (size, size), order=1, anti_aliasing=True)


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
