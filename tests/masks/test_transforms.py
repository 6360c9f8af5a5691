from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu

from common.masks import (
    BaselineMasksd,
    MapsToMaskd,
    clean,
    largest_component,
    multi_otsu,
    refine_by_intensity,
    smooth_along_slices,
    smooth_in_organ,
)

SPACING = (2.0, 2.0, 5.0)


def meta(array: np.ndarray, name: str = "/data/case_7/flair.nii.gz") -> MetaTensor:
    affine = torch.diag(torch.tensor([-SPACING[0], -SPACING[1], SPACING[2], 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"filename_or_obj": name})


def scene(classes: int = 2, shape: tuple[int, int, int] = (12, 10, 6), seed: int = 0) -> dict[str, Any]:
    """Random maps, an organ in the middle, slice probabilities that let slices 2 to 4 pass the gate."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(classes, *shape)).astype(np.float32)
    probability = np.full((classes, shape[2]), 0.1 / (classes - 1), np.float32)
    probability[0] = 0.9
    for z, leading in ((2, 1), (3, classes - 1), (4, classes - 1)):
        probability[:, z] = 0.2 / (classes - 1)
        probability[leading, z] = 0.8
    probability[:, 3] = [0.05] + [0.05] * (classes - 2) + [1 - 0.05 * (classes - 1)]
    organ = np.zeros(shape, np.float32)
    organ[2:10, 2:8] = 1
    image = rng.uniform(0.8, 2.0, shape).astype(np.float32)
    spread = np.broadcast_to(probability[:, None, None], (classes, *shape))
    return {
        "image": meta(np.stack([image * organ, organ])),
        "pred": torch.as_tensor(np.concatenate([maps, spread])),
        "maps": maps,
        "p": probability,
        "organ": organ > 0,
    }


class TestMapsToMaskd:
    def test_one_class_of_a_patient_is_that_of_most_probability_over_its_positive_slices(self):
        data = scene(classes=3)
        data["pred"][3:, ..., 0] = torch.tensor([0.5, 0.0, 0.5])[:, None, None]  # does not pass the gate
        data["pred"][3:, ..., 2] = torch.tensor([0.01, 0.98, 0.01])[:, None, None]  # the most suspicious slice
        each, one = MapsToMaskd(gate=0.6)(data)["pred"][0], MapsToMaskd(gate=0.6, one_class=True)(data)["pred"][0]
        assert [each[..., z].max() for z in range(6)] == [0, 0, 1, 2, 2, 0]
        assert [one[..., z].max() for z in range(6)] == [0, 0, 2, 2, 2, 0]
        margin = data["maps"][2] - data["maps"][0]
        np.testing.assert_array_equal(one.numpy() > 0, (margin > 0) & data["organ"] & (np.isin(range(6), (2, 3, 4))))

    def test_without_a_positive_slice_there_is_no_class_to_share(self):
        assert not MapsToMaskd(gate=0.99, one_class=True)(scene(classes=3))["pred"].any()

    def test_heatmap_is_evidence_against_class_0_and_its_minimum_outside_the_organ(self):
        data = scene()
        out = MapsToMaskd()(data)
        margin, organ = data["maps"][1] - data["maps"][0], data["organ"]
        heat = out["heatmap"][0].numpy()
        np.testing.assert_array_equal(heat[organ], margin[organ])
        assert (heat[~organ] == margin[organ].min()).all()
        np.testing.assert_array_equal(out["heatmap"].affine, data["image"].affine)

    def test_probabilities_are_the_slices_and_the_volumes_is_that_of_the_most_suspicious_slice(self):
        out = MapsToMaskd()(scene())
        np.testing.assert_allclose(out["slice_probability"], scene()["p"])
        np.testing.assert_allclose(out["probability"], [0.05, 0.95], rtol=1e-6)

    def test_mask_is_the_map_above_the_threshold_in_kept_slices_of_the_organ(self):
        data = scene()
        out = MapsToMaskd(threshold=0.4)(data)
        expected = (data["maps"][1] - data["maps"][0] > 0.4) & data["organ"]
        expected[..., [0, 1, 5]] = False
        np.testing.assert_array_equal(out["pred"][0].numpy(), expected)
        assert out["pred"].dtype == torch.uint8
        assert float(out["threshold"]) == pytest.approx(0.4)

    def test_heat_outside_is_the_share_of_positive_evidence_there(self):
        data = scene()
        positive = np.maximum(data["maps"][1] - data["maps"][0], 0)
        expected = positive[~data["organ"]].sum() / positive.sum()
        assert float(MapsToMaskd()(data)["heat_outside"]) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(("gate", "kept"), [(0.5, [2, 3, 4]), (0.9, [3]), (0.99, []), (0.05, [0, 1, 2, 3, 4, 5])])
    def test_only_slices_that_pass_the_gate_hold_a_mask(self, gate, kept):
        out = MapsToMaskd(gate=gate)(scene())
        assert np.flatnonzero(out["pred"][0].numpy().any(axis=(0, 1))).tolist() == kept

    def test_without_gate_the_most_probable_class_decides(self):
        data = scene(classes=3)
        data["pred"][3:, ..., 0] = torch.tensor([0.4, 0.3, 0.3])[:, None, None]  # 0.6 against class 0, which leads
        assert 0 in np.flatnonzero(MapsToMaskd(gate=0.5)(data)["pred"][0].numpy().any(axis=(0, 1)))
        assert np.flatnonzero(MapsToMaskd(gate=None)(data)["pred"][0].numpy().any(axis=(0, 1))).tolist() == [2, 3, 4]

    def test_three_classes_give_each_slice_the_label_of_its_class_and_that_classs_map(self):
        data = scene(classes=3)
        out = MapsToMaskd()(data)
        pred, heat, organ = out["pred"][0].numpy(), out["heatmap"][0].numpy(), data["organ"]
        assert set(np.unique(pred[..., 2])) == {0, 1}
        assert set(np.unique(pred[..., 3])) == set(np.unique(pred[..., 4])) == {0, 2}
        margins = data["maps"][1:] - data["maps"][:1]
        # Slices without finding show the class that leads in the most suspicious slice, 2.
        for z, shown in enumerate([1, 1, 0, 1, 1, 1]):
            np.testing.assert_array_equal(heat[..., z][organ[..., z]], margins[shown, ..., z][organ[..., z]])

    def test_evidence_sum_adds_the_maps_of_all_findings(self):
        data = scene(classes=3)
        heat = MapsToMaskd(evidence="sum")(data)["heatmap"][0].numpy()
        expected = data["maps"][1] + data["maps"][2] - 2 * data["maps"][0]
        np.testing.assert_allclose(heat[data["organ"]], expected[data["organ"]], atol=1e-6)

    @pytest.mark.parametrize("binarize", ["fixed", "multi_otsu", "otsu"])
    def test_own_evidence_that_is_negative_everywhere_marks_nothing_however_little_class_0_has(self, binarize):
        data = scene()
        data["pred"][1] = -data["pred"][1].abs()
        data["pred"][0] = data["pred"][1] * 3
        assert MapsToMaskd(binarize=binarize)(dict(data))["pred"].any()
        out = MapsToMaskd(evidence="own", binarize=binarize, offset=0.3)(dict(data))
        assert not out["pred"].any()
        assert (out["heatmap"] == 0).all()

    def test_own_evidence_is_the_predicted_classs_map_after_relu(self):
        data = scene(classes=3)
        heat, organ = MapsToMaskd(evidence="own")(data)["heatmap"][0].numpy(), data["organ"]
        for z, shown in enumerate([2, 2, 1, 2, 2, 2]):
            expected = np.maximum(data["maps"][shown, ..., z], 0)
            np.testing.assert_array_equal(heat[..., z][organ[..., z]], expected[organ[..., z]])

    @pytest.mark.parametrize("offset", [0.0, 0.7])
    def test_multi_otsu_is_that_of_each_slice_inside_the_organ_and_the_lowest_is_told(self, offset):
        data = scene(shape=(30, 30, 6))
        out = MapsToMaskd(binarize="multi_otsu", offset=offset)(data)
        margin = data["maps"][1] - data["maps"][0]
        thresholds = [multi_otsu(margin[..., z], offset=offset, mask=data["organ"][..., z]) for z in range(6)]
        for z in (2, 3, 4):
            expected = (margin[..., z] > thresholds[z]) & data["organ"][..., z]
            assert expected.any()
            np.testing.assert_array_equal(out["pred"][0, ..., z].numpy(), expected)
        assert float(out["threshold"]) == pytest.approx(min(thresholds[2:5]))
        assert out["heatmap"][out["pred"] > 0].min() > out["threshold"]
        closed = MapsToMaskd(binarize="multi_otsu", offset=offset, gate=0.99)(dict(data))
        assert not closed["pred"].any()
        assert float(closed["threshold"]) == pytest.approx(min(thresholds)) != pytest.approx(min(thresholds[2:5]))
        data["pred"][:2] = 0.0  # nothing stands out
        assert float(MapsToMaskd(binarize="multi_otsu", offset=offset)(data)["threshold"]) == np.inf

    def test_smoothing_acts_on_the_probabilities_before_the_gate(self):
        data = scene()
        out = MapsToMaskd(gate_smooth_mm=8.0)(data)
        smooth = smooth_along_slices(data["p"], sigma_mm=8.0, slice_mm=5.0)
        np.testing.assert_allclose(out["slice_probability"], smooth, rtol=1e-6)
        kept = np.flatnonzero(out["pred"][0].numpy().any(axis=(0, 1)))
        np.testing.assert_array_equal(kept, np.flatnonzero(1 - smooth[0] > 0.5))

    def test_cleaning_and_refinement_are_those_of_common(self):
        data = scene(shape=(30, 30, 6))
        seed = (data["maps"][1] - data["maps"][0] > 0) & data["organ"]
        seed[..., [0, 1, 5]] = False
        cleaned = clean(seed, min_size=4, closing_radius=1, axis=2)
        options = {"min_size": 4, "closing_radius": 1}
        np.testing.assert_array_equal(MapsToMaskd(clean=options)(data)["pred"][0].numpy(), cleaned)
        refine = {"dilate_mm": 3.0, "intensity": 1.3}
        expected = refine_by_intensity(cleaned, data["image"][0].numpy(), data["organ"], spacing=SPACING, **refine)
        assert expected.any()
        out = MapsToMaskd(clean=options, refine=refine)(data)
        np.testing.assert_array_equal(out["pred"][0].numpy(), expected)

    def two_lesions(self) -> dict[str, Any]:
        data = scene()
        maps = np.full_like(data["maps"], 0.0)
        maps[1] = -1.0
        maps[1, 3:5, 3:5, 2:4], maps[1, 7:9, 6, 4] = 1.0, 1.0  # 8 and 2 voxels of 20 mm³
        data["pred"][:2] = torch.as_tensor(maps)
        return data

    def test_largest_keeps_one_component(self):
        assert int(MapsToMaskd()(self.two_lesions())["pred"].sum()) == 10
        assert int(MapsToMaskd(largest=True)(self.two_lesions())["pred"].sum()) == 8

    def test_what_lies_outside_the_kept_slices_is_no_component(self):
        data = self.two_lesions()
        data["pred"][1, 2:9, 3:7, 0] = data["pred"][1, 2:9, 3:7, 5] = 1.0  # 28 voxels each
        assert int(MapsToMaskd(largest=True)(data)["pred"].sum()) == 8

    @pytest.mark.parametrize(("limit", "count"), [(0.0, 10), (0.199, 10), (0.201, 0)])
    def test_masks_below_the_smallest_volume_are_emptied(self, limit, count):
        assert int(MapsToMaskd(min_volume_ml=limit)(self.two_lesions())["pred"].sum()) == count

    def test_without_organ_channel_every_voxel_counts(self):
        data = scene()
        data["image"] = data["image"][:1]
        out = MapsToMaskd(organ_channel=False)(data)
        np.testing.assert_array_equal(out["heatmap"][0].numpy(), data["maps"][1] - data["maps"][0])
        assert float(out["heat_outside"]) == 0.0

    def test_input_is_left_alone(self):
        data = scene()
        before = data["pred"].clone()
        MapsToMaskd(refine={})(data)
        assert torch.equal(data["pred"], before)
        assert "heatmap" not in data

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"binarize": "mean"}, "binarize must be one of .*, got 'mean'"),
            ({"evidence": "max"}, "evidence must be 'predicted', 'own' or 'sum', got 'max'"),
            ({"gate": 7}, r"^gate must lie in \[0, 1\], got 7$"),
            ({"mask_quantile": 2.0}, "mask_quantile must lie in"),
            ({"threshold": float("nan")}, "threshold must be a number, got nan"),
            ({"min_volume_ml": -3}, "min_volume_ml must be 0 or more, got -3"),
            ({"refine": {"dilate_mm": -3.0}}, "dilate_mm must be 0 or more, got -3.0"),
        ],
    )
    def test_options_that_nobody_can_mean_are_refused_at_once(self, option, message):
        with pytest.raises(ValueError, match=message):
            MapsToMaskd(**option)


class TestBaselineMasksd:
    def test_threshold_is_brightness_inside_the_organ_and_gated_its_largest_part_in_kept_slices(self):
        data = scene(shape=(30, 30, 6))
        data["slice_probability"] = torch.as_tensor(data["p"])
        volume = data["image"][0].numpy().copy()
        volume[volume > 0] = 1.0
        volume[3:6, 3:6, 1:4] = 1.6  # slice 1 does not pass the gate
        volume[8:9, 6:8, 4] = 1.6
        volume[5:7, 5:7, 5] = 1.3
        data["image"][0] = torch.as_tensor(volume)
        out = BaselineMasksd(thresholds=(1.2, 1.5))(data)
        np.testing.assert_array_equal(out["baseline_threshold"][0].numpy(), volume > 1.2)
        expected = volume > 1.5
        expected[..., [0, 1, 5]] = False
        expected[8:9] = False
        np.testing.assert_array_equal(out["baseline_gated"][0].numpy(), expected)
        np.testing.assert_array_equal(out["baseline_gated"].affine, data["image"].affine)

    def test_smoothing_comes_before_both_thresholds_and_counts_millimeters(self):
        data = scene(shape=(30, 30, 6))
        data["slice_probability"] = torch.as_tensor(data["p"])
        shown = smooth_in_organ(data["image"][0].numpy(), data["organ"], sigma_mm=3.0, spacing=SPACING)
        out = BaselineMasksd(thresholds=(1.45, 1.4), smooth_mm=3.0)(data)
        np.testing.assert_array_equal(out["baseline_threshold"][0].numpy(), shown > 1.45)
        expected = shown > 1.4
        expected[..., [0, 1, 5]] = False
        np.testing.assert_array_equal(out["baseline_gated"][0].numpy(), largest_component(expected))
        assert 0 < expected.sum() < data["organ"][..., 2:5].sum()

    def test_opened_is_the_threshold_of_the_smooth_image_without_thin_parts_in_all_slices(self):
        data = scene(shape=(30, 30, 6))
        data["slice_probability"] = torch.as_tensor(data["p"])
        assert "baseline_opened" not in BaselineMasksd(thresholds=(1.45, 1.4), smooth_mm=3.0)(data)
        out = BaselineMasksd(thresholds=(1.45, 1.4, 1.3, 2.4), smooth_mm=3.0)(data)
        shown = smooth_in_organ(data["image"][0].numpy(), data["organ"], sigma_mm=3.0, spacing=SPACING)
        broad = ndi.grey_opening(shown, size=(3, 3, 1))  # 2.4 mm are one pixel of 2 mm, and no slice of 5 mm
        np.testing.assert_array_equal(out["baseline_opened"][0].numpy(), broad > 1.3)
        assert 0 < (broad > 1.3).sum() < (shown > 1.3).sum()
        assert (broad > 1.3).any(axis=(0, 1)).all()
        expected = broad > 1.3
        expected[..., [0, 1, 5]] = False
        np.testing.assert_array_equal(out["baseline_opened_gated"][0].numpy(), largest_component(expected))
        assert expected.any()

    @pytest.mark.parametrize("thresholds", [(1.4,), (1.4, 1.3, 1.2), (1.4, 1.3, 1.2, None), (None, 1.3)])
    def test_thresholds_that_do_not_go_together_are_refused(self, thresholds):
        with pytest.raises(ValueError, match="thresholds must be"):
            BaselineMasksd(thresholds=thresholds)


def heat_case(heat: np.ndarray) -> dict:
    """A case as the inferer leaves it: two maps, two probabilities, the organ everywhere but in the first row."""
    pred = torch.zeros(4, *heat.shape)
    pred[1] = torch.as_tensor(heat)
    pred[3] = 1.0
    organ = torch.ones(1, *heat.shape)
    organ[:, 0] = 0
    return {"image": torch.cat([torch.ones_like(organ), organ]), "pred": pred}


@pytest.fixture
def heat() -> np.ndarray:
    rng = np.random.default_rng(0)
    heat = rng.normal(size=(12, 12, 8)) * 0.1
    heat[3:7, 3:7, 2:5] += 2.0  # 48 voxels
    heat[10, 10, 6] += 3.0  # one voxel
    return heat.astype(np.float32)


def test_otsu_is_that_of_the_heat_inside_the_organ():
    heat = np.random.default_rng(0).gamma(2.0, size=(12, 12, 8)).astype(np.float32)
    case = heat_case(heat)
    case["image"][-1, :8] = 0  # outside, where heat counts as the least inside
    result = MapsToMaskd(binarize="otsu")(case)
    expected = threshold_otsu(heat[8:], nbins=256)
    assert float(result["threshold"]) == pytest.approx(expected, rel=0.01)
    assert int(result["pred"].sum()) == int((heat[8:] > float(result["threshold"])).sum())


def test_quantile_marks_its_share_of_the_organ(heat):
    result = MapsToMaskd(binarize="quantile", mask_quantile=0.9)(heat_case(heat))
    assert int(result["pred"].sum()) == pytest.approx(0.1 * heat[1:].size, abs=1)
    assert int(result["pred"][:, 0].sum()) == 0


def test_components_below_the_least_size_are_dropped(heat):
    mask = MapsToMaskd(threshold=1.0, min_component_ml=0.002)(heat_case(heat))["pred"]
    assert int(mask.sum()) == 48
