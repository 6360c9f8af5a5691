from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from benchmarks.mosaics import lay_out_mosaics
from tests.bundles.conftest import load_script

SIDE = 128  # pixels of a tile


def mosaic(folder: Path, name: str, label: str, *, gray: int) -> np.ndarray:
    """Four by four tiles of one gray, the finding in the second of the first row; its truth."""
    truth = np.ones((4, 4), np.uint8)
    truth[0, 1] = 2 if label != "no" else 1
    (folder / "truth").mkdir(parents=True)
    Image.fromarray(truth).save(folder / "truth" / f"{name}.png")
    with tifffile.TiffWriter(folder / f"{name}.tif") as file:
        for level in range(2):
            page = np.full((4 * SIDE >> level, 4 * SIDE >> level, 3), gray, np.uint8)
            resolution = (20_000 / 2**level,) * 2
            options = {"tile": (256, 256), "photometric": "rgb", "subfiletype": level, "metadata": None}
            file.write(page, resolution=resolution, resolutionunit="CENTIMETER", **options)
    (folder / "labels.csv").write_text(f"image,patient,label\n{name}.tif,{name},{label}\n")
    return truth


def rows_of(folder: Path) -> list[list[str]]:
    return [list(row.values()) for row in csv.DictReader((folder / "slides.csv").read_text().splitlines())]


def outlined(path: Path, group: str, shape: tuple[int, int]) -> np.ndarray:
    truth = load_script("insight_ct", "slides.truth")
    polygons = [one for one in truth.read_polygons(path) if one[0] == group]
    return truth.polygons_to_cells(polygons, shape=shape, cell_px=(SIDE / 2, SIDE / 2))


def test_mosaics_that_do_not_fit_are_refused(tmp_path):
    mosaic(tmp_path / "a", "a", "low", gray=80)
    mosaic(tmp_path / "b", "b", "no", gray=80)
    tifffile.imwrite(tmp_path / "b" / "b.tif", np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match=r"b\.tif has another size or number of levels than .*a\.tif"):
        lay_out_mosaics(str(tmp_path / "out"), str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(ValueError, match="needs a folder of mosaics"):
        lay_out_mosaics(str(tmp_path / "out"))


def test_two_mosaics_are_joined_with_their_outlines_and_labels(tmp_path):
    for name, label, gray in (("a", "low", 80), ("b", "high", 200)):
        mosaic(tmp_path / name, name, label, gray=gray)
    lay_out_mosaics(str(tmp_path / "out"), str(tmp_path / "a"), str(tmp_path / "b"), split="test")
    assert rows_of(tmp_path / "out") == [["a_b.tif", "a_b", "high;low", "test", "a_b.xml"]]
    with openslide.OpenSlide(tmp_path / "out" / "a_b.tif") as slide:
        assert slide.level_dimensions == ((8 * SIDE, 4 * SIDE), (4 * SIDE, 2 * SIDE))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        for level in range(2):
            pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., 0]
            assert (pixels[0, 0], pixels[-1, -1]) == (pytest.approx(80, abs=2), pytest.approx(200, abs=2))
    for group, left in (("low", 2), ("high", 10)):  # two cells a tile
        expected = np.zeros((8, 16), bool)
        expected[:2, left : left + 2] = True
        np.testing.assert_array_equal(outlined(tmp_path / "out" / "a_b.xml", group, (8, 16)), expected)


def test_mosaics_of_one_folder_are_copied_and_a_section_takes_its_old_rows_place(tmp_path):
    mosaic(tmp_path / "a", "a", "yes", gray=80)
    mosaic(tmp_path / "b", "b", "no", gray=80)
    for folder, split in (("a", "training"), ("b", "test"), ("a", "training")):
        lay_out_mosaics(str(tmp_path / "out"), str(tmp_path / folder), split=split)
    assert rows_of(tmp_path / "out") == [["b.tif", "b", "no", "test", ""], ["a.tif", "a", "yes", "training", "a.xml"]]
    assert (tmp_path / "out" / "a.tif").read_bytes() == (tmp_path / "a" / "a.tif").read_bytes()
    assert not outlined(tmp_path / "out" / "b.xml", "no", (8, 8)).any()
