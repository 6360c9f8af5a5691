from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import GLASS, LESION, TISSUE, write_slide

slide_tiles = load_script("insight_ct", "slides.tiles")
Tiler, Tiles = slide_tiles.Tiler, slide_tiles.Tiles


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    """2000 × 1600 pixels of 0.5 µm; tissue and, in it, a lesion."""
    tissue, lesion = (300, 200, 1500, 1300), (900, 700, 1100, 800)
    return write_slide(tmp_path / "a.tif", (2000, 1600), tissue=[tissue], lesions=[lesion], levels=2)


class TestTiler:
    def test_keeps_tiles_with_tissue_and_knows_where_they_lie(self, slide_file):
        tiled = Tiler(min_tissue=0.45)(str(slide_file), cells=16)
        with tiled.slide:
            expected = [
                (x, y)
                for y in range(0, 1600, 224)
                for x in range(0, 2000, 224)
                if (min(x + 224, 1500) - max(x, 300)) * (min(y + 224, 1300) - max(y, 200)) >= 0.45 * 224**2
                and x < 1500
                and y < 1300
            ]
            assert tiled.tiles.coordinates.tolist() == [list(corner) for corner in expected]
            assert (tiled.corners * 14 == tiled.tiles.coordinates[:, ::-1]).all()
            with Image.open(slide_file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            x, y = tiled.tiles.coordinates[20]
            shown = tiled.tiles[20:21][0].numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(shown * 255, pixels[y : y + 224, x : x + 224], atol=1e-3)

    def test_inside_is_the_share_of_tissue_in_the_cells_of_a_tile(self, slide_file):
        tiled = Tiler()(str(slide_file), cells=16)
        with tiled.slide:
            inside = tiled.inside(slice(0, len(tiled.tiles)))
            assert list(inside.shape) == [len(tiled.tiles), 1, 16, 16]
            for share, (x, y) in zip(inside[:, 0].numpy(), tiled.tiles.coordinates.tolist(), strict=True):
                centers = np.arange(7, 224, 14)
                rows, columns = (y + centers > 200) & (y + centers < 1300), (x + centers > 300) & (x + centers < 1500)
                to_edge = [
                    np.abs(np.subtract.outer(edges, corner + centers)).min(axis=0)
                    for edges, corner in (((200, 1300), y), ((300, 1500), x))
                ]
                clear = np.logical_and.outer(to_edge[0] > 14, to_edge[1] > 14)
                clear &= np.logical_or.outer(to_edge[0] > 60, to_edge[1] > 60)  # filters round the corners
                assert clear.sum() > 100
                np.testing.assert_allclose(share[clear], np.outer(rows, columns)[clear], atol=0.02)

    def test_tiles_and_cells_in_a_white_hole_are_left_out_though_the_hole_counts_as_tissue_by_its_size(self, tmp_path):
        hole = (896, 672, 1144, 920)  # 124 µm, one tile and a little
        path = write_slide(tmp_path / "a.tif", (2000, 1600), tissue=[(200, 200, 1800, 1400)], lesions=[hole],
                           colors=(GLASS, TISSUE, GLASS), levels=2)  # fmt: skip
        tiled = Tiler()(str(path), cells=16)
        with tiled.slide:
            assert tiled.tissue[49, 63]
            assert [896, 672] not in tiled.tiles.coordinates.tolist()
            assert [1120, 672] in tiled.tiles.coordinates.tolist()
            assert tiled.coverage[48:64, 64:80].max() == 0
        tiled = Tiler(mpp=1.0)(str(path), cells=16)  # now the hole lies in a tile that is kept, in cells of 28 pixels
        with tiled.slide:
            assert [896, 448] in tiled.tiles.coordinates.tolist()
            assert tiled.coverage[26:31, 34:39].max() == 0
            assert tiled.coverage[26:31, 42:46].min() == tiled.coverage[18:22, 34:39].min() == 1

    def test_threads_and_parts_change_nothing(self, slide_file):
        with Tiler(stride=112)(str(slide_file), cells=16).slide as slide:
            coordinates = np.array([[300, 200], [412, 200], [0, 0], [1900, 1500]])
            one = Tiles(slide, coordinates, tile_px=224, mpp=0.5)
            many = Tiles(slide, coordinates, tile_px=224, mpp=0.5, threads=4)
            np.testing.assert_array_equal(one[0:4], many[0:4])
            np.testing.assert_array_equal(one[2:4], many[0:4][2:])
            assert list(one[4:4].shape) == [0, 3, 224, 224]

    def test_seeks_tissue_in_a_thumbnail_of_limited_size(self, slide_file):
        tiled = Tiler(thumbnail_px=50)(str(slide_file), cells=16)
        tiled.slide.close()
        assert (tiled.thumbnail_mpp, tiled.tissue.shape) == (20.0, (40, 50))
        assert tiled.tissue.mean() == pytest.approx(1200 * 1100 / (2000 * 1600), rel=0.05)

    def test_refuses_a_blank_slide_and_closes_it(self, tmp_path):
        path = write_slide(tmp_path / "blank.tif", (1500, 1500))
        with pytest.raises(ValueError, match=r"blank.tif: no tissue found"):
            Tiler()(str(path), cells=16)

    def test_recipe_changes_with_every_option_but_the_threads(self):
        recipes = {Tiler().recipe, Tiler(threads=8).recipe}
        assert len(recipes) == 1
        changes = [
            {"tile_px": 256},
            {"mpp": 1.0},
            {"stride": 112},
            {"min_tissue": 0.2},
            {"tissue_mpp": 4.0},
            {"thumbnail_px": 999},
        ]
        changes += [{"tissue": {"pen": False}}, {"mpp_of_file": 0.25}, {"backend": "tifffile"}]
        recipes |= {Tiler(**change).recipe for change in changes}
        assert len(recipes) == 1 + len(changes)

    def test_picture_dims_what_is_left_out(self, slide_file):
        tiled = Tiler(min_tissue=0.9)(str(slide_file), cells=16)
        with tiled.slide:
            picture = np.asarray(tiled.picture(longest=1000)).astype(int)
        assert picture.shape == (800, 1000, 3)
        assert np.abs(picture[20, 20] - np.array(GLASS) // 2).max() <= 1
        assert np.abs(picture[375, 470] - LESION).max() <= 1
        assert np.abs(picture[106, 400] - np.array(TISSUE) // 2).max() <= 1  # in a tile with too little tissue

    def test_coarser_pictures_are_made_of_the_finest_that_was_read(self, slide_file, monkeypatch):
        kept, fresh = (Tiler()(str(slide_file), cells=16) for _ in range(2))
        with kept.slide, fresh.slide:
            assert kept.view(1000).shape == (800, 1000, 3)
            expected = fresh.view(600).astype(int)
            monkeypatch.setattr(type(kept.slide), "thumbnail", None)  # the file is not asked again
            coarser = kept.view(600)
        assert coarser.shape == expected.shape == (480, 600, 3)
        assert np.abs(coarser - expected).mean() < 0.5
        assert np.abs(coarser[225, 282] - np.array(LESION)).max() <= 1

    def test_real_slide_has_tissue_in_the_middle_and_glass_in_the_corner(self, real_data):
        tiled = Tiler()(str(real_data("wsi") / "small_HE.svs"), cells=16)
        with tiled.slide:
            assert tiled.slide.mpp == (0.499, 0.499)
            assert 0.2 < tiled.tissue.mean() < 0.6
            assert tiled.coverage[150:200, 70:90].mean() > 0.9
            assert tiled.coverage[:50, :40].mean() < 0.02
            assert 40 < len(tiled.tiles) < 110
