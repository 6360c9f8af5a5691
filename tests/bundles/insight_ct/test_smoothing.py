from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.bundles.conftest import load_script

smoothing = load_script("insight_ct", "smoothing")


def volume(slice_mm: float, depth: int) -> MetaTensor:
    noise = torch.randn(1, 12, 12, depth, generator=torch.Generator().manual_seed(0))
    return MetaTensor(noise, affine=torch.diag(torch.tensor([1.0, 1.0, slice_mm, 1.0])))


def smooth(image: MetaTensor, sigma_mm: float = 2.0) -> MetaTensor:
    return smoothing.SmoothAcrossSlicesd("image", sigma_mm=sigma_mm)({"image": image})["image"]


def test_noise_of_thin_slices_falls_and_thick_slices_stay_as_they_are():
    thin, thick = volume(1.0, 40), volume(6.0, 8)
    expected = 1 / np.sqrt(2 * np.sqrt(np.pi) * 2.0)  # standard deviation left by a Gaussian of two slices
    assert float(smooth(thin).std()) == pytest.approx(expected, rel=0.1)
    torch.testing.assert_close(smooth(thick), thick)


def test_pixels_of_a_slice_are_not_mixed():
    image = volume(1.0, 20)
    other = image.clone()
    other[:, 5] += 100.0
    changed = (smooth(other) - smooth(image)).abs().amax(dim=(0, 2, 3)) > 1e-3
    assert changed.nonzero().flatten().tolist() == [5]


def test_input_is_left_alone_and_zero_changes_nothing():
    image = volume(1.0, 10)
    before = image.clone()
    smooth(image)
    torch.testing.assert_close(image, before)
    torch.testing.assert_close(smooth(image, 0.0), before)


def test_a_negative_width_is_refused():
    with pytest.raises(ValueError, match="sigma_mm must not be negative"):
        smoothing.SmoothAcrossSlicesd("image", sigma_mm=-1.0)
