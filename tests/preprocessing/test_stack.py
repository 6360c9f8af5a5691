from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import ndimage as ndi

from common.datasets import phantom_case
from common.preprocessing import LoadCased
from common.preprocessing.stack import doubts_about_slices
from tests.pipeline import affine_of, save

SLICES = 24


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A whole head, `[48, 48, 24]`, 0 to 200, with structure that changes slowly from slice to slice, and noise."""
    rng = np.random.default_rng(4)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, SLICES)), indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 1.3) ** 2 < 1
    structure = ndi.gaussian_filter(rng.normal(size=x.shape), (4, 4, 3))
    image = inside * (120 + 60 * structure / structure.std()).clip(20, 200) + abs(rng.normal(0, 3, x.shape))
    return image.astype(np.float32)


def copied(image: np.ndarray, *slices: int) -> np.ndarray:
    return image[..., list(slices)]


def scaled(image: np.ndarray, where: slice | int, factor: float) -> np.ndarray:
    image = image.copy()
    image[..., where] *= factor
    return image


def replaced(image: np.ndarray, where: slice | int, values: np.ndarray | float) -> np.ndarray:
    image = image.copy()
    image[..., where] = values
    return image


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a[..., ::-1],
        lambda a: a[..., ::2],
        lambda a: -a,
        lambda a: a + 1000,
        lambda a: np.where(a > 190, 30_000, a),  # metal
        lambda a: np.pad(a, ((8, 8), (8, 8), (3, 3))),
        lambda a: scaled(a, 12, 1.2),
        lambda a: a * np.linspace(0.5, 2, SLICES),
        lambda a: replaced(a, slice(0, 3), a[:1, :1, :1]),  # air at an end
        lambda a: np.repeat(a[..., 8:12], 2, axis=2)[..., :7],  # too few
    ],
)
def test_a_stack_of_one_scan_passes(head, change):
    assert doubts_about_slices(change(head)) == []


@pytest.mark.parametrize("seed", range(3))
def test_phantoms_pass(seed):
    assert doubts_about_slices(phantom_case(np.random.default_rng(seed))[0][0]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: np.repeat(a, 2, axis=2), "24 of 48 slices are copies of others"),
        (lambda a: copied(a, *range(SLICES), SLICES - 1), "1 of 25 slices are copies of others"),
        (lambda a: np.concatenate([a, a], axis=2), "24 of 48 slices are copies of others"),
        (lambda a: replaced(a, 11, 0), r"1 empty slice\(s\) between others \(12\)"),
        (
            lambda a: copied(a, *range(0, SLICES, 2), *range(1, SLICES, 2)),
            "slices do not resemble their neighbors most",
        ),
        (lambda a: a[..., np.random.default_rng(0).permutation(SLICES)], "slices do not resemble their neighbors most"),
        (lambda a: np.stack([np.roll(a[..., z], 9 * (z % 2), 0) for z in range(SLICES)], -1), "slices do not resemble"),
        (
            lambda a: replaced(a, slice(9, 12), a.T[9:12].T[::-1, ::-1] * -1),
            r"slice\(s\) 10, 11, 12 resemble none around",
        ),
        (lambda a: np.roll(a, 8, axis=2), "the first and the last slice are alike, those after slice 8 are not"),
        (
            lambda a: scaled(a, slice(0, None, 2), 1.5),
            r"slice\(s\) \d+, \d+, \d+, \d+, … up to 1\.\d times brighter, or darker",
        ),
        (lambda a: scaled(a, 12, 10), r"slice\(s\) 13 up to \d+\.\d times brighter"),
        (lambda a: np.repeat(a[::2], 2, axis=0), r"\d+% of the rows of a slice are those before: enlarged pixels\?"),
        (lambda a: np.repeat(a[:, ::4], 4, axis=1), r"\d+% of the rows of a slice are those before"),
    ],
)
def test_what_is_no_stack_of_one_scan_is_told(head, change, told):
    assert any(re.match(told, text) for text in doubts_about_slices(change(head)))


def test_axial_slices_are_looked_at_whatever_the_order_of_axes(tmp_path, head):
    doubled = np.repeat(head, 2, axis=2)
    for axcodes, values in (("LPS", doubled), ("SLP", doubled.transpose(2, 0, 1))):
        path = save(tmp_path / f"{axcodes}.nii.gz", values, affine_of(axcodes, (2, 2, 2), values.shape))
        said = LoadCased(channels=1)({"image": path})["warnings"]
        assert said.startswith(f"{axcodes}.nii.gz: 24 of 48 slices are copies of others: doubled")
