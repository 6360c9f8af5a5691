from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.datasets import phantom_case
from common.preprocessing import NormalizeByOrgand, OrganMaskd, brain_mask
from common.preprocessing.transforms import doubts_about_mask

SPACING = (2.0, 2.0, 5.0)


GOOD = np.arange(2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)


def meta(array: np.ndarray, name: str = "/data/case_7/flair.nii.gz") -> MetaTensor:
    affine = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"filename_or_obj": name})


class TestOrganMaskd:
    def test_adds_the_organ_of_the_first_channel_in_millimeters(self):
        image = phantom_case(np.random.default_rng(0), (96, 96, 12), modalities=2)[0]
        data = OrganMaskd("image", organ="brain")({"image": meta(image)})
        assert data["organ"].shape == (1, 96, 96, 12)
        np.testing.assert_array_equal(data["organ"][0].numpy(), brain_mask(image[0], SPACING).astype(np.float32))
        np.testing.assert_array_equal(data["organ"].affine, data["image"].affine)
        np.testing.assert_array_equal(data["image"].numpy(), image)

    def test_none_is_ones(self):
        data = OrganMaskd("image", organ="none", organ_key="where")({"image": meta(GOOD)})
        assert data["where"].shape == (1, 5, 6, 3)
        assert (data["where"] == 1).all()

    def test_a_mask_that_is_there_is_kept_and_nothing_is_sought(self):
        given = (np.random.default_rng(0).random((2, 5, 6, 3)) * 2).astype(np.float32)
        data = {"image": meta(GOOD), "organ": meta(given, "/data/case_7/lung.nii.gz")}
        organ = OrganMaskd("image", organ="brain")(data)["organ"]  # there is no brain in this image
        np.testing.assert_array_equal(organ.numpy(), (given[:1] > 0.5).astype(np.float32))
        np.testing.assert_array_equal(data["organ"].numpy(), given)

    def test_an_empty_mask_is_named(self):
        data = {"image": meta(GOOD), "organ": meta(np.zeros_like(GOOD), "/data/case_7/lung.nii.gz")}
        with pytest.raises(ValueError, match=r"/data/case_7/lung.nii.gz: the organ's mask is empty"):
            OrganMaskd("image", organ="none")(data)

    def test_an_image_without_the_organ_is_named(self):
        with pytest.raises(ValueError, match=r"^/data/case_7/flair.nii.gz: no brain found in an image of shape"):
            OrganMaskd("image", organ="brain")({"image": meta(GOOD)})

    def test_a_mask_turned_inside_out_is_doubted(self):
        round_one = np.zeros_like(GOOD[:1])
        round_one[:, 1:-1, :, 1:] = round_one[:, :, 1:-1, 1:] = 1  # cut to its size
        for organ, given, told in (
            ("brain", round_one, False),
            ("brain", 1 - round_one, True),
            ("brain", round_one * 0 + 1, True),
            ("none", round_one * 0 + 1, False),
        ):
            kind: Any = organ
            data = {"image": meta(GOOD), "organ": meta(given), "warnings": "tilted"}
            warned = OrganMaskd("image", organ=kind)(data)["warnings"]
            assert warned.startswith("tilted; the organ's mask holds the corners") if told else warned == "tilted"

    def test_unknown_organ_is_refused_at_once(self):
        wrong: Any = "liver"
        with pytest.raises(ValueError, match=r"organ must be one of .*'liver'"):
            OrganMaskd("image", organ=wrong)


class TestNormalized:
    def image(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(3)
        return rng.gamma(2.0, [[[[50.0]]], [[[400.0]]]], (2, 8, 9, 4)).astype(np.float32), rng.random((8, 9, 4)) > 0.3

    def test_organ_median_puts_each_channels_median_at_one_and_zero_outside(self):
        image, organ = self.image()
        data = {"image": meta(image), "organ": meta(organ[None].astype(np.float32))}
        out = NormalizeByOrgand("image", upper=50.0)(data)["image"].numpy()
        assert np.median(out[:, organ], axis=1) == pytest.approx([1.0, 1.0], abs=1e-6)
        assert not out[:, ~organ].any()
        for channel, values in zip(out, image, strict=True):
            np.testing.assert_allclose(channel[organ], values[organ] / np.median(values[organ]), rtol=1e-5)

    def test_organ_median_clips_at_upper_and_leaves_its_input_alone(self):
        image, organ = self.image()
        data = {"image": meta(image.copy()), "organ": meta(organ[None].astype(np.float32))}
        out = NormalizeByOrgand("image", upper=1.5)(data)["image"]
        assert float(out.max()) == 1.5
        np.testing.assert_array_equal(data["image"].numpy(), image)

    def test_slice_max_divides_every_slice_of_every_channel_by_its_maximum(self):
        image, _ = self.image()
        image[0, ..., 2] = 0
        out = NormalizeByOrgand("image", mode="slice_max")({"image": meta(image)})["image"].numpy()
        peak = image.max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(out, image / np.where(peak > 0, peak, 1), rtol=1e-6)
        assert not out[0, ..., 2].any()

    def test_organ_mode_puts_each_channels_most_frequent_intensity_at_one_though_half_the_organ_is_ill(self):
        rng = np.random.default_rng(0)
        image = np.stack([rng.normal(level, level / 50, (20, 20, 8)) for level in (50.0, 400.0)]).astype(np.float32)
        image[:, :11] *= rng.uniform(1.3, 6.0, (11, 20, 8))  # 55 %: the median is theirs
        organ = meta(np.ones((1, 20, 20, 8), np.float32))
        out = NormalizeByOrgand("image", mode="organ_mode", upper=8.0)({"image": meta(image), "organ": organ})[
            "image"
        ].numpy()
        assert np.median(out[:, 11:], axis=(1, 2, 3)) == pytest.approx([1.0, 1.0], abs=0.05)
        assert (np.median(out, axis=(1, 2, 3)) > 1.2).all()

    def test_none_changes_nothing_and_needs_no_organ(self):
        image, _ = self.image()
        np.testing.assert_array_equal(
            NormalizeByOrgand("image", mode="none")({"image": meta(image)})["image"].numpy(), image
        )

    def test_unknown_mode_is_refused(self):
        wrong: Any = "zscore"
        with pytest.raises(ValueError, match="'none'\\], got 'zscore'"):
            NormalizeByOrgand("image", mode=wrong)


def test_a_mask_of_everything_in_few_slices_is_doubted_as_one_of_all_is():
    organ = np.zeros((8, 8, 10), bool)
    organ[..., 4:7] = True
    assert len(doubts_about_mask(organ)) == len(doubts_about_mask(np.ones_like(organ))) == 1
    organ[:, :2, 4:6] = False  # two of the three leave corners free
    assert doubts_about_mask(organ) == []
