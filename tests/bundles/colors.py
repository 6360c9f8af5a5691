"""Images in color with yes/no labels: PNG, JPEG, TIFF, and NIfTI with the colors on its fourth axis."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image

from common.commands.prepare import prepare
from common.files import read_json
from tests.bundles.conftest import run_bundle

SHAPE = (36, 44)  # rows and columns
ENDS = ("png", "jpg", "tif", "nii.gz")
# What calibration would choose, for weights that have not learned enough for it: every slice is looked into.
CHOSEN = {"gate": 0.0, "gate_smooth_mm": 0.0, "binarize": "fixed", "threshold": 0.0, "refine": None}
CHOSEN |= {"min_volume_ml": 0.0}


def write_colors(folder: Path) -> Path:
    """Sixteen cases, each of its own patient, and their datalist; those with a finding hold a red square."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image,label,patient,split"]
    for number in range(16):
        rng = np.random.default_rng(number)
        pixels = np.array([20, 40, 60]) + rng.uniform(40, 80, (*SHAPE, 3))
        label = number // 4 % 2
        if label:
            pixels[8:20, 10:24] = np.array([220, 30, 30]) + rng.uniform(-10, 10, (12, 14, 3))
        values, name = pixels.astype(np.uint8), f"{number:04d}.{ENDS[number % 4]}"
        if name.endswith("nii.gz"):
            nib.save(nib.Nifti1Image(values.swapaxes(0, 1)[:, :, None], np.eye(4)), folder / name)
        else:
            Image.fromarray(values).save(folder / name)
        rows.append(f"{name},{('none', 'red')[label]},p{number},{section(number)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    prepare("table", str(folder / "labels.csv"))
    return folder


def section(number: int) -> str:
    """Each holds all formats, validation and test with and without a finding."""
    return ("training", "training", "validation", "test")[(number // 4 + number % 4) % 4]


def check_results(folder: Path, numbers: list[int]) -> None:
    """Fails unless every case has a mask and a heatmap of its size in its format, and nothing to be warned of."""
    with open(folder / "predictions.csv", encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == [f"{number:04d}" for number in numbers]
    for number in numbers:
        path = folder / f"{number:04d}"
        if ENDS[number % 4] == "nii.gz":
            mask, heatmap = (nib.load(f"{path}_{kind}.nii.gz").get_fdata() for kind in ("seg", "heatmap"))
            assert mask.shape == heatmap.shape == (*SHAPE[::-1], 1)
        else:
            mask, heatmap = np.asarray(Image.open(f"{path}_seg.png")), tifffile.imread(f"{path}_heatmap.tif")
            assert mask.shape == heatmap.shape == SHAPE
            assert Image.open(f"{path}_heatmap.png").size == SHAPE[::-1]
        assert set(np.unique(mask)) <= {0, 1}
        assert "channel" not in rows[path.name]["warnings"]
        assert np.isfinite(heatmap).all()


def train_and_mark(
    bundle: str, folder: Path, settings: dict[str, Any], chosen: dict[str, Any], **training_alone: Any
) -> None:
    """Train an epoch and mark by its weights; fails unless these know three channels and every case is marked."""
    data, training = write_colors(folder / "data"), folder / "training"
    alone = {"max_epochs": 1, "batch_size": 4, **training_alone}
    run_bundle(bundle, ["train.json"], dataset_dir=data, output_dir=training, **alone, **settings)
    assert read_json(training / "model.json")["seen"]["channels"] == ["channel 1", "channel 2", "channel 3"]
    shared = {"dataset_dir": data, "datalist": data / "datalist.json", "ckpt": training / "model.pt", **settings}
    run_bundle(bundle, ["inference.json"], output_dir=folder / "out", **shared, **chosen)
    check_results(folder / "out", [3, 6, 9, 12])
