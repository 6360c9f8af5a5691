from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.masks import BaselineMasksd, intensity_grid, without_thin
from common.masks import fit_baselines as fit
from common.masks.baselines import INTENSITIES
from common.metrics import dice


def case(seed: int = 0, label_step: int = 1) -> dict[str, Any]:
    """Organ at 1.0 to 1.05; a lesion of core 1.65 and rim 1.25; a brighter spot, 1.45, in slices without lesion.

    The best plain threshold lies between spot and core; where the slices are known, it lies below the rim.
    """
    rng = np.random.default_rng(seed)
    volume = rng.uniform(1.0, 1.05, (24, 24, 8)).astype(np.float32)
    label = np.zeros(volume.shape, np.uint8)
    x, y = (int(v) for v in rng.integers(4, 8, 2))
    label[x : x + 8, y : y + 8, 2:5] = 1
    volume[label > 0] = 1.25
    volume[x + 1 : x + 7, y + 1 : y + 7, 2:5] = 1.65
    volume[15:24, 15:24, 5:8] = 1.45
    volume[20:23, 0:3, 2:5] = 1.18  # beside the lesion, smaller: only as the largest part is the lesion best at 1.1
    organ = np.ones_like(volume)
    organ[:2] = 0
    volume[:2] = 3.0  # bright outside the organ
    affine = torch.eye(4, dtype=torch.float64)
    finer = torch.diag(torch.tensor([1.0 / label_step, 1.0 / label_step, 1.0, 1.0], dtype=torch.float64))
    finer[:2, 3] = -0.5 + 0.5 / label_step
    labels = label.repeat(label_step, axis=0).repeat(label_step, axis=1)[None]
    return {
        "case": f"case_{seed}",
        "image": MetaTensor(torch.as_tensor(np.stack([volume, organ])), affine=affine),
        "label": MetaTensor(torch.as_tensor(labels), affine=finer),
    }


def same(data: dict) -> dict:
    return dict(data)


@pytest.mark.parametrize("label_step", [1, 2])
def test_fit_finds_the_planted_thresholds_also_from_finer_labels(label_step):
    cases = [case(seed, label_step) for seed in range(3)]
    assert fit(cases, same, progress=False) == (1.5, 1.1, None, None)


def test_only_the_given_thresholds_are_tried():
    assert fit([case()], same, intensities=(1.0, 1.3, 1.6), progress=False)[:2] == (1.6, 1.3)


def test_cases_without_a_mask_are_left_out():
    bare = {"case": "bare", "image": None}
    assert fit([bare, case()], same, progress=False) == fit([case()], same, progress=False)


def test_healthy_cases_do_not_make_the_threshold_that_marks_nothing_the_best():
    healthy = []
    for seed in range(1, 5):
        data = case(seed)
        data["label"] = torch.zeros_like(data["label"])
        healthy.append(data)
    options: dict[str, Any] = {"intensities": (1.1, 1.5, 9.0), "openings_mm": (1.0,), "progress": False}
    assert fit([case(), *healthy], same, **options) == fit([case()], same, **options)
    assert fit(healthy, same, **options) is None


@pytest.mark.parametrize(("masks", "level"), [(False, logging.INFO), (True, logging.WARNING)])
def test_without_a_mask_of_a_lesion_there_are_no_baselines_and_masks_that_hold_none_are_warned_of(masks, level, caplog):
    caplog.set_level(logging.INFO)
    cases = [{"case": "bare", "image": None}]
    if masks:
        cases.append(case())
        cases[1]["label"] = torch.zeros_like(cases[1]["label"])
    thresholds = fit(cases, same, progress=False)
    assert thresholds is None
    (said,) = [record for record in caplog.records if "no training case has a mask" in record.message]
    assert said.levelno == level
    assert "--baseline_thresholds" in said.message
    assert BaselineMasksd(thresholds=thresholds)({"case": "bare"}) == {"case": "bare"}


def test_default_grid_surrounds_the_median():
    assert (INTENSITIES[0], INTENSITIES[-1], len(INTENSITIES)) == (0.7, 2.5, 19)
    assert intensity_grid("organ_median") == INTENSITIES
    assert intensity_grid("organ_mode", [1.0, 4.0]) == (1.0, 4.0)
    assert intensity_grid("slice_max") is intensity_grid("none") is None


@pytest.mark.parametrize("unit", [0.01, 1.0, 300.0])
def test_in_other_units_the_grid_is_measured_and_separates_as_well(unit):
    """A channel before the one that is thresholded, and what lies outside the organ, have no say in it."""
    cases = [case(seed) for seed in range(3)]
    for one in cases:
        volume, organ = one["image"]
        one["image"] = MetaTensor(torch.stack([7 - volume, volume * unit, organ]).as_tensor())
    found = fit(cases, same, intensities=None, channel=1, progress=False)
    assert 1.45 <= found.plain / unit < 1.65  # above the spot, below the core
    assert 1.05 <= found.gated / unit < 1.18  # below the rim
    image = cases[0] | {"slice_probability": torch.tensor([[0.0] * 8, [1.0] * 8])}
    mask = BaselineMasksd(thresholds=found, channel=1)(image)["baseline_threshold"][0].numpy() > 0
    assert np.array_equal(mask, (image["image"][1] > found.plain).numpy() & (image["image"][2] > 0.5).numpy())


def test_with_smoothing_the_threshold_is_that_of_the_smooth_image():
    """A lesion of 1.6 among brighter grains of one pixel: the sharp image has no level between 1.0 and 1.6."""
    cases = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        volume = np.where(rng.random((24, 24, 6)) < 0.06, 2.4, 1.0).astype(np.float32)
        label = np.zeros(volume.shape, np.uint8)
        label[6:18, 8:20, 1:5] = 1
        volume[label > 0] = 1.6
        image = torch.as_tensor(np.stack([volume, np.ones_like(volume)]))
        cases.append({"case": f"{seed}", "image": MetaTensor(image), "label": MetaTensor(torch.as_tensor(label[None]))})
    grid = (1.1, 1.3, 1.5, 2.0, 2.3)
    assert fit(cases, same, intensities=grid, smooth_mm=2.0, progress=False)[0] == 1.3
    assert fit(cases, same, intensities=grid, progress=False)[0] == 1.1  # as good as 1.3, and first


def vessels(seed: int) -> dict[str, Any]:
    """A broad lesion of 1.5 beside many bright lines, which no threshold tells from it."""
    rng = np.random.default_rng(seed)
    volume = np.ones((24, 24, 12), np.float32)
    for x, y in rng.integers(0, 24, (12, 2)):
        volume[x], volume[:, y] = 1.8, 1.8
    label = np.zeros(volume.shape, np.uint8)
    label[4:14, 6:16, 2:11] = 1
    volume[label > 0] = 1.5
    image = torch.as_tensor(np.stack([volume, np.ones_like(volume)]))
    return {"case": f"{seed}", "image": MetaTensor(image), "label": MetaTensor(torch.as_tensor(label[None]))}


def test_opening_is_fitted_with_its_own_threshold_and_frees_the_lesion_of_lines():
    cases = [vessels(seed) for seed in range(2)]
    options: dict[str, Any] = {"intensities": (1.2, 1.4, 1.6), "progress": False}
    found = fit(cases, same, openings_mm=(1.0, 2.0, 7.0), **options)
    assert found == (*fit(cases, same, **options)[:2], 1.2, 2.0)
    image, truth = cases[0]["image"].numpy(), cases[0]["label"][0].numpy() > 0
    opened = without_thin(image[0], radius_mm=found.opening_mm, spacing=(1, 1, 1)) > found.opened
    assert dice(opened, truth) > 0.95 > 0.6 > dice(image[0] > found.plain, truth)


def test_of_negative_units_nothing_outside_the_organ_is_marked():
    """Outside it a preprocessing leaves 0, which is brighter than lungs in Hounsfield units."""
    volume, organ = np.zeros((14, 14, 8), np.float32), np.zeros((14, 14, 8), np.float32)
    organ[2:12, 2:12, 1:7] = 1
    volume[organ > 0] = -800.0
    volume[5:9, 5:9, 2:6] = -100.0
    data = {"image": MetaTensor(np.stack([volume, organ])), "slice_probability": torch.tensor([[0.0] * 8, [1.0] * 8])}
    found = BaselineMasksd(thresholds=(-500.0, -500.0, -500.0, 1.0))(data)
    for name in ("threshold", "gated", "opened", "opened_gated"):
        np.testing.assert_array_equal(found[f"baseline_{name}"][0].numpy() > 0, volume == -100.0, err_msg=name)


def test_the_largest_part_is_sought_in_the_slices_that_pass_the_gate():
    volume = np.ones((12, 12, 6), np.float32)
    volume[1:6, 1:6, :4] = 2.0  # larger, and in slices that do not pass
    volume[8:10, 8:10, 5] = 2.0
    probability = torch.tensor([[0.9] * 5 + [0.1], [0.1] * 5 + [0.9]])
    data = {"image": MetaTensor(np.stack([volume, np.ones_like(volume)])), "slice_probability": probability}
    found = BaselineMasksd(thresholds=(1.5, 1.5))(data)["baseline_gated"][0].numpy() > 0
    assert found.sum() == found[8:10, 8:10, 5].sum() == 4
