from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.data.outputs import is_result
from common.images import (
    is_picture,
    mask_on_grid,
    read_grid,
    read_mask,
    read_picture,
    read_volume,
    write_heat_picture,
    write_mask_picture,
    write_raw_picture,
)
from common.images.pictures import is_slide_file

GRAY = np.arange(6 * 4, dtype=np.uint8).reshape(4, 6) * 10  # 4 rows, 6 columns
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "tif", "tiff"])
def test_rows_run_to_the_back_and_columns_to_the_left(tmp_path, ending):
    volume = read_volume(saved(tmp_path / f"a.{ending}", GRAY))
    assert volume.array.shape == (6, 4, 1)
    np.testing.assert_allclose(volume.array[..., 0], GRAY.T, atol=6 if "j" in ending else 0)
    np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))
    shape, affine = read_grid(volume.path)
    assert shape == (6, 4, 1)
    np.testing.assert_array_equal(affine, volume.affine)


def test_colors_are_channels_and_gray_in_color_is_one(tmp_path):
    volume = read_volume(saved(tmp_path / "color.png", COLOR))
    np.testing.assert_array_equal(volume.array, COLOR.swapaxes(0, 1)[:, :, None])
    gray = np.repeat(GRAY[..., None], 3, axis=-1)
    assert read_volume(saved(tmp_path / "gray.png", gray)).array.shape == (6, 4, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_other_ways_to_store_gray_give_gray(tmp_path, mode):
    volume = read_picture(saved(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), (GRAY > 90) * np.uint8(255), mode))
    assert volume.array.shape == (6, 4, 1)
    np.testing.assert_array_equal(volume.array[..., 0] > 0, (GRAY > 90).T)


@pytest.mark.parametrize(
    "pixels",
    [
        GRAY.astype(np.uint16) * 250,
        GRAY.astype(np.float32) / 7,
        COLOR.astype(np.uint16) * 250,
        GRAY.astype(np.uint32) * 10**7,
        GRAY / 7,
        GRAY.astype(np.int8),
    ],
    ids=["gray of 16 bits", "floats", "color of 16 bits", "32 bits", "doubles", "8 bits with a sign"],
)
def test_deep_tiff_keeps_its_values(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").array[:, :, 0], pixels.swapaxes(0, 1))


def png_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    """A PNG, written by hand: Pillow writes none of 16 bits but gray."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (*chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_all_of_them_or_is_refused(tmp_path, channels):
    deep = np.repeat(GRAY.astype(np.uint16)[..., None] * 250 + 3, channels, axis=-1)
    png_of_16_bits(tmp_path / "a.png", deep)
    if channels == 1:
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png").array[..., 0], deep[..., 0].T)
    else:
        with pytest.raises(ValueError, match=r"a\.png.*16 bits in color or with transparency.* save it as gray"):
            read_picture(tmp_path / "a.png")


def test_what_is_no_single_picture_is_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    (tmp_path / "text.png").write_text("no picture")
    whole = saved(tmp_path / "cut.jpg", np.zeros((64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(tmp_path / "white.tif", GRAY.astype(np.uint16), photometric="miniswhite")
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for page in (COLOR, COLOR[::2, ::2]):
            file.write(page, photometric="rgb", metadata=None)
    for name, message in (
        ("white.tif", "lowest value is white: save it with black as 0"),
        ("pages.tif", "3 pages"),
        (
            "slide.tif",
            "several sizes, as whole slides do, .* save one",
        ),
        ("text.png", "cannot be read"),
        ("cut.jpg", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
        read_picture(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("pages", "options", "slide"),
    [
        ([GRAY], {}, False),
        ([COLOR], {"photometric": "rgb", "tile": (16, 16)}, False),
        ([COLOR.astype(np.uint16).transpose(2, 0, 1)], {"photometric": "rgb", "planarconfig": "separate"}, False),
        ([GRAY, GRAY], {}, False),  # a stack
        ([np.zeros((2, 10_000), np.uint8)], {}, False),
        ([np.zeros((2, 10_001), np.uint8)], {}, True),
        ([np.zeros((64, 64), np.uint8), np.zeros((32, 32), np.uint8)], {"tile": (16, 16)}, True),
        ([np.zeros((90, 64), np.uint8), np.zeros((17, 12), np.uint8)], {}, True),  # by a step that is no whole number
        ([np.zeros((64, 64), np.uint8), np.zeros((32, 32), np.uint8)], {"subifds": True}, True),
    ],
    ids=["plain", "in tiles", "color by color", "stack", "long", "longer", "pyramid", "odd pyramid", "sub-images"],
)
def test_a_tiff_of_several_levels_or_very_many_pixels_is_a_slide_and_others_are_none(tmp_path, pages, options, slide):
    nested = options.pop("subifds", False)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, page in enumerate(pages):
            within = {"subifds": len(pages) - 1} if nested and not number else {}
            file.write(page, subfiletype=int(slide and number > 0), metadata=None, **within, **options)
    assert is_slide_file(tmp_path / "a.tif") is slide


def test_what_is_no_tiff_is_neither_slide_nor_picture(tmp_path):
    whole = saved(tmp_path / "a.tif", GRAY).read_bytes()
    for content in (b"", b"text", whole[:20]):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tif: cannot be read .* whole TIFF"):
            is_slide_file(tmp_path / "a.tif")


def test_a_mask_lies_on_its_picture_and_one_of_another_size_is_refused(tmp_path):
    image, mask = saved(tmp_path / "a.jpg", COLOR), saved(tmp_path / "a_mask.png", (GRAY > 90) * np.uint8(255))
    np.testing.assert_array_equal(read_mask(mask, image).array[..., 0] > 0, (GRAY > 90).T)
    small = read_volume(saved(tmp_path / "small.png", GRAY[:2]))
    with pytest.raises(ValueError, match="do not lie on one grid"):
        mask_on_grid(small, *read_grid(image), image=str(image))


def test_written_pictures_have_the_pixels_of_what_was_read(tmp_path):
    mask = (GRAY.T[..., None] // 100).astype(np.uint8)  # label values 0, 1, 2
    heat = GRAY.T[..., None].astype(np.float32) - 100
    write_mask_picture(tmp_path / "a_seg.png", mask)
    write_heat_picture(tmp_path / "a_heatmap.png", heat)
    write_raw_picture(tmp_path / "a_heatmap.tif", heat)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_seg.png")), GRAY // 100)
    np.testing.assert_array_equal(read_picture(tmp_path / "a_seg.png").array, mask)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a_heatmap.tif"), GRAY.astype(np.float32) - 100)
    shown = np.asarray(Image.open(tmp_path / "a_heatmap.png")).astype(int).sum(axis=-1)
    assert shown.shape == GRAY.shape
    assert np.argmax(shown) == np.argmax(GRAY)
    assert (shown[GRAY <= 100] == shown.min()).all()


def test_results_of_pictures_are_known_for_results(tmp_path):
    for name in ("seg.png", "heatmap.tif", "montage.png"):
        (tmp_path / f"0001_{name}").touch()
    (tmp_path / "0002_seg.png").touch()  # a reader's mask
    assert is_result(tmp_path / "0001_seg.png")
    assert not is_result(tmp_path / "0002_seg.png")
    assert is_picture("scan.TIFF")
    assert not is_picture("scan.nii.gz")


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_slide_that_is_cut_off_is_no_picture(tmp_path, kept):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for side in (512, 256):
            file.write(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), photometric="rgb")
    assert is_slide_file(path)
    path.write_bytes(path.read_bytes()[: int(kept * 512 * 512 * 3)])
    with pytest.raises(ValueError, match=r"a.tif: cannot be read \(it is cut off\)"):
        is_slide_file(path)
