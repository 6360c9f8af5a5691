from __future__ import annotations

import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from common.metrics import dice
from common.preprocessing import lung_mask, lungs, organ_mask

SPACING = (4.0, 4.0, 6.0)
SIZE_MM = (400.0, 280.0, 180.0)
AIR, LUNG, TISSUE = -1000.0, -850.0, 40.0


class Chest:
    """A chest in Hounsfield units: body on a table, lungs with vessels, heart, airways; each part a mask."""

    def __init__(self, spacing=SPACING, seed=0):
        self.spacing = spacing
        shape = [round(mm / s) for mm, s in zip(SIZE_MM, spacing, strict=True)]
        centered = [s * (np.arange(n) - (n - 1) / 2) for n, s in zip(shape, spacing, strict=True)]
        self.x, self.y, self.z = np.meshgrid(*centered, indexing="ij")  # left, posterior, up; millimeters
        self.rng = np.random.default_rng(seed)
        body = self.ellipse(0, 0, 175, 105)
        wide = 1 - (self.z / 220) ** 2  # the chest tapers to both ends
        self.right, self.left = (
            ((self.x - side * 78) / (62 * wide)) ** 2 + (self.y / (82 * wide)) ** 2 < 1 for side in (-1, 1)
        )
        self.heart = self.ellipse(12, -12, 42, 45) & (self.z < 20)
        bronchi = (abs(self.x) - 20 + self.z) ** 2 + (self.y - 45) ** 2 < 49  # down and outwards, into the lungs
        self.airways = self.ellipse(0, 45, 10, 10) & (self.z > 20) | bronchi & (abs(self.z - 5) < 15)
        self.left &= ~(self.heart | self.airways)
        self.right &= ~(self.heart | self.airways)
        self.image = np.where(body, TISSUE, AIR)
        self.image[abs(self.y - 122) < 8] = -100.0  # the table
        self.image[self.lungs] = LUNG
        self.image[self.lungs & (ndi.gaussian_filter(self.rng.normal(size=shape), 0.7) > 0.62)] = 0.0  # vessels
        self.image[self.airways] = AIR

    @property
    def lungs(self):
        return self.right | self.left

    def ellipse(self, x, y, a, b):
        return ((self.x - x) / a) ** 2 + ((self.y - y) / b) ** 2 < 1

    def noisy(self):
        return (self.image + self.rng.normal(0, 25, self.image.shape)).astype(np.float32)

    def found(self):
        return lung_mask(self.noisy(), self.spacing)


class TestLungMask:
    def test_both_lungs_of_a_chest_are_found_with_their_vessels(self):
        chest = Chest()
        mask = chest.found()
        assert dice(mask, chest.lungs) > 0.95
        assert ndi.label(mask)[1] == 2
        assert mask[chest.lungs & (chest.image == 0)].mean() > 0.95

    def test_heart_airways_and_air_around_are_no_lung(self):
        chest = Chest()
        mask = chest.found()
        assert not mask[chest.airways & (chest.z > 8)].any()  # further down they are in the lungs
        assert mask[chest.heart].mean() < 0.05
        assert not mask[~chest.ellipse(0, 0, 175, 105)].any()

    @pytest.mark.parametrize("spacing", [(4.0, 4.0, 1.5), (3.0, 1.5, 8.0), (1.5, 1.5, 30.0)])
    def test_any_spacing_shows_the_same_lungs(self, spacing):
        chest = Chest(spacing)
        assert dice(chest.found(), chest.lungs) > 0.95

    @pytest.mark.parametrize(
        "units",
        [
            lambda hu: hu + 1024,
            lambda hu: 0.01 * hu,
            lambda hu: np.round(((hu + 1350) / 1500).clip(0, 1) * 255),
            lambda hu: np.round(((hu + 1000) / 1200).clip(0, 1) * 255),
            lambda hu: hu + 60 * np.linspace(-1, 1, hu.shape[0])[:, None, None],
        ],
        ids=["offset", "gain", "lung window", "air clipped", "air not constant"],
    )
    def test_units_do_not_matter(self, units):
        chest = Chest()
        assert dice(lung_mask(units(chest.noisy()), SPACING), chest.lungs) > 0.95

    def test_gain_and_offset_change_nothing(self):
        image = Chest().noisy()
        np.testing.assert_array_equal(lung_mask(4 * image + 4000, SPACING), lung_mask(image, SPACING))

    @pytest.mark.parametrize("value", [-3024.0, 0.0])
    def test_what_lies_outside_a_round_field_of_view_does_not_matter(self, value):
        chest = Chest()
        outside = np.hypot(chest.x, chest.y) > 190
        image = np.where(outside, value, chest.noisy() + (1350 if value == 0 else 0))
        assert dice(lung_mask(image, SPACING), chest.lungs) > 0.95

    def test_lungs_cut_off_by_a_round_field_of_view_are_found(self):
        chest = Chest()
        outside = np.hypot(chest.x, chest.y) > 95
        lungs = chest.lungs & ~outside
        assert lungs.sum() < 0.8 * chest.lungs.sum()
        assert dice(lung_mask(np.where(outside, -2000, chest.noisy()), SPACING), lungs) > 0.93

    def test_lungs_cut_off_by_the_border_of_the_image_are_found(self):
        chest = Chest()
        crop = np.s_[25:-25, 5:-5]
        assert chest.lungs[25].any()
        assert dice(lung_mask(chest.noisy()[crop], SPACING), chest.lungs[crop]) > 0.95

    @pytest.mark.parametrize("slices", [1, 3])
    def test_few_slices_are_enough(self, slices):
        chest = Chest()
        some = np.s_[..., 12 : 12 + slices]
        assert dice(lung_mask(chest.noisy()[some], SPACING), chest.lungs[some]) > 0.95

    def test_slices_equalized_to_less_contrast_are_no_exception(self):
        chest = Chest()
        image = chest.noisy() + 1000
        image[..., 10:12] *= 0.4
        assert dice(lung_mask(image, SPACING), chest.lungs) > 0.95

    @pytest.mark.parametrize("rim", [45.0, 60.0])
    def test_a_consolidation_at_the_chest_wall_is_lung(self, rim):
        chest = Chest()
        ill = chest.right & (chest.y > rim) & (abs(chest.z) < 45)
        chest.image[ill] = TISSUE
        mask = chest.found()
        assert ill.sum() > 50
        assert mask[ill].mean() > 0.9
        assert dice(mask, chest.lungs) > 0.95

    def test_a_consolidation_within_the_lung_is_lung(self):
        chest = Chest()
        ill = np.sqrt((chest.x + 80) ** 2 + chest.y**2 + chest.z**2) < 25
        chest.image[ill] = TISSUE
        assert chest.found()[ill].all()

    def test_lungs_that_touch_before_and_behind_the_heart_do_not_enclose_it(self):
        chest = Chest()
        bridge = (abs(chest.x) < 60) & (abs(abs(chest.y) - 68) < 9) & (chest.z < 20)
        chest.image[bridge] = LUNG
        mask = chest.found()
        assert mask[bridge].mean() > 0.8
        assert mask[chest.heart & ~bridge].mean() < 0.1

    @pytest.mark.parametrize("lost", ["left", "right"])
    def test_one_lung_is_found_where_the_other_is_gone(self, lost):
        chest = Chest()
        gone, kept = (chest.left, chest.right) if lost == "left" else (chest.right, chest.left)
        chest.image[gone] = TISSUE
        mask = chest.found()
        assert dice(mask, kept) > 0.95
        assert not mask[gone].any()

    def test_gas_in_the_stomach_is_no_lung(self):
        chest = Chest()
        chest.left &= chest.z > -40
        below = ~chest.lungs & (chest.z <= -40)
        chest.image[below & chest.ellipse(78, 0, 70, 80)] = TISSUE
        gas = chest.ellipse(80, -20, 45, 40) & (chest.z < -52)
        chest.image[gas] = AIR
        mask = chest.found()
        assert gas.sum() > 0.1 * chest.left.sum()
        assert not mask[gas].any()
        assert dice(mask, chest.lungs) > 0.95

    def test_air_between_arm_and_chest_is_no_lung(self):
        chest = Chest()
        arm = chest.ellipse(185, 0, 60, 70) & (chest.x > 0) & (abs(chest.z) < 60)
        gap = chest.ellipse(178, 0, 14, 50) & arm
        chest.image[arm & ~chest.lungs & ~chest.ellipse(0, 0, 165, 95)] = TISSUE
        chest.image[gap] = AIR
        assert gap.sum() > 0.1 * chest.left.sum()
        assert not chest.found()[gap].any()

    @pytest.mark.parametrize(
        "image", [np.zeros((12, 12, 3)), np.full((12, 12, 1), 7.0), np.pad([[[0.0]]], 5, constant_values=9)]
    )
    def test_where_there_is_no_lung_the_mask_is_empty(self, image):
        mask = lung_mask(image, SPACING)
        assert mask.shape == image.shape
        assert not mask.any()

    @pytest.mark.parametrize("case", ["coronacases_006", "radiopaedia_07"])
    def test_agrees_with_the_lungs_of_real_scans(self, case, real_data):
        ct, lung = (
            nib.Nifti1Image.from_filename(real_data("covid_ct") / case / f"{name}.nii.gz") for name in ("ct", "lung")
        )
        mask = lung_mask(np.asarray(ct.dataobj, dtype=np.float32), ct.header.get_zooms())
        assert dice(mask, np.asarray(lung.dataobj) > 0) > 0.95


class TestLearnedLungMask:
    @pytest.fixture
    def weights(self, tmp_path) -> str:
        unet = pytest.importorskip("lungmask.resunet", reason="the extra [lung] is not installed")
        torch.manual_seed(0)
        net = unet.UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
        with torch.no_grad():  # "lung" wherever the (normalized) image is dark, whatever the rest makes of it
            net.last.weight.zero_()
            net.last.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        torch.save(net.state_dict(), tmp_path / "unet.pth")
        return str(tmp_path / "unet.pth")

    def test_comes_back_in_the_order_of_the_image(self, monkeypatch):
        calls = []

        class LMInferer:
            def __init__(self, **options):
                calls.append(options)

            def apply(self, slices):
                calls.append(slices.shape)
                return (slices < -700).astype(np.uint8) * 2

        monkeypatch.setitem(sys.modules, "lungmask", SimpleNamespace(LMInferer=LMInferer))
        image = np.random.default_rng(0).uniform(-1000, 400, (5, 6, 7))
        mask = organ_mask(image, spacing=(1, 1, 1), organ="lungmask", weights="a.pth")
        np.testing.assert_array_equal(mask, image < -700)
        assert calls[1] == (7, 6, 5)
        assert calls[0]["modelpath"] == "a.pth"

    def test_the_package_runs_on_weights_from_a_file(self, weights):
        image = np.full((40, 36, 3), -900.0, dtype=np.float32)
        mask = organ_mask(image, spacing=(1, 1, 1), organ="lungmask", weights=weights)
        assert mask.shape == image.shape
        assert mask.any()

    def test_missing_weights_are_named(self, tmp_path):
        pytest.importorskip("lungmask", reason="the extra [lung] is not installed")
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth of lungmask are not to be had"):
            organ_mask(np.zeros((4, 4, 2)), spacing=(1, 1, 1), organ="lungmask", weights=str(tmp_path / "nowhere.pth"))

    def test_missing_package_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lungmask", None)
        with pytest.raises(ImportError, match=r"weakseg-bundles\[lung\]"):
            organ_mask(np.zeros((4, 4, 2)), spacing=(1, 1, 1), organ="lungmask", weights="b.pth")


class TestSteps:
    @pytest.mark.parametrize("factor", [2, 3, 4])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_enlarged_blocks_lie_where_they_were_averaged(self, factor, axis):
        coarse = np.zeros((6, 6, 6), bool)
        coarse[(slice(None),) * axis + (slice(2, 4),)] = True
        factors = [factor if a == axis else 1 for a in range(3)]
        fine = np.repeat(coarse, factor, axis)
        np.testing.assert_array_equal(lungs._enlarged(coarse, factors, fine.shape), fine)
        np.testing.assert_array_equal(lungs.block_mean(fine, factors), coarse)

    def test_parts_below_the_smallest_share_are_no_lung(self):
        dark = np.zeros((40, 40, 5), bool)
        dark[2:22, 2:22] = True
        dark[30:36, 30:36, 2] = True  # 36 voxels beside 2000
        smooth = np.where(dark, -0.1, 1.0)
        large = dark & (np.arange(40) < 25)[:, None, None]
        for smallest, expected in ((0.05, large), (0.01, dark)):
            found = lungs._aerated(smooth, dark, -np.inf, smallest)
            np.testing.assert_array_equal(found.sum(axis=(0, 1)) > 350, expected.sum(axis=(0, 1)) > 350)
            assert found[25:].any() == expected[25:].any()

    def test_what_both_lungs_enclose_together_is_not_filled(self):
        x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij")
        ring = np.repeat(((np.hypot(x, y) > 6) & (np.hypot(x, y) < 14))[..., None], 6, axis=2)
        closed = lungs._closed_by_side(ring, (2.0, 2.0, 5.0), 20.0, 3.0)
        assert closed[ring].all()
        assert not closed[18:22, 18:22].any()
