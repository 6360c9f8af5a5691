from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import corners_of, write_annotation

truth = load_script("insight_ct", "slides.truth")


class TestTruth:
    CELL = (14.0, 14.0)

    def cells(self, path: Path, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
        return truth.polygons_to_cells(truth.read_polygons(path), shape=shape, cell_px=self.CELL)

    def test_a_cell_is_positive_when_its_center_lies_in_a_polygon(self, tmp_path):
        triangle = [(100.0, 50.0), (500.5, 90.25), (300.0, 400.0)]
        cells = self.cells(write_annotation(tmp_path / "a.xml", [("_0", triangle)]))
        (ax, ay), (bx, by), (cx, cy) = triangle
        y, x = np.meshgrid(7 + 14 * np.arange(60), 7 + 14 * np.arange(80), indexing="ij")
        sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax), (cx - bx) * (y - by) - (cy - by) * (x - bx)]
        sides.append((ax - cx) * (y - cy) - (ay - cy) * (x - cx))
        np.testing.assert_array_equal(cells, np.all(np.array(sides) > 0, axis=0))

    def test_excluded_groups_cut_holes_whatever_the_order(self, tmp_path):
        outer, hole = corners_of((140, 140, 700, 700)), corners_of((280, 280, 420, 420))
        expected = np.zeros((60, 80), bool)
        expected[10:50, 10:50] = True
        expected[20:30, 20:30] = False
        for number, polygons in enumerate(([("_2", hole), ("Tumor", outer)], [("_1", outer), ("Exclusion", hole)])):
            np.testing.assert_array_equal(self.cells(write_annotation(tmp_path / f"{number}.xml", polygons)), expected)

    def test_no_finding_is_too_small(self, tmp_path):
        polygons = [("_0", corners_of((142, 282, 145, 284))), ("_0", corners_of((-9, -9, -8, -8)))]
        assert np.argwhere(self.cells(write_annotation(tmp_path / "a.xml", polygons))).tolist() == [[20, 10]]

    def test_outlines_of_another_slide_are_refused(self, tmp_path):
        polygons = [("_0", corners_of((9000, 140, 9500, 700))), ("_2", corners_of((140, 140, 700, 700)))]
        with pytest.raises(ValueError, match="all polygons lie beyond the slide, from x 9000, y 140 on"):
            self.cells(write_annotation(tmp_path / "a.xml", polygons))

    def test_corners_are_taken_in_their_order_and_lines_left_out(self, tmp_path):
        lines = '<Coordinate Order="{}" X="{}" Y="{}"/>'
        shuffled = "".join(lines.format(i, *corners_of((140, 140, 700, 700))[i]) for i in (2, 0, 3, 1))
        line = lines.format(0, 1, 1) + lines.format(1, 500, 1)
        parts = [f'<Annotation PartOfGroup="_0">{points}</Annotation>' for points in (shuffled, line)]
        (tmp_path / "a.xml").write_text(f"<A>{''.join(parts)}</A>")
        cells = self.cells(tmp_path / "a.xml")
        assert cells[10:50, 10:50].all()
        assert cells.sum() == 1600

    @pytest.mark.parametrize("kind", ["Dot", "PointSet"])
    def test_points_outline_nothing_however_many_there_are(self, tmp_path, kind):
        path = write_annotation(tmp_path / "a.xml", [("_0", corners_of((140, 140, 700, 700)))])
        assert len(truth.read_polygons(path)) == 1
        path.write_text(path.read_text().replace('Type="Polygon"', f'Type="{kind}"'))
        assert truth.read_polygons(path) == []

    @pytest.mark.parametrize(
        "text",
        [
            "no xml",
            '<A><Annotation><Coordinate Order="0" X="1"/></Annotation></A>',
            '<Annotations><Annotation><Vertex X="1" Y="2"/></Annotation></Annotations>',  # of ImageScope
            "<annotations><annotation><point><x>1</x></point></annotation></annotations>",  # of NDP.view
        ],
    )
    def test_names_a_file_that_is_no_annotation(self, tmp_path, text):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(ValueError, match=r"a.xml: no annotation as ASAP writes it"):
            truth.read_polygons(tmp_path / "a.xml")


def scored(tmp_path: Path, rows: list[dict]) -> dict:
    handler = truth.SlideScores(tmp_path, classes=["none", "tumor"], resamples=40)
    handler.rows = rows
    return handler.summary()


def test_intervals_draw_patients_with_all_of_their_slides(tmp_path):
    values = [("a", 0.2)] * 3 + [("b", 0.8)] * 3
    summary = scored(tmp_path, [{"case": str(k), "patient": p, "dice": v} for k, (p, v) in enumerate(values)])
    assert [summary["dice"][key] for key in ("mean", "low", "high", "count")] == [0.5, 0.2, 0.8, 6]
    rng, rows = np.random.default_rng(0), []
    for number in range(12):
        ill = int(number > 5)
        row = {"label_tumor": ill, "probability_tumor": 0.3 * ill + rng.random(), "share_tumor": 0.0}
        rows.append({"case": str(number), "patient": f"p{number:02}", **row})
    once, copies = (scored(tmp_path, rows * times)["labels"]["tumor"] for times in (1, 5))
    assert copies["auc_interval"] == once["auc_interval"]
    assert once["auc_interval"][0] < once["auc"] < once["auc_interval"][1]


def test_areas_are_in_square_millimeters(tmp_path):
    mask, found = np.zeros((4, 4), int), np.zeros((4, 4), bool)
    mask[0], found[:2, :2] = 1, True  # two cells are right and two false
    tiled = SimpleNamespace(grid=SimpleNamespace(cell_um=500.0))
    case = {"case": "s", "patient": "p"}
    result = SimpleNamespace(case=case, probability=[0.9], truth=found, mask=mask, inside=mask > -1, tiled=tiled)
    handler = truth.SlideScores(tmp_path, classes=["none", "tumor"])
    handler._collect({}, {"pred": result}, None)
    row = handler.rows[0]
    assert (row["truth_mm2"], row["mask_mm2"], row["false_mm2"], row["dice"]) == (1.0, 1.0, 0.5, 0.5)


def test_labels_that_outlines_contradict_are_counted_and_named(tmp_path, caplog):
    kinds = {"right": (1, 0.2), "healthy": (0, 0.0), "turned": (0, 0.2), "empty": (1, 0.0)}
    known = {"probability_tumor": 0.5, "share_tumor": 0.0}
    rows = [{"case": k, "patient": k, "label_tumor": c, "truth_mm2": mm2, **known} for k, (c, mm2) in kinds.items()]
    rows.append({"case": "without", "patient": "without", "label_tumor": 1, **known})
    assert scored(tmp_path, rows)["disagreeing"] == {"count": 2, "of": 4, "cases": ["turned", "empty"]}
    assert "disagreeing" not in scored(tmp_path, [*rows[:2], rows[-1]])
    handler = truth.SlideScores(tmp_path, classes=["none", "tumor"], resamples=40)
    handler.rows = rows
    handler._write()
    assert "labels contradict outlines in 2 of 4 slides (turned, empty)" in caplog.text


def test_outlines_of_bare_glass_are_counted_and_named(tmp_path, caplog):
    tissue, grid = np.zeros((8, 8), bool), SimpleNamespace(cell_um=500.0, cell_px=(10.0, 10.0))
    tissue[4:, 4:] = True
    handler = truth.SlideScores(tmp_path, classes=["none", "tumor"], resamples=40)
    for name, at in {"right": (4, 4), "edge": (3, 4), "half the size": (2, 2)}.items():
        found = np.zeros((10, 10), bool)  # cells reach beyond the tissue's array
        found[at[0] : at[0] + 3, at[1] : at[1] + 3] = True
        case = {"case": name, "patient": name, "labels": [1]}
        tiled = SimpleNamespace(grid=grid)
        scored = {"truth": found, "mask": found.astype(int), "inside": tissue, "tiled": tiled}
        handler._collect({}, {"pred": SimpleNamespace(case=case, probability=[0.9], **scored)}, None)
    assert handler.summary()["off_tissue"] == {"count": 1, "of": 3, "cases": ["half the size"]}
    handler._write()
    assert "most of what is outlined holds no tissue in 1 of 3 slides (half the size)" in caplog.text
    handler.rows.pop()
    assert "off_tissue" not in handler.summary()
