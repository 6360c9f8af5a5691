from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.preprocessing import OrganMaskd, lung_mask
from common.preprocessing.thorax import doubts_about_lungs
from tests.preprocessing.test_lungs import AIR, SPACING, TISSUE, Chest


def doubts(image: np.ndarray, lungs: np.ndarray, spacing=SPACING, *, found: bool = True) -> str:
    return "; ".join(doubts_about_lungs(image, lungs, spacing, found=found))


@pytest.fixture(scope="module")
def chest() -> Chest:
    """With more of the lungs behind than in front, as in a body."""
    chest = Chest()
    front = chest.lungs & (chest.y < -20) & (abs(chest.x) < 70 - chest.y / 2)
    for side in ("left", "right"):
        setattr(chest, side, getattr(chest, side) & ~front)
    chest.image[front] = TISSUE
    return chest


class TestGray:
    def case(self, image: np.ndarray) -> dict:
        affine = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0], dtype=torch.float64))
        volume = MetaTensor(torch.as_tensor(image[None]), affine=affine, meta={"filename_or_obj": "ct.nii.gz"})
        return {"image": volume, "warnings": "before"}

    def warnings(self, image: np.ndarray) -> str:
        return OrganMaskd("image", organ="lung")(self.case(image))["warnings"]

    def test_a_chest_passes_whole_or_cut_out(self):
        chest = Chest().noisy()
        for image in (chest, chest[20:-20, 12:-12]):  # borders of air, or of the body
            assert self.warnings(image) == "before"

    @pytest.mark.parametrize("given", [False, True])
    def test_inverted_gray_is_refused_with_the_file(self, given):
        chest = Chest()
        chest.image[abs(chest.y - 122) < 8] = AIR
        data = self.case(-chest.noisy())
        data |= {"organ": torch.as_tensor(chest.lungs[None]).float()} if given else {}
        with pytest.raises(ValueError, match=r"ct\.nii\.gz: .* brighter than the body: gray values are inverted"):
            OrganMaskd("image", organ="lung")(data)

    def test_next_to_no_lung_in_the_field_of_a_chest_is_doubted(self):
        chest = Chest()
        chest.image[chest.left | chest.right & (abs(chest.z) > 4)] = TISSUE
        said = self.warnings(chest.noisy())
        assert re.fullmatch(
            r"before; \d+ ml of lung found in 400 x 280 x 180 mm: no chest, or values that do not .*", said
        )
        few = np.zeros((100, 70, 10), bool)
        assert doubts_about_lungs(few.astype(float), few, SPACING, found=True) == []  # some slices of a chest


class TestTurned:
    def test_a_chest_that_lies_as_its_header_says_passes(self, chest):
        for found in (False, True):
            assert doubts(chest.noisy(), chest.lungs, found=found) == ""
        said: list[str] = []
        lung_mask(chest.noisy(), SPACING, doubts=said)
        assert said == []

    def test_rows_and_columns_that_are_swapped_are_told(self, chest):
        said = doubts(chest.noisy().swapaxes(0, 1), chest.lungs.swapaxes(0, 1))
        assert said == "the lungs lie behind each other, not side by side: are rows and columns swapped?"

    def test_the_back_in_the_place_of_the_front_is_told(self, chest):
        said = doubts(chest.noisy()[:, ::-1], chest.lungs[:, ::-1])
        assert said == "the lungs are larger in front than behind: does the header take the back for the front?"

    def test_the_top_in_the_place_of_the_bottom_is_told_by_the_windpipe(self, chest):
        told: list[str] = []
        lung_mask(chest.noisy()[..., ::-1], SPACING, doubts=told)
        assert told == ["the windpipe runs below the lungs: does the header take the top for the bottom?"]

    def test_half_a_chest_or_a_part_of_few_slices_tells_nothing(self, chest):
        for part in (np.s_[:50], np.s_[50:], np.s_[:, ::-1, :15], np.s_[:50, ::-1]):
            assert doubts(chest.noisy()[part], chest.lungs[part], found=False) == ""


@pytest.mark.parametrize("factors", [(1, 1, 3), (2, 1, 1)])
def test_lungs_larger_than_a_chest_are_doubted(chest, factors):
    spacing = tuple(s * f for s, f in zip(SPACING, factors, strict=True))
    said = doubts(chest.noisy(), chest.lungs, spacing)
    assert re.fullmatch(r"lungs of \d+ x \d+ x \d+ mm, more than a chest has: a wrong spacing, or several .*", said)


@pytest.mark.parametrize(
    ("units", "told"),
    [
        (lambda hu: hu, False),
        (lambda hu: np.maximum(hu, -1024), False),
        (lambda hu: hu + 40, False),
        (lambda hu: hu + 90, True),
        (lambda hu: hu - 90, True),
        (lambda hu: (hu + 1350) * 255 / 1500, False),  # other units, of which nothing is known
        (lambda hu: hu + 1024, False),
        (lambda hu: hu + 200, True),
        (lambda hu: hu - 200, True),
        (lambda hu: 2 * (hu + 1024) - 1024, True),
        (lambda hu: (hu + 1024) / 2 - 1024, True),
    ],
)
def test_hounsfield_units_whose_slope_or_intercept_is_wrong_are_told(chest, units, told):
    assert ("were slope or intercept lost" in doubts(units(chest.noisy()), chest.lungs)) == told


def test_air_tells_an_offset_where_the_image_shows_any(chest):
    shifted = chest.noisy() + 90
    said = doubts(shifted, chest.lungs)
    assert re.fullmatch(r"the air around the body has -9\d\d; in Hounsfield units it is -1000: were .*", said)
    for filling in (-2000, -1024):  # a round field of view
        outside = np.hypot(chest.x / 0.9, chest.y / 0.8) > np.abs(chest.x).max()
        assert 0.2 < outside[..., 0].mean() < 0.8
        assert doubts(np.where(outside, filling, chest.noisy()), chest.lungs) == ""
    corners = np.abs(chest.x) / np.abs(chest.x).max() + np.abs(chest.y) / np.abs(chest.y).max() > 1.3
    assert corners[[0, -1]].mean() > 0.5  # most of two edges
    assert "air around the body" in doubts(np.where(corners, -1024, shifted), chest.lungs)
    inside = np.s_[20:-20, 12:-12]
    assert doubts(shifted[inside], chest.lungs[inside]) == ""
    assert "has -910" in doubts(chest.image + 90, chest.lungs)
