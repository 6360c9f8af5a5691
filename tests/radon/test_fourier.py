from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from common.radon import directions, half_diagonal, plane_offsets, reconstruct
from common.radon.fourier import _gridded, _radial_spectrum

BACKENDS = ["torch", "finufft"]
GEOMETRIES = [
    {"shape": (32, 32, 32), "spacing": 1.0},
    {"shape": (31, 40, 12), "spacing": (1.0, 0.8, 3.0)},
    {"shape": (24, 1, 33), "spacing": (1.0, 2.0, 1.0), "least": 0.995},
    {"shape": (24, 25, 26), "spacing": 1.0, "radius": 40.0},
    {"shape": (24, 25, 26), "spacing": 1.0, "radius": 12.5, "least": 0.997},  # the inscribed ball, as in the paper
    {"shape": (6, 7, 8), "spacing": 5.0},  # voxels much coarser than the planes
]


def need(backend):
    if backend == "finufft":
        pytest.importorskip("finufft", reason="the extra [radon] is not installed")


def blob_profiles(normals, count, radius, sigma):
    """Profiles of a few random Gaussians, and some noise, as a network's logits have."""
    generator = torch.Generator().manual_seed(0)
    offsets = plane_offsets(count, radius)
    profiles = torch.zeros(len(normals), count + 2)
    for center in (torch.rand(5, 3, generator=generator) - 0.5) * radius:
        profiles += torch.exp(-((offsets - (normals @ center)[:, None]) ** 2) / (2 * sigma**2))
    return profiles + 0.1 * torch.randn(profiles.shape, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_agrees_with_the_direct_sum(geometry, backend):
    need(backend)
    geometry, normals = dict(geometry), directions(150)
    least = geometry.pop("least", 0.998)  # planes finer than the voxels leave more to the noise
    radius = geometry.get("radius", half_diagonal(geometry["shape"], geometry["spacing"]))
    profiles = blob_profiles(normals, 40, radius, sigma=0.08 * radius)
    direct = reconstruct(profiles, normals, method="direct", **geometry)
    fourier = reconstruct(profiles, normals, backend=backend, **geometry)
    assert torch.corrcoef(torch.stack((direct.flatten(), fourier.flatten())))[0, 1] > least
    assert (direct * fourier).sum().item() == pytest.approx(direct.square().sum().item(), rel=0.01)


@pytest.mark.parametrize("shape", [(12, 9, 8), (1, 7, 10)])
def test_gridding_equals_the_sum_of_exponentials(shape):
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(60, 3, generator=generator, dtype=torch.float64) - 0.5
    points[:, 2].abs_()
    values = torch.randn(60, generator=generator, dtype=torch.complex128)
    index = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), axis=-1)
    expected = (values.numpy() * np.exp(2j * math.pi * index @ points.numpy().T)).sum(axis=-1).real
    actual = _gridded(values, points, shape).numpy()
    assert np.abs(actual - expected).max() < 5e-3 * np.abs(expected).max()


def test_spectrum_on_its_line_is_the_interpolated_profile():
    count, radius = 25, 10.0
    offsets = plane_offsets(count, radius)
    profile = torch.exp(-((offsets - 2.2) ** 2) / 18)
    profile = profile[1:-1].double()
    values, points = _radial_spectrum(
        profile[None], torch.tensor([[0.0, 0.0, 1.0]]).double(), (1, 1, 64), radius=radius, spacing=(1.0, 1.0, 0.25)
    )
    place = np.arange(64) - 32
    actual = (values.numpy() * np.exp(2j * math.pi * place[:, None] * points[:, 2].numpy())).sum(axis=1).real
    expected = np.interp((np.arange(64) - 31.5) * 0.25, offsets[1:-1].numpy(), profile.numpy())
    np.testing.assert_allclose(actual, expected, atol=0.01)


def test_backends_agree_and_auto_takes_finufft():
    need("finufft")
    normals, shape = directions(300), (30, 31, 20)
    profiles = blob_profiles(normals, 50, half_diagonal(shape), 2.0)
    gridded, exact, auto = (reconstruct(profiles, normals, shape, backend=b) for b in ("torch", "finufft", "auto"))
    assert (gridded - exact).abs().max() < 2e-3 * exact.abs().max()
    torch.testing.assert_close(auto, exact, atol=1e-6 * exact.abs().max().item(), rtol=0)
    assert (gridded - exact).abs().max() > 1e-6 * exact.abs().max()  # so the line above tells them apart


@pytest.mark.parametrize("place", [1, 40])
def test_nothing_wraps_round_from_the_far_side(place):
    profiles = torch.zeros(1, 42)
    profiles[0, place] = 1.0  # on the first or last plane within R
    normal = torch.tensor([[0.0, 1.0, 0.0]])
    direct, fourier = (reconstruct(profiles, normal, (1, 46, 1), method=m, radius=20.0) for m in ("direct", "fourier"))
    far = direct.abs() == 0
    assert far.sum() > 35
    assert fourier[far].abs().max() < 0.15 * direct.abs().max()  # the band's end rings beside the bump
    assert fourier.flatten()[18:28].abs().max() < 0.01 * direct.abs().max()
    opposite = fourier.flatten()[:6] if place == 40 else fourier.flatten()[-6:]
    assert opposite.abs().max() < 0.05 * direct.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivative_along_a_smooth_change_is_that_of_the_direct_sum(backend):
    need(backend)
    normals = directions(100)
    radius = half_diagonal((12, 13, 14))
    profiles, change = torch.zeros(100, 22), blob_profiles(normals, 20, radius, 3.0)
    derivatives = []
    for options in ({"method": "direct"}, {"backend": backend}):
        leaf = profiles.clone().requires_grad_()
        (reconstruct(leaf, normals, (12, 13, 14), **options) - 1).square().sum().backward()
        assert leaf.grad is not None
        derivatives.append((leaf.grad * change).sum().item())
    assert derivatives[1] == pytest.approx(derivatives[0], rel=0.01)


def test_finufft_gradient_in_double_precision():
    need("finufft")
    profiles = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    normals = directions(4).double()
    assert torch.autograd.gradcheck(
        lambda p: reconstruct(p, normals, (4, 3, 5), backend="finufft"), profiles, atol=1e-6
    )


def test_missing_or_unknown_backend_says_what_to_do(monkeypatch):
    profiles, normals = torch.zeros(5, 8), directions(5)
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r"pip install weakseg-bundles\[radon\]"):
        reconstruct(profiles, normals, (4, 4, 4), backend="finufft")
    volume = reconstruct(blob_profiles(normals, 6, 3.0, 1.0), normals, (4, 4, 4))
    torch.testing.assert_close(
        volume, reconstruct(blob_profiles(normals, 6, 3.0, 1.0), normals, (4, 4, 4), backend="torch"), atol=0, rtol=0
    )
    with pytest.raises(ValueError, match=r"unknown backend 'fftw'; choose one of \('auto', 'finufft', 'torch'\)"):
        reconstruct(profiles, normals, (4, 4, 4), backend="fftw")
