from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage as ndi

from common.radon import directions, half_diagonal, oblique_slices, plane_basis, plane_offsets, sample_planes

SPACING = (1.0, 1.4, 2.5)


def noise(shape=(2, 11, 9, 7), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth(shape=(2, 30, 26, 20), sigma=3.0):
    return torch.from_numpy(ndi.gaussian_filter(noise(shape).numpy(), (0, sigma, sigma, sigma)))


def scipy_slices(volume, normal, offsets, u, v, *, size, spacing, radius):
    """Eq. 4 written out, interpolated by SciPy: `[N, C, h, w]`."""
    i, j = (np.linspace(-radius, radius, n) for n in size)
    points = (
        np.asarray(offsets)[:, None, None, None] * np.asarray(normal)
        + i[:, None, None] * np.asarray(u)
        + j[:, None] * np.asarray(v)
    )
    index = points / spacing + 0.5 * (np.array(volume.shape[1:]) - 1)
    sampled = [ndi.map_coordinates(c, index.transpose(3, 0, 1, 2), order=1, mode="grid-constant") for c in volume]
    return np.stack(sampled, axis=1)


def test_axial_slices_are_the_volumes_own():
    volume = noise((2, 9, 9, 9))
    slices = oblique_slices(volume, torch.tensor([0.0, 0.0, 1.0]), count=9, size=9, radius=4.0)
    torch.testing.assert_close(slices[1:-1], volume.permute(3, 0, 1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(slices[[0, -1]], torch.zeros(2, 2, 9, 9), atol=1e-5, rtol=0)


def test_slices_equal_scipys_interpolation_in_millimeters():
    volume = noise()
    radius = half_diagonal(volume.shape[1:], SPACING)
    for normal in directions(5):
        slices = oblique_slices(volume, normal, count=6, size=(10, 13), spacing=SPACING)
        u, v = plane_basis(normal)
        expected = scipy_slices(
            volume, normal, plane_offsets(6, radius), u, v, size=(10, 13), spacing=SPACING, radius=radius
        )
        np.testing.assert_allclose(slices.numpy(), expected, atol=2e-5)
        assert slices.any()


def test_given_axes_scale_and_shear_the_slice():
    volume, normal = noise(), directions(9)[4]
    a, b = plane_basis(normal)
    u, v = 0.7 * a + 0.2 * b, 1.3 * b - 0.1 * a
    options = {"size": (8, 9), "spacing": SPACING, "radius": 6.0}
    expected = scipy_slices(volume, normal, plane_offsets(4, 6.0), u, v, **options)
    slices = oblique_slices(volume, normal, count=4, u=u, v=v, **options)
    np.testing.assert_allclose(slices.numpy(), expected, atol=2e-5)
    both = oblique_slices(volume, directions(9)[4:6], count=4, u=torch.stack((u, u)), v=v, **options)
    torch.testing.assert_close(both[0], slices)
    one = sample_planes(volume, normal[None], torch.tensor([1.5]), u=u, **options)
    np.testing.assert_allclose(one.numpy(), scipy_slices(volume, normal, [1.5], u, b, **options), atol=2e-5)


def test_batch_equals_one_by_one_whatever_the_chunk():
    volume, normals = noise(), directions(3)
    batch = oblique_slices(volume, normals, count=5, size=12, spacing=SPACING)
    assert batch.shape == (3, 7, 2, 12, 12)
    for chunk in (1, 4, 100):
        single = [oblique_slices(volume, n, count=5, size=12, spacing=SPACING, chunk=chunk) for n in normals]
        torch.testing.assert_close(torch.stack(single), batch, atol=0, rtol=0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.3, 2.0)])
def test_shared_azimuth_equals_direction_by_direction(spacing):
    volume = smooth()
    normals = torch.cat((directions(64, layout="latitude"), torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3)))
    options = {"count": 12, "size": (24, 31), "spacing": spacing}
    fast = oblique_slices(volume, normals, **options)
    slow = torch.stack([oblique_slices(volume, n, **options) for n in normals])
    inside = ndi.binary_erosion(slow.numpy() > 0.3, np.ones((1, 3, 1, 3, 3)))  # away from the steps at the faces
    assert inside.mean() > 0.03
    assert (fast - slow).abs().numpy()[inside].max() < 0.01
    assert (fast - slow).abs().mean() < 0.004 * slow.max()


def test_runs_of_shared_azimuth_do_use_the_rotated_copy(monkeypatch):
    calls = []
    original = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        "torch.nn.functional.grid_sample", lambda x, *a, **k: calls.append(x.dim()) or original(x, *a, **k)
    )
    oblique_slices(smooth(), directions(36, layout="latitude"), count=4, size=8)
    assert calls == [4] * 6  # one bilinear rotation for each of six meridians
    calls.clear()
    oblique_slices(smooth(), directions(36), count=4, size=8)
    assert set(calls) == {5}


def test_one_slice_volume_fades_to_its_neighbors():
    volume = torch.ones(1, 9, 9, 1)
    slices = oblique_slices(volume, torch.tensor([0.0, 0.0, 1.0]), count=5, size=3, spacing=(1.0, 1.0, 4.0), radius=4.0)
    torch.testing.assert_close(slices[:, 0, 1, 1], torch.tensor([0, 0, 0.5, 1, 0.5, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_low_precision_is_raised_to_float32_and_autocast_is_kept_out(dtype):
    volume = (100 * noise()).to(dtype)
    normals = directions(16, layout="latitude")[:5]
    options = {"count": 5, "size": 9, "spacing": SPACING}
    expected = oblique_slices(volume.double(), normals, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = oblique_slices(volume, normals, **options)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(actual.double(), expected, atol=2e-2, rtol=0)


def test_metatensors_come_back_plain():
    volume = MetaTensor(noise())
    slices = oblique_slices(volume, directions(1)[0], count=3, size=5)
    assert type(slices) is torch.Tensor


def test_errors_say_what_to_do():
    volume, normal = noise(), torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"\[C, D, H, W\] and not empty; got shape \[11, 9, 7\]"):
        oblique_slices(volume[0], normal, count=5, size=4)
    with pytest.raises(ValueError, match="unit length: divide"):
        oblique_slices(volume, 2 * normal, count=5, size=4)
    with pytest.raises(ValueError, match="at least 2 planes; got 1"):
        oblique_slices(volume, normal, count=1, size=4)
    with pytest.raises(ValueError, match=r"positive numbers of pixels; got \(4, 0\)"):
        oblique_slices(volume, normal, count=5, size=(4, 0))
    with pytest.raises(ValueError, match=r"offsets must be \[1\].*got shape \[2\]"):
        sample_planes(volume, normal[None], torch.zeros(2), size=4)
