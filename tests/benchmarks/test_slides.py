from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import openslide
import pytest

import benchmarks.heads
from benchmarks.heads import (
    Found,
    RememberedTiles,
    benchmark_heads,
    gate_of,
    line_of,
    row_of,
    scores,
    thresholds_from_labels,
    thresholds_from_masks,
)
from benchmarks.slides import write_textured


def test_a_textured_slide_is_a_pyramid_of_known_resolution_with_its_share_of_tissue(tmp_path):
    with openslide.OpenSlide(write_textured(tmp_path / "a.tif", 2048, levels=2)) as slide:
        assert slide.level_dimensions == ((2048, 2048), (1024, 1024))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        for level, side in enumerate((2048, 1024)):
            green = np.asarray(slide.read_region((0, 0), level, (side, side)))[..., 1].astype(int)
            assert (green < 225).mean() == pytest.approx(0.5, abs=0.08)
            assert green[side // 2 : side // 2 + 99, side // 2 : side // 2 + 99].std() > 10  # tissue in the middle
            assert abs(green[:9, :9] - 243).max() < 3


def found(label: int, probability: float, hot: float, *, outlined: bool = True) -> Found:
    """A slide of 4 × 4 cells, all tissue but the last row: the first two are hot, and a lesion where it is ill."""
    heat, inside, truth = np.full((1, 4, 4), 0.1, np.float32), np.ones((4, 4), bool), np.zeros((4, 4), bool)
    heat[0, 0, :2], heat[0, 3], inside[3], truth[0, :2] = hot, 0.99, False, bool(label)
    return Found(np.array([label]), np.array([probability]), heat, inside, truth if outlined or not label else None)


SLIDES = [found(1, 0.9, 0.8), found(1, 0.7, 0.6), found(0, 0.5, 0.3), found(0, 0.2, 0.2)]


def test_gates_and_thresholds_of_heads_are_chosen_from_labels_and_beside_that_from_masks():
    assert 0.5 < gate_of(SLIDES, 0, 1.0) < 0.7
    assert gate_of([found(1, 0.1, 0.8), found(0, 0.9, 0.1)], 0, 1.0) == 0  # `fit` would refuse
    (limit,) = thresholds_from_labels(SLIDES, 1.0)
    assert limit == pytest.approx(0.3)  # of the tissue of healthy slides; the glass, .99, does not count
    chosen = thresholds_from_masks(SLIDES, [0.0])
    assert chosen is not None
    assert 0.1 <= chosen[0] < 0.6
    assert thresholds_from_masks([found(1, 0.9, 0.8, outlined=False), SLIDES[2]], [0.0]) is None


def test_heads_of_other_images_or_masks_are_refused_in_the_folder_of_finished_ones(tmp_path, monkeypatch):
    cases = [{"case": n, "patient": n, "image": f"{n}.tif", "label": f"{n}.xml", "cls": k} for k, n in enumerate("ab")]
    more = [{key: f"v{one}" if key != "cls" else one for key, one in case.items()} for case in cases]
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["HE"], "training": cases, "validation": more}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    files = [tmp_path / case[key] for case in (*cases, *more) for key in ("image", "label")]
    for file in files:
        file.touch()
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr(benchmarks.heads, "_scored", lambda *_: {"auc": 0.5})
    run = functools.partial(benchmark_heads, str(tmp_path), str(tmp_path / "out"), only="insight", seeds=[0])
    assert run() == run()
    for file, what in ((tmp_path / "vb.tif", "images"), (tmp_path / "a.xml", "masks")):
        file.write_bytes(b"other")
        with pytest.raises(ValueError, match=f"made with another .*set of {what}"):
            run()


def test_scores_of_a_head_are_dice_of_ill_slides_and_tissue_marked_in_healthy_ones():
    told = scores(SLIDES, [0.4], {"labels": [0.25], "masks": None})
    assert (told["auc"], "masks" in told) == (1.0, False)
    assert (told["labels"]["mean"], told["labels"]["std"]) == (1.0, 0.0)
    assert told["labels"]["marked"] == pytest.approx((2 / 12 + 0) / 2)  # the other one stays behind the gate
    shut = scores(SLIDES, [0.8], {"labels": [0.25]})["labels"]
    assert (shut["mean"], shut["marked"]) == (0.5, 0)


def test_a_row_of_heads_has_each_seeds_auc_and_means_over_seeds():
    def of(auc: float | None, mean: float, marked: float) -> dict:
        return {"auc": auc, "labels": {"mean": mean, "std": 0.2, "marked": marked}}

    parts = [of(0.9, 0.5, 0.01) | {"masks": {"mean": 0.8, "std": 0.1, "marked": 0.5}}, of(0.8, 0.7, 0.03)]
    parts[1]["masks"] = {"mean": 0.6, "std": 0.3, "marked": 0.1}
    expected = "| abmil | 2 | 0.900, 0.800 | 0.600 ± 0.200 | 0.700 ± 0.200 | 2.0%, 30.0% |"
    assert line_of(row_of("abmil", parts)) == expected
    assert line_of(row_of("abmil", [{"auc": None}])) == "| abmil | 1 | n/a | n/a ± n/a | n/a ± n/a | n/a, n/a |"


def test_slides_are_tiled_once_for_all_heads_and_may_be_closed_again():
    @dataclass(frozen=True)
    class Tiled:
        slide: Any

    looked: list[tuple[str, int]] = []

    class Tiler:
        tile_px, recipe = 224, "as it was"

        def __call__(self, path: str, *, cells: int) -> Tiled:
            looked.append((path, cells))
            return Tiled(BytesIO())

    remembered = RememberedTiles(Tiler())
    for _ in range(2):
        remembered("a.tif", cells=14).slide.close()
    assert (looked, remembered.tile_px, remembered.recipe) == ([("a.tif", 14)], 224, "as it was")
