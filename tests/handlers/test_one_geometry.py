"""Scans whose headers have misled other programs, from file to scores: all that is written must agree."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest

from common.handlers import CaseScores, CaseWriter, VolumeScores
from common.metrics import dice
from tests.pipeline import affine_of, evaluator, save, world

SHAPE = (24, 20, 10)
AFFINE = affine_of("LPS", (2, 2, 4), SHAPE)
BALL = np.linalg.norm(world(AFFINE, SHAPE) - [8.0, -10.0, 12.0], axis=-1) < 9.0
SCAN = np.where(BALL, 3.0, 1.0).astype(np.float32) + np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(np.float32)


def turned(array: np.ndarray, axcodes: str) -> nib.Nifti1Image:
    """The same voxels in the same places, stored with axes in another order."""
    image = nib.Nifti1Image(array, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axcodes))
    return image.as_reoriented(turn)


def evaluate(folder: Path, case: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Run a case; the first row of each table."""
    tables = {"predictions": CaseWriter(folder, classes=["none", "tumor"])}
    if "label" in case:
        tables |= {"metrics": CaseScores(folder, resamples=10), "volumes": VolumeScores(folder)}
    spacing = [-1.0, -1.0, -1.0]
    evaluator([{"case": "a", "patient": "a", **case}], list(tables.values()), spacing=spacing).run()
    rows = {}
    for name in tables:
        with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
            rows[name] = next(csv.DictReader(file))
    return rows


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "SPL"])
def test_all_tables_score_a_mask_alike_in_whatever_order_its_axes_are_stored(tmp_path, axcodes):
    nib.save(turned(BALL.astype(np.uint8), axcodes), tmp_path / "mask.nii.gz")
    case = {"image": save(tmp_path / "scan.nii.gz", SCAN, AFFINE), "label": str(tmp_path / "mask.nii.gz")}
    rows = evaluate(tmp_path / "out", case)
    written = np.asanyarray(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj) > 0
    right = dice(written, BALL)
    assert right > 0.85
    assert float(rows["metrics"]["dice"]) == pytest.approx(right, abs=1e-4)
    assert float(rows["volumes"]["dice"]) == pytest.approx(right, abs=1e-4)
    assert float(rows["predictions"]["volume_ml"]) == pytest.approx(written.sum() * 0.016, abs=1e-3)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([2.0, 2.0, 4.0, 1.0])])
@pytest.mark.parametrize("key", ["label", "organ"])
def test_a_mask_that_lies_elsewhere_fails_its_case_with_both_affines(tmp_path, key, affine):
    case = {"image": save(tmp_path / "scan.nii.gz", SCAN, AFFINE)}
    case[key] = save(tmp_path / "mask.nii.gz", BALL.astype(np.uint8), affine)
    with pytest.raises(RuntimeError, match=r"mask.nii.gz and .*scan.nii.gz do not lie on one grid: .*Affines: \[\["):
        evaluate(tmp_path / "out", case)
    assert not (tmp_path / "out" / "a_seg.nii.gz").exists()


def test_an_organ_mask_of_another_axis_order_restricts_the_same_voxels(tmp_path):
    image = save(tmp_path / "scan.nii.gz", SCAN, AFFINE)
    organ = np.zeros(SHAPE, np.uint8)
    organ[:12] = 1
    volumes = []
    for axcodes in ("LPS", "SAR"):
        nib.save(turned(organ, axcodes), tmp_path / "organ.nii.gz")
        rows = evaluate(tmp_path / axcodes, {"image": image, "organ": str(tmp_path / "organ.nii.gz")})
        volumes.append(float(rows["predictions"]["volume_ml"]))
    assert volumes[0] == volumes[1] > 0


def itk_place(path: Path) -> list[np.ndarray]:
    image = itk.imread(str(path), itk.F)
    return [np.asarray(image.GetOrigin()), np.asarray(image.GetSpacing()), itk.array_from_matrix(image.GetDirection())]


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=lambda codes: f"q{codes[0]}s{codes[1]}")
def test_image_mask_and_heatmap_coincide_in_nibabel_and_itk_whatever_forms_the_image_has(tmp_path, codes):
    image = nib.Nifti1Image(SCAN, AFFINE)
    image.set_qform(AFFINE + 20.0 * np.eye(4, 4, 3), codes[0])
    image.set_sform(AFFINE, codes[1])
    nib.save(image, tmp_path / "scan.nii.gz")
    rows = evaluate(tmp_path / "out", {"image": str(tmp_path / "scan.nii.gz")})
    for kind in ("seg", "heatmap"):
        written = tmp_path / "out" / f"a_{kind}.nii.gz"
        np.testing.assert_array_equal(nib.load(written).affine, nib.load(tmp_path / "scan.nii.gz").affine)
        for one, other in zip(itk_place(written), itk_place(tmp_path / "scan.nii.gz"), strict=True):
            np.testing.assert_array_equal(one, other)
    assert dice(np.asanyarray(nib.load(tmp_path / "out" / "a_seg.nii.gz").dataobj) > 0, BALL) > 0.85
    assert float(rows["predictions"]["volume_ml"]) == pytest.approx(BALL.sum() * 0.016, rel=0.2)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 0.001), ("micron", 1000.0)])
def test_units_of_the_header_are_honored(tmp_path, unit, factor):
    affine = AFFINE.copy()
    affine[:3] *= factor
    image = nib.Nifti1Image(SCAN, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii.gz")
    rows = evaluate(tmp_path / unit, {"image": str(tmp_path / "scan.nii.gz")})
    plain = evaluate(tmp_path / "mm", {"image": save(tmp_path / "plain.nii.gz", SCAN, AFFINE)})
    assert float(rows["predictions"]["volume_ml"]) == float(plain["predictions"]["volume_ml"]) > 0


def test_a_header_that_cannot_be_true_fails_its_case_at_once(tmp_path):
    for spacing in ((0.0005, 2, 4), (2, 2, 500)):
        path = save(tmp_path / "scan.nii.gz", SCAN, affine_of("LPS", spacing, SHAPE))
        with pytest.raises(RuntimeError, match=r"scan.nii.gz: an impossible spacing"):
            evaluate(tmp_path / "out", {"image": path})
