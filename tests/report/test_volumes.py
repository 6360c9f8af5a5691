from __future__ import annotations

import base64

import nibabel as nib
import numpy as np
import pytest

from common.report.levels import heat_levels, threshold_stops
from common.report.tables import read_run
from common.report.volumes import CaseVolumes, decoded, embedded, encoded, outlined, read_case, read_image, reduction
from tests.pipeline import save
from tests.report.conftest import AFFINE, SHAPE, volumes

STOPS = threshold_stops(0.0, 1.6, 0.4)


@pytest.fixture(scope="module")
def case(run_dir) -> CaseVolumes:
    files = read_run(run_dir).record["files"]["p1"]
    read = read_case(run_dir, "p1", files)
    assert read is not None
    return CaseVolumes(read.affine, read.heat, read.mask, read.truth, read_image(files))


def test_a_case_is_read_as_the_run_left_it(case):
    found = volumes(0)
    assert np.array_equal(case.heat, found["heat"])
    assert np.array_equal(case.mask, found["mask"] > 0)
    assert np.array_equal(case.truth, found["truth"] > 0)
    assert case.ml == pytest.approx(0.006)


def test_a_case_without_files_and_a_scan_that_is_gone_are_none(tmp_path):
    assert read_case(tmp_path, "p1", {}) is None
    assert read_image({"image": str(tmp_path / "gone" / "image.nii.gz")}) is None
    assert read_image({}) is None


def test_truth_on_another_grid_is_refused(run_dir, tmp_path):
    label = save(tmp_path / "label.nii.gz", np.ones((5, 5, 5), np.uint8))
    with pytest.raises(ValueError, match="do not lie on one grid"):
        read_case(run_dir, "p1", {"label": label})


def test_embedded_heat_lies_where_it_was_in_the_world(case):
    levels, affine = decoded(embedded(case, STOPS, most=10**9)["heat"])
    assert levels.size < np.prod(SHAPE)
    hottest = nib.affines.apply_affine(affine, np.argwhere(levels == levels.max())).mean(axis=0)
    assert hottest == pytest.approx(
        nib.affines.apply_affine(AFFINE, np.argwhere(heat_levels(case.heat, STOPS) == levels.max())).mean(axis=0),
        abs=1e-3,
    )


def test_nothing_above_the_lowest_threshold_is_cropped_away(case):
    levels, _ = decoded(embedded(case, STOPS, most=10**9)["heat"])
    for stop in (0, 63, 200):
        assert (levels > stop).sum() == (heat_levels(case.heat, STOPS) > stop).sum()


def test_large_volumes_are_shown_coarser_and_stay_where_they_were(case):
    parts = embedded(case, STOPS, most=1500)
    levels, affine = decoded(parts["heat"])
    assert levels.size <= 1500
    assert parts["coarser"] == 4
    center = nib.affines.apply_affine(affine, np.argwhere(levels > 150)).mean(axis=0)
    full = nib.affines.apply_affine(AFFINE, np.argwhere(heat_levels(case.heat, STOPS) > 150)).mean(axis=0)
    assert np.linalg.norm(center - full) < 2


def test_the_finest_axis_is_reduced_first():
    assert reduction((64, 64, 16), (1.0, 1.0, 5.0), 64 * 64 * 4) == (2, 2, 1)
    assert reduction((10, 10, 10), (1.0, 1.0, 1.0), 1000) == (1, 1, 1)


def test_the_edge_of_a_mask_is_drawn_in_the_plane_of_thick_slices():
    mask = np.zeros((7, 7, 2), bool)
    mask[1:6, 1:6] = True
    edge = outlined(mask, axis=2)
    assert edge.sum() == 2 * 16
    assert not edge[2:5, 2:5].any()


def test_one_looks_first_at_the_slice_with_most_of_the_mask(case):
    z = int(case.mask.sum(axis=(0, 1)).argmax())
    voxel = nib.affines.apply_affine(np.linalg.inv(AFFINE), embedded(case, STOPS, most=10**9)["focus"])
    assert voxel[2] == pytest.approx(z, abs=0.01)
    assert voxel[:2] == pytest.approx(np.argwhere(case.mask[..., z]).mean(axis=0).round(), abs=0.02)


def test_an_array_is_always_encoded_alike():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert base64.b64decode(encoded(array, AFFINE))[4:8] == bytes(4)  # gzip's time
    assert np.array_equal(decoded(encoded(array, AFFINE))[0], array)
