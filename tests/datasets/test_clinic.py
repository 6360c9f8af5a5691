from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from common.datasets import clinic_case, write_phantom
from common.datasets.clinic import SCANNERS
from common.masks import without_thin
from common.metrics import dice

SPACING = (3.0, 3.0, 5.0)


class Drawn:
    """A head relative to the median of its brain, and without what is thin."""

    def __init__(self, number: int, *, lesion: bool) -> None:
        self.scanner = number % 2
        image, self.mask, self.organ = clinic_case(
            np.random.default_rng([3, number]), lesion=lesion, scanner=self.scanner
        )
        self.image = image[0] / np.median(image[0][self.organ])
        self.broad = without_thin(self.image, radius_mm=3.0, spacing=SPACING)
        self.others = (self.broad > 1.15) & self.organ & ~ndimage.binary_dilation(self.mask, iterations=2)


@pytest.fixture(scope="module")
def ill() -> list[Drawn]:
    return [Drawn(number, lesion=True) for number in range(14)]


@pytest.fixture(scope="module")
def healthy() -> list[Drawn]:
    return [Drawn(number, lesion=False) for number in range(14, 28)]


def roughness(head: Drawn, where: np.ndarray) -> float:
    """Standard deviation of the brightness around the mean of each voxel's neighbors."""
    return float((head.image - ndimage.uniform_filter(head.image, (3, 3, 1)))[where].std())


def test_the_lesion_lies_in_the_brain_and_is_one_piece_of_some_size(ill):
    for head in ill:
        assert not (head.mask & ~head.organ).any()
        assert 0.01 < head.mask.sum() / head.organ.sum() < 0.15
        assert ndimage.label(head.mask)[1] == 1


def test_bodies_as_bright_are_in_every_head(ill, healthy):
    assert all(head.others.sum() > 30 for head in ill + healthy)
    assert not any(head.mask.any() for head in healthy)


def test_what_is_bright_and_compact_does_not_tell_the_ill_from_the_healthy(ill, healthy):
    sizes = [((head.broad > 1.15) & head.organ).sum() for head in ill + healthy]
    brightest = [np.quantile(head.broad[head.organ], 0.98) for head in ill + healthy]
    truth = [head.mask.any() for head in ill + healthy]
    assert roc_auc_score(truth, sizes) < 0.75
    assert roc_auc_score(truth, brightest) < 0.75


@pytest.mark.parametrize("image", ["image", "broad"])
def test_no_threshold_finds_the_lesion_though_it_is_fitted_on_these_very_heads(ill, image):
    scores = [
        np.mean([dice((getattr(head, image) > level) & head.organ, head.mask) for head in ill])
        for level in np.arange(0.7, 2.5, 0.1)
    ]
    assert max(scores) < 0.5


def test_texture_tells_the_lesion_from_the_others(ill):
    inside = [ndimage.binary_erosion(head.mask, np.ones((3, 3, 1))) for head in ill]
    rough = [roughness(head, where) for head, where in zip(ill, inside, strict=True)]
    smooth = [roughness(head, ndimage.binary_erosion(head.others, np.ones((3, 3, 1)))) for head in ill]
    assert (np.array(rough) > 1.2 * np.array(smooth)).all()


def test_a_part_of_the_lesion_is_as_dark_as_brain(ill):
    shares = [(ndimage.gaussian_filter(head.image, (1, 1, 0))[head.mask] < 1.15).mean() for head in ill]
    assert 0.1 < np.mean(shares) < 0.4
    _, mask, _ = clinic_case(np.random.default_rng(0), isointense=0.0)
    image, _, _ = clinic_case(np.random.default_rng(0), isointense=0.6)
    whole, _, _ = clinic_case(np.random.default_rng(0), isointense=0.0)
    assert image[0][mask].mean() < whole[0][mask].mean()


def test_scanners_differ_in_contrast(ill):
    contrasts = [np.mean([head.image[head.mask].mean() for head in ill if head.scanner == n]) for n in (0, 1)]
    assert contrasts[0] > contrasts[1] + 0.05


def test_the_files_take_the_scanners_in_turn_and_the_plain_phantom_is_the_default(tmp_path):
    shape = (32, 32, 8)
    clinic, plain, usual = (
        write_phantom(tmp_path / name, cases=3, shape=shape, **options)
        for name, options in (("clinic", {"kind": "clinic"}), ("plain", {"kind": "plain"}), ("usual", {}))
    )
    for number, case in enumerate(clinic):
        expected, _, _ = clinic_case(np.random.default_rng([0, number]), shape, scanner=number % len(SCANNERS))
        np.testing.assert_array_equal(nib.Nifti1Image.from_filename(case["image"]).get_fdata(), expected[0])
    assert Path(plain[0]["image"]).read_bytes() == Path(usual[0]["image"]).read_bytes()
    assert Path(plain[0]["image"]).read_bytes() != Path(clinic[0]["image"]).read_bytes()


def test_images_of_several_modalities_show_one_head():
    image, mask, organ = clinic_case(np.random.default_rng(0), (48, 48, 12), modalities=2)
    assert image.shape == (2, 48, 48, 12)
    assert image.dtype == np.float32
    assert mask.shape == organ.shape == (48, 48, 12)


@pytest.mark.parametrize("bad", [{"shape": (8, 8, 8)}, {"modalities": 5}, {"scanner": 2}])
def test_impossible_heads_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        clinic_case(np.random.default_rng(0), **bad)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of plain, clinic; got 'clinics'"):
        write_phantom(tmp_path, kind="clinics")
    assert not list(tmp_path.iterdir())
