"""Pictures of several classes, none of them healthy: a table of labels in, training, scored masks as pictures out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.commands.prepare import prepare
from common.data import find_cases
from tests.bundles.conftest import read_json, run_bundle

BUNDLE = "gp_unet_brats"
CLASSES = ["none", "round", "bar"]
SMALL = {"classes": CLASSES, "backbone": "gp_unet", "network_options": {"features": [4, 8, 16]}, "organ": "none"}
SMALL |= {"spacing": [-1.0, -1.0, -1.0]}


def write_pictures(folder: Path) -> None:
    """36 rows, 44 columns; PNG, JPEG and TIFF, and a table that says what they show."""
    rows = ["image,label,patient,mask,split"]
    for number in range(12):
        section = ("training", "training", "validation", "test")[number // 3]
        rng = np.random.default_rng(number)
        mask = np.zeros((36, 44), np.uint8)
        mask[8:18, 10:20] = 1
        if number % 2:
            mask[12:28, 30:34] = 1
        pixels = (rng.uniform(20, 60, mask.shape) + 120 * mask).astype(np.uint8)
        name = f"{number:04d}.{('png', 'jpg', 'tif')[number % 3]}"
        Image.fromarray(pixels).save(folder / name)
        Image.fromarray(255 * mask).save(folder / f"{number:04d}_mask.png")
        rows.append(f"{name},{CLASSES[1 + number % 2]},p{number},{number:04d}_mask.png,{section}")
    (folder / "labels.csv").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of the data, which holds results, too."""
    data = tmp_path_factory.mktemp("pictures")
    write_pictures(data)
    prepare("table", str(data / "labels.csv"), classes=",".join(CLASSES))
    training = {"max_epochs": 1, "min_slices_per_epoch": 0, "batch_size": 4, "slice_size": [48, 48]}
    training |= {"output_dir": data / "runs"}
    run_bundle(BUNDLE, ["train.json", "t1ce.json"], dataset_dir=data, **SMALL, **training)
    configs = ["inference.json", "evaluate.json", "t1ce.json", "paper_scores.json"]
    scoring = {"ckpt": data / "runs" / "model.pt", "output_dir": data, "baseline_thresholds": [1.4, 1.2]}
    run_bundle(BUNDLE, configs, dataset_dir=data, **SMALL, **scoring)
    return data


def test_classes_are_learned_from_one_another_where_none_is_healthy(run):
    with open(run / "runs" / "training_log.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["median_loss"]) < 0
    assert read_json(run / "runs" / "model.json")["trained"]["classes"] == CLASSES


def test_every_picture_gets_mask_and_heatmap_of_its_size_and_a_row_with_a_column_a_class(run):
    with open(run / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["0009", "0010", "0011"]  # a PNG, a JPEG and a TIFF
    assert {*(f"probability_{name}" for name in CLASSES), "area_pixels"} <= rows[0].keys()
    for row in rows:
        mask = np.asarray(Image.open(run / f"{row['case']}_seg.png"))
        assert mask.shape == (36, 44)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert int(row["area_pixels"]) == np.count_nonzero(mask)
        assert tifffile.imread(run / f"{row['case']}_heatmap.tif").shape == (36, 44)
        assert Image.open(run / f"{row['case']}_heatmap.png").size == (44, 36)


def test_masks_are_scored_by_class(run):
    scores = read_json(run / "class_scores.json")
    assert scores["slices"] == 3
    assert scores["masks"].keys() == {"all", "round", "bar"}
    assert np.sum(scores["confusion"]) == 3
    assert read_json(run / "summary.json")["cases"] == 3


def test_results_among_the_data_are_no_data(run):
    found = [case["case"] for case in find_cases(run, "00*.png")]
    assert found == sorted([*(f"{n:04d}" for n in range(0, 12, 3)), *(f"{n:04d}_mask" for n in range(12))])
