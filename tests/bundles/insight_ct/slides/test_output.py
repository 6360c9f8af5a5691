from __future__ import annotations

import numpy as np
import openslide
import pytest
import tifffile
from scipy import ndimage
from skimage.measure import block_reduce

from common.masks import otsu
from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import LESION, corners_of, run_slides, slide_case, write_slide

output, truth = load_script("insight_ct", "slides.output"), load_script("insight_ct", "slides.truth")
slide_tiles = load_script("insight_ct", "slides.tiles")


class TestCanvas:
    def test_holds_the_mean_where_tiles_overlap_and_0_where_there_is_none(self, tmp_path):
        canvas = output.HeatCanvas(tmp_path, (40, 60), 2)
        random = np.random.default_rng(0)
        corners = np.array([[0, 0], [0, 8], [8, 8], [24, 44]])
        tiles = random.random((4, 2, 16, 16)).astype(np.float32)
        total, count = np.zeros((2, 40, 60)), np.zeros((40, 60))
        for tile, (row, column) in zip(tiles, corners, strict=True):
            total[:, row : row + 16, column : column + 16] += tile
            count[row : row + 16, column : column + 16] += 1
        canvas.add(tiles[:3], corners[:3])
        canvas.add(tiles[3:], corners[3:])
        heat = canvas.finish()
        assert count.max() == 3
        np.testing.assert_allclose(heat[:, :40, :60], total / np.maximum(count, 1), rtol=1e-6)

    def test_can_be_halved_exactly_down_to_a_small_level(self, tmp_path):
        canvas = output.HeatCanvas(tmp_path, (700, 2050), 1)
        assert canvas.levels == 4
        assert canvas.heat.shape == (1, 704, 2056)


class TestSmoothing:
    def test_is_the_gaussian_mean_of_the_cells_inside_whatever_the_blocks(self):
        random = np.random.default_rng(0)
        heat = random.random((2, 530, 600)).astype(np.float32)
        inside = random.random((525, 600)) > 0.3
        out = output.smooth_cells(heat, inside, 2.0, np.zeros_like(heat))
        options = {"sigma": 2.0, "mode": "constant", "radius": 6}
        weight = ndimage.gaussian_filter(inside.astype(float), **options)
        for label, smoothed in zip(heat, out, strict=True):
            mean = ndimage.gaussian_filter(label[:525] * inside, **options) / np.maximum(weight, 1e-6)
            np.testing.assert_allclose(smoothed[:525], np.where(inside, mean, 0), atol=1e-5)
            assert smoothed[525:].max() == 0

    def test_tissue_does_not_fade_at_its_edge(self):
        inside = np.zeros((40, 40), bool)
        inside[10:30, 5:25] = True
        heat = np.where(inside, 0.7, 0.0)[None].astype(np.float32)
        np.testing.assert_allclose(output.smooth_cells(heat, inside, 3.0, np.zeros_like(heat)), heat, atol=1e-5)


class TestMask:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_threshold_is_otsus_of_the_cells_inside(self, seed):
        random = np.random.default_rng(seed)
        heat = np.where(random.random((700, 900)) > 0.9, 0.7, 0.2) + random.normal(0, 0.05, (700, 900))
        heat[:, 600:] += 3  # in other blocks, and outside
        inside = np.zeros(heat.shape, bool)
        inside[30:690, 20:600] = True
        heat = heat.astype(np.float32)
        assert output.otsu_of_cells(np.pad(heat, ((0, 4), (0, 12))), inside) == pytest.approx(otsu(heat, mask=inside))

    def test_nothing_stands_out_of_a_constant_map(self):
        heat = np.full((600, 600), np.float32(0.3))
        assert output.otsu_of_cells(heat, np.ones(heat.shape, bool)) == np.inf
        assert output.otsu_of_cells(heat, np.zeros(heat.shape, bool)) == np.inf

    def test_takes_the_hottest_class_above_its_own_threshold_inside(self):
        heat = np.random.default_rng(0).random((3, 520, 530)).astype(np.float32)
        inside = np.random.default_rng(1).random((515, 525)) > 0.2
        thresholds = [0.5, 0.9, np.inf]
        mask = output.class_mask(heat, inside, thresholds, np.zeros(heat.shape[1:], np.uint8))
        expected = np.zeros(heat.shape[1:], np.uint8)
        for i, j in np.argwhere(inside):
            above = [(heat[k, i, j], k + 1) for k in range(3) if heat[k, i, j] > thresholds[k]]
            expected[i, j] = max(above, default=(0, 0))[1]
        np.testing.assert_array_equal(mask, expected)


def heat_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


class TestPyramid:
    def test_openslide_reads_every_level_with_the_size_of_a_cell(self, tmp_path):
        heat = heat_of((1, 520, 1320))
        output.write_pyramid(tmp_path / "a.tif", heat, levels=3, cell_um=7.0, folder=tmp_path, as_bytes=True)
        with openslide.OpenSlide(tmp_path / "a.tif") as slide:
            assert slide.level_dimensions == ((1320, 520), (660, 260), (330, 130))
            assert slide.level_downsamples == (1, 2, 4)
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(7)
            for level, size in enumerate(slide.level_dimensions):
                shown = np.asarray(slide.read_region((0, 0), level, size))[..., 0] / 255
                expected = block_reduce(heat[0], (2**level, 2**level), np.mean)
                np.testing.assert_allclose(shown, expected, atol=0.503 / 255)

    def test_every_level_tells_its_own_resolution(self, tmp_path):
        output.write_pyramid(tmp_path / "a.tif", heat_of((1, 512, 1024)), levels=3, cell_um=7.0, folder=tmp_path)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            found = [page.tags["XResolution"].value for page in file.pages]
        assert [1e4 * below / above for above, below in found] == pytest.approx([7, 14, 28])

    def test_small_findings_stay_in_the_lower_levels_of_a_mask(self, tmp_path):
        mask = np.zeros((1, 512, 1024), np.uint8)
        mask[0, 100, 301] = 2
        output.write_pyramid(tmp_path / "a.tif", mask, levels=3, cell_um=7.0, folder=tmp_path)
        with openslide.OpenSlide(tmp_path / "a.tif") as slide:
            for level, size in enumerate(slide.level_dimensions):
                shown = np.asarray(slide.read_region((0, 0), level, size))[..., 0]
                assert np.argwhere(shown == 2).tolist() == [[100 >> level, 301 >> level]]

    def test_raw_heat_keeps_every_bit_names_and_micrometers(self, tmp_path):
        heat = heat_of((2, 300, 600))
        output.write_pyramid(
            tmp_path / "a.ome.tif", heat, levels=2, cell_um=7.25, folder=tmp_path, names=["ADH", "DCIS"]
        )
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            series = file.series[0]
            assert series.axes == "CYX"
            np.testing.assert_array_equal(series.asarray(), heat)
            np.testing.assert_allclose(series.levels[1].asarray(), block_reduce(heat, (1, 2, 2), np.mean), rtol=1e-6)
            for text in ('PhysicalSizeX="7.25"', 'PhysicalSizeYUnit="µm"', 'Name="ADH"', 'Name="DCIS"'):
                assert text in file.ome_metadata
            numerator, denominator = file.pages[0].tags["XResolution"].value
            assert 1e4 * denominator / numerator == pytest.approx(7.25)

    def test_leaves_nothing_when_it_fails(self, tmp_path, monkeypatch):
        def full(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(output, "_halved", full)
        (tmp_path / "parts").mkdir()
        options = {"levels": 2, "cell_um": 7.0, "folder": tmp_path / "parts"}
        with pytest.raises(OSError, match="No space left"):
            output.write_pyramid(tmp_path / "a.tif", heat_of((1, 512, 512)), **options)
        assert [path.name for path in tmp_path.iterdir()] == ["parts"]
        with pytest.raises(ValueError, match="has one plane, got 2"):
            output.write_pyramid(tmp_path / "a.tif", heat_of((2, 512, 512)), **options)


def test_overlay_shows_heat_mask_and_truth_where_they_are(tmp_path):
    box = (900, 700, 1348, 924)
    path = write_slide(tmp_path / "a.tif", (2000, 1600), tissue=[(300, 200, 1500, 1300)], lesions=[box], levels=2)
    tiled = slide_tiles.Tiler()(str(path), cells=16)
    with tiled.slide:
        heat = np.zeros((1, *tiled.grid.shape), np.float32)
        heat[0, 30:40, 70:80] = 0.5  # 420 to 560 down, 980 to 1120 right
        mask = (heat[0] > 0.2).astype(np.uint8)
        polygons = [("Tumor", np.array(corners_of(box)))]
        cells = truth.polygons_to_cells(polygons, shape=mask.shape, cell_px=tiled.grid.cell_px)
        picture = np.asarray(output.overlay(tiled, heat, mask, cells, longest=1000)).astype(int)
    assert picture.shape[0] == 2 * 800
    slide, hot = picture[:800, :1000], picture[800:, :1000]
    assert (np.abs(slide[400, 550] - LESION) <= 1).all()
    cyan, amber = ((slide == color).all(axis=-1) for color in (output.MASK_COLOR, output.TRUTH_COLOR))
    for outline, (x0, y0, x1, y1) in ((cyan, (490, 210, 560, 280)), (amber, (450, 350, 674, 462))):
        rows, columns = np.nonzero(outline)
        np.testing.assert_allclose([columns.min(), rows.min(), columns.max(), rows.max()], (x0, y0, x1, y1), atol=8)
    colored = np.ptp(hot, axis=-1) > 20
    assert colored[215:275, 495:555].all()
    assert colored.sum() <= 75**2


def test_labels_that_no_file_can_be_named_by_have_their_heatmaps_in_the_same_folder(tmp_path):
    run_slides([slide_case(tmp_path, cls=["low/high"])], tmp_path / "out", classes=("none", "low/high", "3+4: ä"))
    found = {path.name for path in (tmp_path / "out").rglob("a_*.tif")}
    assert found == {"a_seg.tif", "a_heatmap.ome.tif", "a_heatmap_low_high.tif", "a_heatmap_3+4_ ä.tif"}
