"""Whole slides have areas in place of volumes, overlays in place of montages, and labels among their scores."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from common.files import write_json
from common.metrics import dice
from common.report import build_report, slides
from common.report.slides import label_levels
from tests.report.conftest import CELLS, write_cells, write_slides

HEAT, TISSUE, TRUTH, THRESHOLD = (CELLS[key] for key in ("heat", "tissue", "truth", "threshold"))
SHAPE = HEAT.shape


@pytest.fixture
def folder(tmp_path):
    return write_slides(tmp_path)


def test_figures_of_every_threshold_are_those_of_the_cells():
    label = label_levels(HEAT, TISSUE, TISSUE, TRUTH, threshold=THRESHOLD, cell_um=8.0)
    stops = np.linspace(HEAT[TISSUE].min(), HEAT[TISSUE].max(), 255)
    stops[label["stop"]] = THRESHOLD
    assert np.abs(stops - THRESHOLD).argmin() == label["stop"]
    for k in (0, label["stop"], 200, 254):
        marked = (np.float32(stops[k]) < HEAT) & TISSUE
        assert label["stops"][k] == pytest.approx(stops[k], rel=1e-4)
        assert label["share"][k] == round(marked.sum() / TISSUE.sum(), 4)
        assert label["mm2"][k] == round(float(marked.sum()) * 64e-6, 4)
        assert label["dice"][k] == round(dice(marked, TRUTH), 4)


def test_the_picture_has_levels_and_edges_also_where_it_is_coarser(monkeypatch):
    mask, truth = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    mask[2:9, 3:12] = truth[4:15, 5:18] = True

    def channels() -> np.ndarray:
        label = label_levels(HEAT, TISSUE, mask, truth, threshold=np.inf, cell_um=8.0)
        assert label["stop"] is None  # the gate was closed
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(label["picture"]))))

    levels, edge, other = np.moveaxis(channels(), -1, 0)
    assert (levels[~TISSUE] == 0).all()
    assert levels.max() == 254  # nothing exceeds the highest
    assert (edge[2, 3:12] == 255).all()
    assert (edge[5, 6], other[4, 5], other[6, 7]) == (0, 255, 0)
    alone = label_levels(HEAT, TISSUE, mask, None, threshold=np.inf, cell_um=8.0)
    assert (alone["truth"], alone["dice"]) == (False, None)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(alone["picture"]))))
    assert (shown == np.stack([levels, edge, 0 * other], axis=-1)).all()
    monkeypatch.setattr(slides, "SMALL", 100)
    assert channels().shape == (8, 10, 3)


def test_a_slide_is_embedded_with_its_view_and_a_damaged_one_is_named(folder):
    write_cells(folder, "s1")
    write_cells(folder, "s4", truth=np.zeros(SHAPE, bool))
    report = build_report(folder)
    rows = {row["case"]: row for row in report["cases"]}
    (label,) = rows["s1"]["slide"]["labels"]
    assert (label["name"], label["cells"], label["extent"]) == ("tumor", [16, 20], [19.2, 16.0])
    assert rows["s4"]["slide"]["labels"][0]["dice"] is None
    assert "slide" not in rows["s2"]  # of an earlier version, which left no cells
    assert sum("slide" in row for row in build_report(folder, max_embedded=1)["cases"]) == 1
    assert not any("slide" in row for row in build_report(folder, max_mb=0.0)["cases"])
    (folder / "s1_cells.npz").write_bytes(b"cells")
    with pytest.raises(ValueError, match="files of slide s1 do not fit each other"):
        build_report(folder)


def test_slides_are_listed_by_suspicion_with_their_areas_and_overlays(folder):
    report = build_report(folder)
    assert [row["case"] for row in report["cases"]] == ["s1", "s3", "s4", "s2"]
    assert report["cases"][0]["area"] == {"tumor": 2.5}
    assert all(row["picture"] and row["thumbnail"] for row in report["cases"])
    assert [row["positive"] for row in report["cases"]] == [True, True, False, False]
    assert report["run"]["unit"] == "slide"


def test_without_outlines_the_headline_is_the_auc_of_slides(folder):
    report = build_report(folder)
    assert (report["headline"]["measure"], report["headline"]["value"]) == ("AUC of slides", 1.0)
    assert report["headline"]["on"].startswith("4 slides")
    assert [curve["kind"] for curve in report["curves"]["roc"]] == ["slides"]
    assert report["curves"]["roc"][0]["area"] == 1.0
    assert any(line == "No ground-truth mask was opened here." for line in report["supervision"])


def test_with_outlines_it_is_their_dice_beside_all_tissue(folder):
    scores = {"mean": 0.6, "low": 0.5, "high": 0.7, "median": 0.6, "count": 2}
    summary = {"dice": scores, "dice_empty": scores | {"mean": 0.0}, "dice_tissue": scores | {"mean": 0.2}}
    write_json(folder / "summary.json", summary)
    head = build_report(folder)["headline"]
    assert (head["value"], head["on"], head["rival"]["name"]) == (
        0.6,
        "2 slides with a ground-truth mask",
        "all tissue",
    )
