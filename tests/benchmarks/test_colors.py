from __future__ import annotations

import json

import numpy as np
import pytest
from skimage.color import rgb2hed

from benchmarks.colors import best_threshold, cell_colors, fitted, line_of
from benchmarks.heads import Found
from tests.bundles.insight_ct.slides.helpers import LESIONS, corners_of, slide_case, write_annotation
from tests.running import run_module


def found(label: int, lesion: float, *, outlined: bool = True) -> Found:
    """A slide of 4 × 4 cells, all tissue but the last row; its first row has another color, and is ill or not."""
    heat, inside, truth = np.full((1, 4, 4), 0.5, np.float32), np.ones((4, 4), bool), np.zeros((4, 4), bool)
    heat[0, 0], heat[0, 3], inside[3], truth[0] = lesion, 9, False, bool(label)
    return Found(np.array([bool(label)]), np.zeros(1), heat, inside, truth if outlined else None)


def test_colors_of_cells_are_means_of_scikit_images_hematoxylin_and_of_darkness():
    pixels = np.random.default_rng(0).uniform(0.2, 1, (28, 28, 3)).astype(np.float32)
    colors = cell_colors(pixels, 14)
    part = pixels[2:4, 6:8]
    assert colors.shape == (2, 14, 14)
    np.testing.assert_allclose(colors[:, 1, 3], [rgb2hed(part)[..., 0].mean(), 1 - part.mean()], rtol=1e-5)


@pytest.mark.parametrize(("lesion", "sign"), [(0.9, 1), (0.1, -1)])
def test_a_finding_is_told_by_more_of_a_color_or_by_less(lesion, sign):
    training = [found(1, lesion), found(0, 0.5), found(1, lesion), found(0, 0.6 - lesion / 5)]
    row = fitted(training, [found(1, lesion), found(0, 0.5)])
    assert (row["sign"], row["dice_training"], row["mean"], row["marked"]) == (sign, 1, 1, 0)
    assert (row["sign_of_slide"], row["auc_training"], row["auc"]) == (sign, 1, 1)


def test_what_nothing_can_be_fitted_to_is_said():
    with pytest.raises(ValueError, match="no training slide has an outline"):
        best_threshold([found(1, 0.9, outlined=False)])
    with pytest.raises(ValueError, match="all training slides have the same label"):
        fitted([found(1, 0.9), found(1, 0.8)], [found(1, 0.9)])


def test_dark_lesions_are_found_by_darkness_on_slides_of_a_datalist(tmp_path):
    sections: dict[str, list[dict]] = {"training": [], "test": []}
    for number, section in enumerate(["training", "training", "test", "test"]):
        case = slide_case(tmp_path, f"s{number}", cls=number % 2)
        if number % 2:
            case["label"] = str(write_annotation(tmp_path / f"s{number}.xml", [("", corners_of(b)) for b in LESIONS]))
        sections[section].append(case)
    (tmp_path / "datalist.json").write_text(json.dumps({"classes": ["none", "tumor"], **sections}))
    done = run_module("benchmarks", "colors", str(tmp_path), "--output", str(tmp_path / "colors.json"))
    assert done.returncode == 0, done.stderr
    hematoxylin, darkness, tissue = json.loads((tmp_path / "colors.json").read_text())
    assert all(f"| {name} | " in done.stdout for name in ("hematoxylin", "darkness", "all tissue"))
    for row in (hematoxylin, darkness):
        assert (row["sign"], row["sign_of_slide"], row["auc"]) == (1, 1, 1)
        assert (row["mean"], row["marked"]) == (pytest.approx(0.8, abs=0.1), 0)  # smoothing takes thin parts away
    assert (tissue["auc"], tissue["mean"], tissue["marked"]) == (0.5, pytest.approx(0.1, abs=0.02), 1)
    assert line_of(tissue | {"std": None}).endswith("± n/a | 100.0% |")
