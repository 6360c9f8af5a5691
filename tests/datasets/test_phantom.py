from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from common.data import make_datalist, slice_labels
from common.datasets import phantom_case, write_phantom

Heads = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def heads() -> Heads:
    """Sixteen heads with a lesion; images relative to the median of the brain, so that gain does not matter."""
    drawn = [phantom_case(np.random.default_rng([1, i])) for i in range(16)]
    return [(image[0] / np.median(image[0][organ]), mask, organ) for image, mask, organ in drawn]


def mean_dice(heads: Heads, threshold: float) -> float:
    scores = []
    for image, mask, organ in heads:
        pred = (image > threshold) & organ
        scores.append(2 * (pred & mask).sum() / (pred.sum() + mask.sum()))
    return float(np.mean(scores))


def test_lesion_lies_in_the_brain_and_is_one_piece_of_some_size(heads):
    for _, mask, organ in heads:
        assert not (mask & ~organ).any()
        assert 0.02 < mask.sum() / organ.sum() < 0.2


def test_lesion_is_half_again_as_bright_as_brain(heads):
    ratios = [np.median(image[mask]) / np.median(image[organ & ~mask]) for image, mask, organ in heads]
    assert 1.35 < np.mean(ratios) < 1.65


def test_positive_heads_have_the_lesion_in_a_quarter_to_three_fifths_of_slices(heads):
    shares = [mask.any(axis=(0, 1)).mean() for _, mask, _ in heads]
    assert min(shares) >= 0.25
    assert max(shares) <= 0.6
    assert 0.35 < np.mean(shares) < 0.55


def test_a_fitted_threshold_finds_something_but_is_no_solution(heads):
    thresholds = np.linspace(0.9, 2.0, 45)
    best = thresholds[np.argmax([mean_dice(heads[:8], t) for t in thresholds])]
    assert 0.1 < mean_dice(heads[8:], best) < 0.65


def test_distractors_are_as_bright_in_slices_without_lesion(heads):
    brightest, positive = [], []
    for image, mask, organ in heads:
        for z in np.flatnonzero(organ.any(axis=(0, 1))):
            brightest.append(image[..., z][organ[..., z]].max())
            positive.append(mask[..., z].any())
    assert roc_auc_score(positive, brightest) < 0.8
    assert np.mean(np.array(brightest)[~np.array(positive)] > 1.5) > 0.8


def test_position_of_a_slice_does_not_decide_it(heads):
    central, positive = [], []
    for _, mask, organ in heads:
        inside = np.flatnonzero(organ.any(axis=(0, 1)))
        central += [-abs(z - inside.mean()) for z in inside]
        positive += [mask[..., z].any() for z in inside]
    assert roc_auc_score(positive, central) < 0.85


def test_end_slices_are_nearly_air(heads):
    for image, _, organ in heads:
        assert not organ[..., [0, -1]].any()
        assert (image[..., 0] > 0.5).mean() < 0.15


def test_gain_differs_between_cases():
    medians = [
        np.median(image[0][organ]) for image, _, organ in (phantom_case(np.random.default_rng(i)) for i in range(8))
    ]
    assert max(medians) / min(medians) > 1.5


def test_images_of_several_modalities_show_one_head():
    image, mask, organ = phantom_case(np.random.default_rng(0), (48, 48, 12), modalities=4)
    assert image.shape == (4, 48, 48, 12)
    assert image.dtype == np.float32
    contrast = [np.median(i[mask]) / np.median(i[organ & ~mask]) for i in image]
    assert contrast[0] > 1.3  # FLAIR
    assert contrast[3] < 0.95  # T1


@pytest.mark.parametrize("bad", [{"shape": (8, 8, 8)}, {"shape": (64, 64)}, {"modalities": 5}])
def test_impossible_heads_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        phantom_case(np.random.default_rng(0), **bad)


SMALL: dict[str, Any] = {"cases": 4, "shape": (32, 32, 8), "healthy_fraction": 0.25}


def test_same_seed_writes_the_same_bytes(tmp_path):
    first = write_phantom(tmp_path / "a", **SMALL, seed=5)
    second = write_phantom(tmp_path / "b", **SMALL, seed=5)
    other = write_phantom(tmp_path / "c", **SMALL, seed=6)
    for a, b, c in zip(first, second, other, strict=True):
        assert Path(a["image"]).read_bytes() == Path(b["image"]).read_bytes() != Path(c["image"]).read_bytes()
        assert Path(a["label"]).read_bytes() == Path(b["label"]).read_bytes()


def test_files_turn_with_their_affine(tmp_path):
    codes = ["LPS", "RAS", "PIR", "SAL"]
    plain = write_phantom(tmp_path / "plain", **SMALL)
    turned = write_phantom(tmp_path / "turned", **SMALL, axcodes=codes)
    for a, b, code in zip(plain, turned, codes, strict=True):
        assert "".join(nib.aff2axcodes(nib.Nifti1Image.from_filename(b["image"]).affine)) == code
        for key in ("image", "label"):
            first, second = (nib.as_closest_canonical(nib.Nifti1Image.from_filename(case[key])) for case in (a, b))
            np.testing.assert_array_equal(first.get_fdata(), second.get_fdata())
            np.testing.assert_allclose(first.affine, second.affine)
        assert a["cls"] == b["cls"] == slice_labels(b["label"], b["image"])


def test_spacing_and_types_are_those_promised(tmp_path):
    case = write_phantom(tmp_path, cases=1, shape=(32, 40, 8), spacing=(2, 3, 4), modalities=2)[0]
    image, mask = nib.Nifti1Image.from_filename(case["image"][1]), nib.Nifti1Image.from_filename(case["label"])
    assert Path(case["image"][1]).name == "t1ce.nii.gz"
    assert image.header.get_zooms() == (2, 3, 4)
    assert (image.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.int16)
    assert image.shape == mask.shape == (32, 40, 8)


def test_healthy_fraction_is_kept_and_a_datalist_can_be_made(tmp_path):
    cases = write_phantom(tmp_path, cases=8, shape=(32, 32, 8), healthy_fraction=0.25)
    assert sum(not any(case["cls"]) for case in cases) == 2
    made = make_datalist(
        cases, name="phantom", classes=["none", "lesion"], modalities=["flair"], dataset_dir=tmp_path, seed=1
    )
    assert made["training"][0]["image"] == f"{made['training'][0]['case']}/flair.nii.gz"


@pytest.mark.parametrize("axcodes", ["LPX", "LRS", "LP", ["LPS", "QQQ"]])
def test_axcodes_that_name_no_orientation_are_refused(tmp_path, axcodes):
    with pytest.raises(ValueError, match="names no orientation"):
        write_phantom(tmp_path, axcodes=axcodes)
    assert not list(tmp_path.iterdir())
