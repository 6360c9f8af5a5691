from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import block_reduce

from tests.bundles.conftest import load_script

TileGrid = load_script("insight_ct", "slides.grid").TileGrid


class TestGrid:
    def test_covers_the_slide_and_no_more_than_a_tile_beyond(self):
        for size in ((1, 1), (448, 448), (449, 1000), (3000, 777)):
            grid = TileGrid(size, (0.25, 0.25), tile_px=224, mpp=0.5, stride_px=112, cells=16)
            for tiles, cells, pixels in zip(grid.tiles, grid.shape, size[::-1], strict=True):
                assert cells == (tiles - 1) * 8 + 16
                assert cells * 28 >= pixels
                assert (tiles - 1) * 224 + 224 < pixels or tiles == 1

    @pytest.mark.parametrize("stride", [100, 0, 225])
    def test_refuses_a_stride_that_is_no_whole_number_of_cells(self, stride):
        with pytest.raises(
            ValueError, match=r"stride=100 is not a whole .* a multiple of 14|between 1 and tile_px=224"
        ):
            TileGrid((1000, 1000), (0.5, 0.5), stride_px=stride)

    @pytest.mark.parametrize(("mpp", "slide_mpp"), [(4.0, (0.5, 0.5)), (9.7, (0.23, 0.31))])
    def test_share_is_the_area_of_tissue_in_each_cell(self, mpp, slide_mpp):
        tissue = np.random.default_rng(0).random((60, 45)) > 0.6
        width, height = (round(side * mpp / one) for side, one in zip((45, 60), slide_mpp, strict=True))
        grid = TileGrid((width, height), slide_mpp, tile_px=64, mpp=0.5, stride_px=64, cells=4)
        share = grid.tissue_coverage(tissue, mpp)
        assert share.shape == grid.shape
        fine = 40  # samples along a side of a cell
        points = [(np.arange(n * fine) + 0.5) / fine * grid.cell_um / mpp for n in grid.shape]
        padded = np.pad(tissue, 60)
        sampled = padded[np.ix_(*((p + 60).astype(int) for p in points))].astype(float)
        np.testing.assert_allclose(share, block_reduce(sampled, (fine, fine), np.mean), atol=0.06)
        assert share.sum() * grid.cell_um**2 == pytest.approx(tissue.sum() * mpp**2, rel=1e-4)

    @pytest.mark.parametrize("slide_mpp", [(8.0, 8.0), (8.0, 0.25), (0.25, 8.0)])
    def test_a_slide_coarser_than_the_tiles_is_doubted(self, slide_mpp):
        said = "pixels of 8 µm enlarged 16 times to 0.5: a finer scan, or a training with --mpp"
        assert TileGrid((1000, 1000), slide_mpp, mpp=0.5).doubt == said

    @pytest.mark.parametrize("mpp", [0.25, 0.5, 0.74])
    def test_a_slide_about_as_fine_as_the_tiles_is_not_doubted(self, mpp):
        assert TileGrid((1000, 1000), (mpp, mpp), mpp=0.5).doubt == ""
