from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data import slice_labels, true_masks
from common.images import meta_tensor, read_volume
from tests.images.dicom_series import datasets, save, stack


def without_positions(folder: Path, values: np.ndarray) -> Path:
    """A series whose InstanceNumber goes down from slice to slice."""
    slices = datasets(values)
    for number, one in enumerate(slices):
        del one.ImagePositionPatient, one.ImageOrientationPatient
        one.InstanceNumber = len(slices) - number
    return save(folder, slices)


@pytest.fixture
def case(tmp_path) -> dict:
    mask = np.zeros_like(stack())
    mask[1, 2, 0] = mask[1, 1, 1] = 1
    image, label = without_positions(tmp_path / "ct", stack()), without_positions(tmp_path / "mask", mask)
    return {"case": "a", "image": str(image), "label": str(label), "cls": [0, 0, 1, 1]}


def test_series_without_positions_have_labels_of_their_slices(case):
    assert slice_labels(case["label"], case["image"]) == case["cls"]


def test_true_masks_lie_on_an_image_that_was_taken_as_axial(case):
    image = meta_tensor(read_volume(case["image"], dicom_geometry="assume_axial"))
    found = true_masks(case, image)["pseudo"][0]
    assert found.nonzero().tolist() == [[1, 1, 2], [2, 1, 3]]
