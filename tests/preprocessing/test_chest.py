from __future__ import annotations

import numpy as np

from common.preprocessing.chest import _round, block_mean, fill_holes_above_diaphragm

SPACING = (2.0, 2.0, 5.0)


def lungs_with_hole(bottom: int, top: int, side: int) -> np.ndarray:
    """A block of lung in which slices `bottom` to `top` have a square hole of `side` voxels."""
    lungs = np.zeros((60, 60, 8), dtype=bool)
    lungs[10:50, 10:50] = True
    lungs[30 - side // 2 : 30 + side // 2, 30 - side // 2 : 30 + side // 2, bottom:top] = False
    return lungs


class TestFillHolesAboveDiaphragm:
    def test_a_dome_of_the_diaphragm_stays_open(self):
        lungs = lungs_with_hole(0, 5, 20)
        np.testing.assert_array_equal(fill_holes_above_diaphragm(lungs, SPACING), lungs)

    def test_a_dome_stays_open_above_a_slice_in_which_it_meets_the_wall(self):
        lungs = lungs_with_hole(0, 5, 20)
        lungs[20:, 20:40, :2] = False
        np.testing.assert_array_equal(fill_holes_above_diaphragm(lungs, SPACING), lungs)

    def test_consolidations_with_lung_below_and_vessels_are_filled(self):
        for lungs in (lungs_with_hole(2, 5, 20), lungs_with_hole(0, 5, 14)):
            assert fill_holes_above_diaphragm(lungs, SPACING)[10:50, 10:50].all()

    def test_what_lies_around_the_lungs_decides_nothing(self):
        rng = np.random.default_rng(0)
        lungs = lungs_with_hole(0, 5, 20) & (rng.random((60, 60, 8)) > 0.2)
        box = (slice(10, 50), slice(10, 50), slice(None))
        around = np.pad(lungs, ((3, 40), (20, 1), (4, 2)))
        found = fill_holes_above_diaphragm(around, SPACING)
        expected = np.zeros_like(around)
        expected[3:63, 20:80, 4:12][box] = fill_holes_above_diaphragm(lungs[box], SPACING)
        np.testing.assert_array_equal(found, expected)


class TestRound:
    angles = np.arange(180) * np.pi / 90
    hidden = abs(angles - np.pi / 2) < np.deg2rad(20)

    def test_the_wall_behind_a_consolidation_is_an_arc_and_no_chord(self):
        chord = 80 * np.cos(np.deg2rad(20)) / np.sin(self.angles[self.hidden])
        wall = np.full((180, 1), 80.0)
        wall[self.hidden, 0] = chord
        found = _round(wall, self.angles, self.hidden[:, None])[:, 0]
        assert abs(found - 80.0).max() < 0.3
        assert (80.0 - chord).max() > 4.0

    def test_it_never_moves_known_wall_nor_reaches_far_beyond_the_hull(self):
        wall = 80.0 + 30.0 * np.cos(2 * self.angles)[:, None] ** 2
        wall[self.hidden] = 40.0
        uncertain = self.hidden[:, None]
        near, far = (_round(wall, self.angles, uncertain, beyond_mm=mm) for mm in (0.0, 6.0))
        np.testing.assert_array_equal(far[~uncertain], wall[~uncertain])
        assert (near >= wall).all()
        np.testing.assert_allclose((far - near).max(), 6.0)


def test_the_last_block_of_a_mean_is_filled_up_with_the_border():
    image = np.arange(7.0)[:, None, None]
    np.testing.assert_array_equal(block_mean(image, (3, 1, 1))[:, 0, 0], [1.0, 4.0, 6.0])  # 6, and 6 twice more
    np.testing.assert_array_equal(block_mean(image, (2, 1, 1))[:, 0, 0], [0.5, 2.5, 4.5, 6.0])
