from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import block_reduce

from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import GLASS, LESION, TISSUE, write_slide

slides = load_script("insight_ct", "slides.slide")
Slide, find_tissue = slides.Slide, slides.find_tissue
Tiles = load_script("insight_ct", "slides.tiles").Tiles


def write_levels(path: Path, levels: list[np.ndarray], *, mpp: float) -> Path:
    """A pyramid of given pictures."""
    with tifffile.TiffWriter(path) as file:
        for number, picture in enumerate(levels):
            scale = levels[0].shape[0] / picture.shape[0]
            known = {"resolution": (1e4 / (mpp * scale),) * 2, "resolutionunit": "CENTIMETER"}
            options = {"tile": (128, 128), "compression": "zlib", "photometric": "rgb", "metadata": None}
            file.write(picture, subfiletype=int(number > 0), **known, **options)
    return path


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def waves(side: int, extent: int) -> np.ndarray:
    """A smooth picture of `extent` units, sampled with `side` pixels; the same whatever the sampling."""
    x = (np.arange(side) + 0.5) * extent / side
    planes = [np.outer(np.sin(x / a), np.cos(x / b)) for a, b in ((60, 90), (80, 50), (120, 70))]
    return (127 + 100 * np.stack(planes, axis=-1)).round().astype(np.uint8)


class TestRegion:
    @pytest.mark.parametrize("backend", ["openslide", "tifffile"])
    def test_gives_the_pixels_of_the_file(self, tmp_path, backend):
        picture = noise((500, 700))
        with Slide(write_levels(tmp_path / "a.tif", [picture], mpp=0.5), backend=backend) as slide:
            assert slide.size == (700, 500)
            assert slide.mpp == pytest.approx((0.5, 0.5))
            np.testing.assert_array_equal(slide.region(130, 70, 200, 100, (100, 200)), picture[70:170, 130:330])

    @pytest.mark.parametrize("backend", ["openslide", "tifffile"])
    @pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
    def test_is_white_where_a_slide_is_transparent(self, tmp_path, backend, kind):
        pixels = np.zeros((256, 256, 4), np.uint8)
        pixels[:, :100] = (*LESION, 255)
        options = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
        tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(128, 128), extrasamples=[kind], **options)
        with Slide(tmp_path / "a.tif", backend=backend) as slide:
            part = slide.region(0, 0, 256, 256, (256, 256))
        assert (part[:, 100:] == 255).all()
        assert (part[:, :100] == LESION).all()

    def test_takes_the_level_that_has_the_resolution(self, tmp_path):
        fine, coarse = noise((512, 512)), noise((128, 128), seed=1)
        with Slide(write_levels(tmp_path / "a.tif", [fine, coarse], mpp=0.5)) as slide:
            np.testing.assert_array_equal(slide.region(64, 32, 256, 128, (32, 64)), coarse[8:40, 16:80])
            halved = slide.region(64, 32, 256, 128, (64, 128)).astype(float)
        assert np.abs(halved - block_reduce(fine[32:160, 64:320], (2, 2, 1), np.mean)).mean() < 20
        assert np.abs(halved - block_reduce(fine[0:128, 0:256], (2, 2, 1), np.mean)).mean() > 25

    @pytest.mark.parametrize("mpp", [1.0, 8.0, 17.0])
    def test_the_end_of_a_long_strip_lies_where_it_does_though_its_levels_have_rounded_sizes(self, tmp_path, mpp):
        strip = np.full((203, 15000, 3), 240, np.uint8)
        strip[:, 13500:14000] = LESION
        levels = [strip[: 203 // scale * scale : scale, ::scale] for scale in (1, 2, 4, 8, 16, 32, 64)]
        with Slide(write_levels(tmp_path / "a.tif", levels, mpp=0.25)) as slide:
            row = slide.thumbnail(mpp)[0, :, 1] < 140
        edges = (np.flatnonzero(np.diff(row.astype(int))) + 1) * mpp / 0.25
        assert np.abs(edges - [13500, 14000]).max() < 5 * mpp

    @pytest.mark.parametrize("backend", ["openslide", "tifffile"])
    def test_is_white_beyond_the_slide(self, tmp_path, backend):
        with Slide(write_levels(tmp_path / "a.tif", [noise((300, 300)) // 2], mpp=0.5), backend=backend) as slide:
            part = slide.region(200, 250, 200, 100, (100, 200))
        assert (part[50:] == 255).all()
        assert (part[:, 100:] == 255).all()
        assert (part[:50, :100] < 128).all()

    def test_tiles_show_the_same_whatever_resolution_and_pyramid_the_file_has(self, tmp_path):
        files = {
            "plain.tif": ([2048], 0.25),
            "fours.tif": ([2048, 512, 128], 0.25),
            "odd.tif": ([1400, 650], 512 / 1400),
            "exact.tif": ([1024, 512], 0.5),
        }
        for name, (sides, mpp) in files.items():
            path = write_levels(tmp_path / name, [waves(side, 2048) for side in sides], mpp=mpp)
            with Slide(path) as slide:
                corner = np.array([[round(100 / mpp), round(60 / mpp)]])  # 100 and 60 µm
                tile = Tiles(slide, corner, tile_px=224, mpp=1.0)[0:1][0].numpy().transpose(1, 2, 0)
            truth = waves(512, 2048)[60:284, 100:324] / 255
            assert np.abs(tile - truth).max() < 0.025, name

    def test_thumbnails_do_not_depend_on_the_parts_they_are_read_in(self, tmp_path):
        with Slide(write_levels(tmp_path / "a.tif", [waves(1000, 2000)], mpp=1.0)) as slide:
            whole, parts = slide.thumbnail(7.3, block=1000), slide.thumbnail(7.3, block=32)
        assert whole.shape == (137, 137, 3)
        assert np.abs(whole.astype(int) - parts).max() <= 6


class TestBadSlides:
    def test_names_a_file_that_is_missing_cut_off_or_something_else(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"a.tif does not exist"):
            Slide(tmp_path / "a.tif")
        (tmp_path / "b.svs").write_bytes(b"no slide")
        with pytest.raises(ValueError, match=r"b.svs: .*cannot be read .*it is no slide, or .*: use backend tifffile"):
            Slide(tmp_path / "b.svs")
        with pytest.raises(
            ValueError, match=r"b.svs: .*backend tifffile reads TIFF files alone: use backend openslide"
        ):
            Slide(tmp_path / "b.svs", backend="tifffile")
        whole = write_levels(tmp_path / "c.tif", [noise((600, 600))], mpp=0.5)
        whole.write_bytes(whole.read_bytes()[:-2000])
        with pytest.raises(ValueError, match=r"c.tif: .*cannot be read .*damaged or cut off: copy it anew"):  # noqa: SIM117
            with Slide(whole) as slide:
                slide.region(0, 0, 600, 600, (600, 600))

    def test_names_the_place_of_a_broken_tile_and_offers_no_other_reader(self, tmp_path):
        path = write_levels(tmp_path / "a.tif", [noise((256, 256))], mpp=0.5)
        with tifffile.TiffFile(path) as file:
            start, size = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
        content = bytearray(path.read_bytes())
        content[start : start + size] = bytes(size)
        path.write_bytes(content)
        with Slide(path) as slide:
            slide.region(0, 0, 64, 64, (64, 64))
            with pytest.raises(ValueError, match=r"a.tif: its part at x 140, y 150 cannot be read") as error:
                slide.region(140, 150, 64, 64, (64, 64))
        with pytest.raises(ValueError, match=r"a.tif: it cannot be read") as other:
            Slide(path, backend="tifffile")
        for one in (error, other):
            assert "it is damaged or cut off: copy it anew" in str(one.value)
            assert not any(word in str(one.value) for word in ("backend", "imagecodecs"))

    @pytest.mark.parametrize(
        "error",  # of tifffile with and without a module in the place of imagecodecs
        [
            ImportError("could not import name 'jpeg8_decode' from 'imagecodecs'"),
            ValueError("<COMPRESSION.JPEG: 7> requires the 'imagecodecs' package"),
        ],
    )
    def test_names_the_extra_when_a_decoder_is_missing(self, tmp_path, monkeypatch, error):
        def fail(*_: object, **__: object) -> None:
            raise error

        path = write_slide(tmp_path / "a.tif", (600, 600), levels=1)
        monkeypatch.setattr(slides.WSIReader, "get_data", fail)
        with pytest.raises(ValueError, match=r"a.tif: .*needs imagecodecs: pip install 'weakseg-bundles\[wsi\]'"):
            Slide(path, backend="tifffile")

    def test_offers_the_other_reader_for_a_compression_that_openslide_lacks(self, tmp_path):
        known = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
        tifffile.imwrite(tmp_path / "a.tif", noise((256, 256)), tile=(128, 128), compression="jpeg2000", **known)
        with pytest.raises(ValueError, match=r"a.tif: .*save it in JPEG, or use backend tifffile for a small file"):
            Slide(tmp_path / "a.tif")

    @pytest.mark.parametrize("kind", ["uint16", "int8", "float32"])
    def test_refuses_pixels_of_other_than_8_bits_in_place_of_wrapping_them(self, tmp_path, kind):
        tifffile.imwrite(tmp_path / "a.tif", noise((64, 64)).astype(kind), photometric="rgb")
        with pytest.raises(
            ValueError, match=rf"a.tif: .*its pixels are {kind}\); save it as one .* with 8 bits a color"
        ):
            Slide(tmp_path / "a.tif", backend="tifffile", mpp_of_file=0.5)

    @pytest.mark.parametrize("kind", ["gray", "planes", "pages"])
    def test_says_how_to_save_what_is_no_picture_in_color(self, tmp_path, kind):
        picture = noise((64, 64))
        pixels, options = {
            "gray": (picture[..., 0], {"photometric": "minisblack"}),
            "planes": (np.moveaxis(picture, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
            "pages": (np.stack([picture, picture]), {"photometric": "rgb"}),
        }[kind]
        tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
        with pytest.raises(ValueError, match=r"a.tif: .*; save it as one RGB page with 8 bits a color, channels last"):
            Slide(tmp_path / "a.tif", backend="tifffile", mpp_of_file=0.5)

    @pytest.mark.parametrize("backend", ["openslide", "tifffile"])
    def test_reads_tiles_in_jpeg(self, tmp_path, backend):
        picture, jpeg = waves(256, 400), io.BytesIO()
        Image.fromarray(picture).save(jpeg, "JPEG", quality=95)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            options = {"tile": (256, 256), "compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}
            known = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "metadata": None}
            file.write(iter([jpeg.getvalue()]), shape=picture.shape, dtype=np.uint8, **options, **known)
        with Slide(tmp_path / "a.tif", backend=backend) as slide:
            assert np.abs(slide.region(0, 0, 256, 256, (256, 256)).astype(int) - picture).mean() < 5

    @pytest.mark.parametrize("backend", ["openslide", "tifffile"])
    def test_asks_for_a_resolution_that_the_file_lacks(self, tmp_path, backend):
        path = write_slide(tmp_path / "a.tif", (600, 600), mpp=None, levels=1)
        with pytest.raises(ValueError, match=r"a.tif: the file does not say .* --mpp_of_file 0.25"):
            Slide(path, backend=backend)
        with Slide(path, backend=backend, mpp_of_file=0.4) as slide:
            assert slide.mpp == (0.4, 0.4)

    def test_says_where_a_given_resolution_is_not_that_of_the_file(self, tmp_path, caplog):
        path = write_slide(tmp_path / "a.tif", (600, 600), mpp=0.5, levels=1)
        Slide(path, mpp_of_file=0.49).close()
        assert not caplog.text
        with Slide(path, mpp_of_file=0.25) as slide:
            assert slide.mpp == (0.25, 0.25)
        assert "a.tif: says 0.5 × 0.5 µm per pixel; mpp_of_file makes it 0.25" in caplog.text

    def test_does_not_believe_in_a_guessed_unit(self, tmp_path, monkeypatch):
        def guess(*_: object) -> tuple[float, float]:
            warnings.warn("The resolution unit is missing, `micrometer` will be used as default.", stacklevel=2)
            return (1.0, 1.0)

        path = write_slide(tmp_path / "a.tif", (600, 600), levels=1)
        monkeypatch.setattr(slides.WSIReader, "get_mpp", guess)
        with pytest.raises(ValueError, match="the file does not say how large a pixel is"):
            Slide(path)

    def test_does_not_believe_in_72_dots_per_inch(self, tmp_path):
        path = write_slide(tmp_path / "a.tif", (600, 600), mpp=25400 / 72, levels=1)
        with pytest.raises(ValueError, match=r"352.8 × 352.8 µm cannot be the size of a pixel.*--mpp_of_file"):
            Slide(path)

    def test_names_the_extra_when_openslide_is_missing(self, tmp_path, monkeypatch):
        path = write_slide(tmp_path / "a.tif", (600, 600), levels=1)
        monkeypatch.setitem(sys.modules, "openslide", None)
        with pytest.raises(ImportError, match=r"needs openslide: pip install 'weakseg-bundles\[wsi\]'"):
            Slide(path)


def thumbnail(color: tuple[int, int, int] = TISSUE, box: tuple[slice, slice] = np.s_[50:150, 60:200]) -> np.ndarray:
    """200 × 300 pixels of grainy glass with one object."""
    picture = np.random.default_rng(0).normal(GLASS, 2, (200, 300, 3))
    picture[box] = np.random.default_rng(1).normal(color, 2, picture[box].shape)
    return picture.clip(0, 255).astype(np.uint8)


class TestTissue:
    def test_is_where_there_is_stain(self):
        tissue, _ = find_tissue(thumbnail(), mpp=8)
        truth = np.zeros_like(tissue)
        truth[50:150, 60:200] = True
        assert (tissue != truth).sum() <= 20  # corners, rounded by filters

    @pytest.mark.parametrize("color", [(40, 160, 60), (30, 60, 200), (20, 20, 20), GLASS])
    def test_is_neither_pen_nor_black_nor_glass(self, color):
        assert not find_tissue(thumbnail(color), mpp=8)[0].any()

    def test_pens_may_be_kept(self):
        assert find_tissue(thumbnail((40, 160, 60)), mpp=8, pen=False)[0].any()

    def test_hematoxylin_is_no_pen(self):
        assert find_tissue(thumbnail((85, 70, 160)), mpp=8)[0][60:140, 70:190].all()

    def test_a_slide_full_of_tissue_is_all_tissue(self):
        picture = thumbnail(TISSUE, np.s_[:, :])
        picture[:, 150:] = LESION  # Otsu's method alone would take this half only
        assert find_tissue(picture, mpp=8)[0].all()

    def test_drops_specks_and_fills_holes_by_their_area(self):
        picture = thumbnail()
        picture[10:20, 10:20] = TISSUE  # 0.0064 mm²
        picture[95:105, 95:105] = GLASS
        tissue, stain = find_tissue(picture, mpp=8)
        assert not tissue[:30, :30].any()
        assert tissue[95:105, 95:105].all()
        assert not stain[96:104, 96:104].any()
        tissue, _ = find_tissue(picture, mpp=8, min_area_mm2=0.002, max_hole_mm2=0.002, blur_um=0, closing_um=0)
        assert tissue[10:20, 10:20].all()
        assert not tissue[96:104, 96:104].any()


def test_a_part_that_ends_within_a_pixel_holds_that_pixels_share(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 10:] = 200
    with Slide(write_levels(tmp_path / "a.tif", [picture], mpp=0.5)) as slide:
        part = slide.region(8.0, 0.0, 2.5, 2.5, (1, 1))
    assert part.shape == (1, 1, 3)
    assert part.max() > 0  # half of the last pixel is bright
