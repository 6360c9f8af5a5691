from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.datasets import write_phantom
from common.handlers import TRUTH_COLOR, CaseWriter
from common.metrics import dice
from tests.pipeline import affine_of, evaluator, save, world

CLASSES = ["none", "tumor"]
CENTER = np.array([12.0, -20.0, 16.0])

GRIDS: dict[str, tuple[str, tuple[float, float, float], tuple[int, int, int], float]] = {
    "LPS": ("LPS", (2.0, 2.0, 4.0), (40, 44, 20), 0.0),
    "RAS": ("RAS", (2.0, 2.0, 4.0), (40, 44, 20), 0.0),
    "sagittal slices": ("PIR", (2.0, 2.0, 3.0), (40, 40, 28), 0.0),
    "anisotropic": ("RPS", (1.1, 2.3, 5.0), (64, 40, 16), 0.0),
    "oblique": ("LPS", (2.0, 2.0, 3.0), (42, 42, 24), 17.0),
    "oblique, permuted, anisotropic": ("ASL", (1.7, 2.6, 2.2), (44, 32, 36), 24.0),
}


def run(tmp_path: Path, cases: list[dict[str, Any]], writer: CaseWriter | None = None, **overrides: Any) -> Path:
    evaluator(cases, [writer or CaseWriter(tmp_path / "out", classes=CLASSES)], **overrides).run()
    return tmp_path / "out"


def load(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    image = nib.Nifti1Image.from_filename(path)
    return np.asanyarray(image.dataobj), image


@pytest.fixture(params=GRIDS, scope="module")
def planted(request, tmp_path_factory) -> tuple[np.ndarray, nib.Nifti1Image, Path]:
    """A ball of 9 mm radius at `CENTER` in a file on one of the grids, its truth, and the run's output."""
    axcodes, spacing, shape, degrees = GRIDS[request.param]
    folder = tmp_path_factory.mktemp("planted")
    affine = affine_of(axcodes, spacing, shape, degrees)
    ball = np.linalg.norm(world(affine, shape) - CENTER, axis=-1) < 9.0
    assert ball.sum() > 100
    noise = np.random.default_rng(0).normal(0, 0.02, shape)
    path = save(folder / "scan.nii.gz", (np.where(ball, 3.0, 1.0) + noise).astype(np.float32), affine)
    out = run(folder, [{"case": "scan", "image": path}])
    return ball, nib.Nifti1Image.from_filename(path), out


class TestBackOnTheScansGrid:
    @pytest.mark.parametrize("kind", ["seg", "heatmap"])
    def test_files_have_exactly_the_scans_affine_and_shape(self, planted, kind):
        _, scan, out = planted
        _, image = load(out / f"scan_{kind}.nii.gz")
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert image.shape == scan.shape
        assert image.header.get_xyzt_units() == scan.header.get_xyzt_units()

    def test_mask_lies_where_the_ball_was_planted(self, planted):
        ball, scan, out = planted
        seg, image = load(out / "scan_seg.nii.gz")
        assert seg.dtype == np.uint8
        assert dice(seg > 0, ball) > 0.85
        center = world(image.affine, seg.shape)[seg > 0].mean(axis=0)
        assert np.linalg.norm(center - CENTER) < min(scan.header.get_zooms())

    def test_heatmap_is_hottest_where_the_ball_was_planted(self, planted):
        ball, scan, out = planted
        heat, image = load(out / "scan_heatmap.nii.gz")
        assert heat.dtype == np.float32
        weight = np.maximum(heat, 0)
        center = (world(image.affine, heat.shape) * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
        assert np.linalg.norm(center - CENTER) < min(scan.header.get_zooms())
        assert np.median(heat[ball]) == pytest.approx(8.0, abs=0.5)  # 8 (3 - 2), raw and in the map's own units

    def test_volume_in_milliliters_is_that_of_the_written_mask_and_near_the_balls(self, planted):
        _, scan, out = planted
        seg, _ = load(out / "scan_seg.nii.gz")
        with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
            (row,) = csv.DictReader(file)
        volume = float(row["volume_ml"])
        assert volume == pytest.approx((seg > 0).sum() * np.prod(scan.header.get_zooms()) / 1000, abs=1e-3)
        assert volume == pytest.approx(4 / 3 * np.pi * 0.9**3, rel=0.25)


def test_the_way_a_file_is_turned_does_not_change_what_is_found(tmp_path):
    codes = ["LPS", "RAS", "PIR", "SAL"]
    found = []
    for code in codes:
        (case,) = write_phantom(tmp_path / code, cases=1, shape=(48, 48, 12), axcodes=code, seed=4, healthy_fraction=0)
        refine = {"dilate_mm": 9.0, "intensity": 1.25}
        out = run(tmp_path / code, [case], organ="brain", refine=refine, level=1.3, spacing=[-1.0, -1.0, -1.0])
        canonical = [
            nib.as_closest_canonical(load(out / f"phantom_000_{kind}.nii.gz")[1]) for kind in ("seg", "heatmap")
        ]
        found.append([np.asanyarray(image.dataobj) for image in canonical])
        truth = nib.as_closest_canonical(nib.Nifti1Image.from_filename(case["label"])).get_fdata() > 0
    assert dice(found[0][0], truth) > 0.3
    for seg, heat in found[1:]:
        np.testing.assert_array_equal(seg, found[0][0])
        np.testing.assert_allclose(heat, found[0][1], atol=1e-3)


def test_predictions_have_one_row_a_case_with_probabilities_threshold_volume_and_seconds(tmp_path):
    image = np.ones((20, 20, 4), np.float32)
    image[0, 0, 0] = 1.1
    bright = image.copy()
    bright[5:15, 5:15, 1:3] = 4.0
    cases = [
        {"case": name, "image": save(tmp_path / f"{name}.nii.gz", volume)}
        for name, volume in (("dark", image), ("bright", bright))
    ]
    out = run(tmp_path, cases, threshold=0.25, spacing=[-1.0, -1.0, -1.0])
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ["probability_none", "probability_tumor", "gate", "threshold", "volume_ml", "seconds"]
    assert list(rows[0]) == ["case", *numbers, "warnings"]
    assert [row["case"] for row in rows] == ["dark", "bright"]
    # The medians are 1 and the brightest voxels 1.1 and 4, so that the logits are 8 (1.1 - 2) and 8 (4 - 2).
    assert float(rows[0]["probability_tumor"]) == pytest.approx(1 / (1 + np.exp(7.2)), abs=1e-4)
    assert float(rows[1]["probability_none"]) == pytest.approx(0.0, abs=1e-4)
    assert [float(row["threshold"]) for row in rows] == [0.25, 0.25]
    assert [float(row["volume_ml"]) for row in rows] == [0.0, 0.2]
    assert 0 < float(rows[0]["seconds"]) + 0.01 < 60


def test_what_is_doubtful_about_a_case_is_said_once_in_the_console_and_in_its_row(tmp_path, caplog):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    paths = {"good": save(tmp_path / "good.nii.gz", image, affine_of("LPS", (2, 2, 4), image.shape))}
    paths["doubtful"] = save(tmp_path / "doubtful.nii.gz", image, np.eye(4))
    writer = CaseWriter(tmp_path / "out", classes=CLASSES, save_montage=False)
    out = run(tmp_path, [{"case": case, "image": path} for case, path in paths.items()], writer)
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        told = {row["case"]: row["warnings"] for row in csv.DictReader(file)}
    assert told["good"] == ""
    assert told["doubtful"].startswith("doubtful.nii.gz: the affine is the identity")
    assert [record.getMessage() for record in caplog.records] == [f"case doubtful: {told['doubtful']}"]


def test_montage_is_an_rgb_picture(tmp_path):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    out = run(tmp_path, [{"case": "a", "image": save(tmp_path / "a.nii.gz", image)}])
    with Image.open(out / "a_montage.png") as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) > 100


def test_what_is_not_wanted_is_not_written(tmp_path):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    writer = CaseWriter(tmp_path / "out", classes=CLASSES, save_heatmap=False, save_montage=False)
    out = run(tmp_path, [{"case": "a", "image": save(tmp_path / "a.nii.gz", image)}], writer)
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a_seg.nii.gz", "predictions.csv"]


def test_files_get_their_name_only_when_complete(tmp_path, monkeypatch):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    case = {"case": "a", "image": save(tmp_path / "a.nii.gz", image)}
    seen, whole = [], nib.save

    def watch(image: Any, path: Path) -> None:
        whole(image, path)
        seen.append((Path(path).name, [p.name for p in (tmp_path / "out").glob("a_*")]))

    monkeypatch.setattr("common.images.writing.nib.save", watch)
    out = run(tmp_path, [case])
    assert len(seen) == 2
    assert all(name.startswith(".") and not finished for name, finished in seen)
    assert sorted(p.name for p in out.glob("[!.]*")) == [
        "a_heatmap.nii.gz", "a_montage.png", "a_seg.nii.gz", "predictions.csv",
    ]  # fmt: skip


def test_the_truth_of_another_axis_order_is_outlined_where_it_lies(tmp_path):
    image = np.random.default_rng(0).random((20, 20, 4)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:6, 12:15, 1:3] = 1
    pictures = []
    for axcodes in ("RAS", "SLP"):
        turn = nib.orientations.axcodes2ornt(axcodes)
        stored = nib.Nifti1Image(label, np.eye(4)).as_reoriented(turn)
        case = {"case": "a", "image": save(tmp_path / "a.nii.gz", image)}
        case["label"] = save(tmp_path / "l.nii.gz", np.asanyarray(stored.dataobj), stored.affine)
        with Image.open(run(tmp_path, [case]) / "a_montage.png") as picture:
            pictures.append(np.asarray(picture))
    assert (pictures[0] == TRUTH_COLOR).all(axis=-1).any()
    np.testing.assert_array_equal(*pictures)
