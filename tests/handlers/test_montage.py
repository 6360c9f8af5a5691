from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage as ndi

from common.handlers import MASK_COLOR, TRUTH_COLOR
from common.handlers import draw_montage as montage

HEIGHT, MARGIN = 192, 70
AFFINES = {
    "LPS": np.diag([-2.0, -2.0, 5.0, 1.0]),
    "RAS": np.diag([2.0, 2.0, 5.0, 1.0]),
    "SRA": np.array([[0.0, 2, 0, 0], [0, 0, 2, 0], [5, 0, 0, 0], [0, 0, 0, 1]]),
}


def in_file(ras: np.ndarray, axcodes: str) -> np.ndarray:
    """A volume given as RAS in the axes of a file."""
    return {"RAS": ras, "LPS": ras[::-1, ::-1], "SRA": np.transpose(ras, (2, 0, 1))}[axcodes]


def scene() -> dict[str, np.ndarray]:
    """RAS: a head-like image; heat and mask on the patient's right in front, truth on the left at the back."""
    image = np.full((40, 40, 6), 100.0)
    mask = np.zeros(image.shape, bool)
    truth, heat = mask.copy(), np.zeros(image.shape)
    mask[28:34, 26:32, 2:4] = True
    truth[6:14, 8:14, 2:4] = True
    heat[28:34, 26:32, 2:4] = 3.25
    image[28:34, 26:32, 2:4] = 300.0
    return {"image": image, "heatmap": heat, "mask": mask, "truth": truth}


def panels(picture: Image.Image, columns: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Panels of the upper and of the lower row."""
    pixels = np.asarray(picture)[:, : picture.width - MARGIN]
    rows = [np.split(half, columns, axis=1) for half in np.split(pixels, 2, axis=0)]
    return rows[0], rows[1]


def where(panel: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (panel == color).all(axis=-1)


def center(region: np.ndarray) -> tuple[float, float]:
    """Row and column of a region as shares of the panel."""
    row, column = ndi.center_of_mass(region)
    return row / region.shape[0], column / region.shape[1]


@pytest.mark.parametrize("axcodes", AFFINES)
def test_patients_right_is_on_the_left_and_front_is_up_however_the_file_lies(axcodes):
    volumes = {k: in_file(v, axcodes) for k, v in scene().items()}
    upper, lower = panels(montage(**volumes, affine=AFFINES[axcodes], columns=2, height=HEIGHT))
    for panel in upper:
        assert panel.shape == (HEIGHT, HEIGHT, 3)  # 80 by 80 mm
        assert center(where(panel, MASK_COLOR)) == pytest.approx((11 / 40, 9 / 40), abs=0.02)
        assert center(where(panel, TRUTH_COLOR)) == pytest.approx((29 / 40, 30 / 40), abs=0.02)
    for panel in lower:
        redness = panel[..., 0].astype(int) - panel[..., 2]
        assert center(redness > 20) == pytest.approx((11 / 40, 9 / 40), abs=0.02)


def test_outlines_run_along_the_borders_of_mask_and_truth():
    volumes = scene()
    upper, _ = panels(montage(**volumes, affine=AFFINES["RAS"], columns=2, height=HEIGHT))
    scale = HEIGHT / 40
    for name, color in (("mask", MASK_COLOR), ("truth", TRUTH_COLOR)):
        shown = volumes[name][::-1, ::-1, 2].T  # rows run back, columns to the left
        drawn = np.argwhere(where(upper[0], color)) / scale - 0.5
        outer, inner = ndi.distance_transform_edt(~shown), ndi.distance_transform_edt(shown)
        near = np.round(drawn).astype(int)
        assert (outer[tuple(near.T)] <= 1).all()
        assert (inner[tuple(near.T)] <= 1).all()
        perimeter = 2 * sum(np.ptp(np.argwhere(shown), axis=0) + 1) * scale
        assert len(drawn) == pytest.approx(perimeter, rel=0.1)


def test_without_mask_or_truth_nothing_is_outlined():
    volumes = scene()
    volumes["mask"] = np.zeros_like(volumes["mask"])
    upper, _ = panels(montage(**(volumes | {"truth": None}), affine=AFFINES["RAS"], columns=2, height=HEIGHT))
    assert not any(where(panel, color).any() for panel in upper for color in (MASK_COLOR, TRUTH_COLOR))


@pytest.mark.parametrize("level", [0.0, -4.0])
def test_without_positive_heat_the_lower_row_shows_the_image_as_it_is(level):
    volumes = scene()
    volumes["heatmap"] = np.full(volumes["image"].shape, level)
    volumes["mask"] = np.zeros_like(volumes["mask"])
    upper, lower = panels(montage(**(volumes | {"truth": None}), affine=AFFINES["RAS"], columns=2, height=HEIGHT))
    for above, below in zip(upper, lower, strict=True):
        np.testing.assert_array_equal(above, below)


def test_constant_images_and_single_slices_are_drawn():
    one = np.ones((20, 30, 1))
    picture = montage(one, one * 0, one * 0, affine=np.eye(4), columns=3, height=60)
    assert (picture.mode, picture.size) == ("RGB", (3 * 40 + MARGIN, 120))


def test_pixels_are_square_on_screen():
    volume = np.random.default_rng(0).random((40, 20, 3))
    picture = montage(volume, volume * 0, volume * 0, affine=np.diag([1.0, 4.0, 5.0, 1.0]), columns=1, height=100)
    assert picture.size == (50 + MARGIN, 200)  # 40 mm wide, 80 mm high


def test_color_bar_goes_from_zero_to_the_largest_heat(monkeypatch):
    texts = []

    class Recorder:
        def __init__(self, picture: Image.Image) -> None:
            self.draw = Draw(picture)

        def text(self, position: tuple[int, int], text: str, **options: Any) -> None:
            texts.append((position[1], text))
            self.draw.text(position, text, **options)

    Draw = ImageDraw.Draw
    monkeypatch.setattr("common.handlers.montage.ImageDraw.Draw", Recorder)
    volumes = scene()
    volumes["heatmap"][0, 0, 0] = -9.0
    picture = montage(**volumes, affine=AFFINES["RAS"], height=HEIGHT)
    labels = [text for _, text in sorted(texts)]
    assert labels == ["mask", "truth", "3.2", "0"]
    bar = np.asarray(picture)[HEIGHT + 10 : 2 * HEIGHT - 10, picture.width - MARGIN + 10].astype(int).sum(axis=-1)
    assert bar[0] > 600 > 50 > bar[-1]
    assert (np.diff(bar) <= 3).all()


def test_columns_are_spread_over_the_slices_that_hold_something():
    volumes = scene()
    for z in range(6):
        volumes["image"][..., z] = 40.0 * (z + 1)  # a slice is known by its gray
    upper, _ = panels(montage(**volumes, affine=AFFINES["RAS"], columns=2, height=HEIGHT))
    low, high = np.percentile(volumes["image"], [1, 99.8])
    expected = [255 * (40.0 * (z + 1) - low) / (high - low) for z in (2, 3)]
    assert [panel[0, 0, 0] for panel in upper] == pytest.approx(expected, abs=1.5)
