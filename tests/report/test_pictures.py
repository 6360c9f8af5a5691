from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from common.report.pictures import find_picture, picture, pictures, thumbnail


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def noisy(path, width: int = 1222, height: int = 384):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


def test_a_picture_is_as_large_as_its_bytes_allow(tmp_path):
    path = noisy(tmp_path / "p1_montage.png")
    small, large = picture(path, 100_000), picture(path, 10**9)
    assert len(base64.b64decode(small)) <= 100_000
    assert opened(small).width < opened(large).width == 1222


def test_many_pictures_share_what_there_is(tmp_path):
    path = noisy(tmp_path / "p1_montage.png")
    texts = pictures([path] * 6, most_bytes=300_000)
    assert sum(len(base64.b64decode(text)) for text in texts) <= 300_000


def test_a_thumbnail_is_the_fourth_slice_with_heat(tmp_path):
    montage = np.zeros((384, 6 * 192 + 70, 3), np.uint8)
    montage[192:, 3 * 192 : 4 * 192] = (200, 100, 0)
    Image.fromarray(montage).save(tmp_path / "p1_montage.png")
    image = opened(thumbnail(tmp_path / "p1_montage.png"))
    assert image.size == (96, 96)
    assert np.abs(np.asarray(image).astype(int) - (200, 100, 0)).max() < 12


def test_volumes_have_montages_and_slides_overlays(tmp_path):
    assert find_picture(tmp_path, "s1") is None
    path = noisy(tmp_path / "s1_overlay.png", 300, 200)
    assert find_picture(tmp_path, "s1") == path
    assert opened(thumbnail(path)).size == (96, 42)  # the lower half, without the color bar
