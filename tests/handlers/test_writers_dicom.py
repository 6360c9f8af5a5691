from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.handlers import CaseWriter
from common.images import write_dicom
from tests.pipeline import evaluator, save

hd = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
import pydicom  # noqa: E402

from tests.images.placed_series import PIXELS, SHAPE, in_the_world, series  # noqa: E402

CLASSES = ["none", "tumor"]
CODES = {"anatomy": ["12738006", "SCT", "Brain"], "findings": {"tumor": ["108369006", "SCT", "Neoplasm"]}}


@pytest.fixture
def dicom(tmp_path) -> dict[str, Any]:
    """The writer's argument, for a bundle that is nothing but its metadata."""
    configs = tmp_path / "some_bundle" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps({"version": "1.2.3"}))
    return {"bundle_root": str(configs.parent), **CODES}


@pytest.fixture
def bright() -> np.ndarray:
    """`[columns, rows, slices]`: where the scan is bright."""
    where = np.zeros(SHAPE, bool)
    where[4:6, 1:5, 2:4] = True
    return where


def scan(folder: Path, bright: np.ndarray, **changed: Any) -> dict[str, Any]:
    folder.mkdir(parents=True)
    for number, file in enumerate(series(folder, "sagittal", **PIXELS)):
        one = pydicom.dcmread(file)
        one.PixelData = np.where(bright[:, :, number].T, 400, 100).astype(np.int16).tobytes()
        for name, value in changed.items():
            setattr(one, name, value)
        one.save_as(file)
    return {"case": folder.name, "image": str(folder)}


def run(out: Path, cases: list[dict[str, Any]], **options: Any) -> Path:
    evaluator(cases, [CaseWriter(out, classes=CLASSES, **options)], spacing=[-1.0, -1.0, -1.0]).run()
    return out


def by_place(path: Path) -> dict[tuple[float, ...], float]:
    """Values of a NIfTI file by position, in millimeters of LPS+."""
    image: Any = nib.load(path)
    indices = np.indices(image.shape).reshape(3, -1).T
    positions = (nib.affines.apply_affine(image.affine, indices) * [-1, -1, 1]).round(3) + 0.0
    return dict(zip(map(tuple, positions), np.asanyarray(image.dataobj).ravel().tolist(), strict=True))


def test_results_of_a_series_are_the_same_in_dicom_and_nifti(tmp_path, dicom, bright):
    out = run(tmp_path / "out", [scan(tmp_path / "a", bright)], dicom=dicom)
    kinds = ("seg.nii.gz", "seg.dcm", "heatmap.nii.gz", "heatmap.dcm", "montage.png")
    assert {path.name for path in out.glob("a_*")} == {f"a_{kind}" for kind in kinds}
    mask = hd.seg.segread(out / "a_seg.dcm")
    assert in_the_world(mask.get_volume(combine_segments=True)) == by_place(out / "a_seg.nii.gz")
    assert mask.get_volume(combine_segments=True).array.sum() == bright.sum()
    heatmap = hd.imread(out / "a_heatmap.dcm").get_volume(dtype=np.float32)
    assert in_the_world(heatmap) == by_place(out / "a_heatmap.nii.gz")


def test_names_and_codes_are_those_of_the_config_and_its_bundle(tmp_path, dicom, bright):
    out = run(tmp_path / "out", [scan(tmp_path / "a", bright)], dicom=dicom, save_heatmap=False)
    assert not list(out.glob("a_heatmap.*"))
    (segment,) = pydicom.dcmread(out / "a_seg.dcm").SegmentSequence
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (segment.SegmentLabel, segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) == ("tumor", "Neoplasm")
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("some_bundle", "1.2.3")


def test_nifti_scans_and_a_writer_without_codes_give_no_dicom(tmp_path, dicom, bright):
    nifti = {"case": "b", "image": save(tmp_path / "b.nii.gz", np.where(bright, 4.0, 1.0).astype(np.float32))}
    assert not list(run(tmp_path / "out", [nifti], dicom=dicom).glob("*.dcm"))
    assert not list(run(tmp_path / "without", [scan(tmp_path / "a", bright)]).glob("*.dcm"))


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_without_a_place_or_study_gets_nifti_alone_and_a_warning(tmp_path, dicom, bright, caplog, name):
    out = run(tmp_path / "out", [scan(tmp_path / "a", bright, **{name: None})], dicom=dicom)
    assert (out / "a_seg.nii.gz").is_file()
    assert not list(out.glob("*.dcm"))
    said = f"no DICOM results: the series has no {name}"
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        assert said in next(csv.DictReader(file))["warnings"]
    assert said in caplog.text


def test_what_highdicom_refuses_costs_a_case_its_dicom_results_alone(tmp_path, dicom, bright, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise AttributeError("no attribute\n'Something'")

    monkeypatch.setattr(hd.seg, "Segmentation", refused)
    out = run(tmp_path / "out", [scan(tmp_path / "a", bright)], dicom=dicom)
    assert {path.name for path in out.glob("a_*")} == {"a_seg.nii.gz", "a_heatmap.nii.gz", "a_montage.png"}
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        assert "no DICOM results: AttributeError: no attribute 'Something'" in next(csv.DictReader(file))["warnings"]
    monkeypatch.setattr("common.images.dicom_output._highdicom", _not_installed)
    with pytest.raises(RuntimeError, match="needs highdicom"):
        run(tmp_path / "without", [scan(tmp_path / "b", bright)], dicom=dicom)


def _not_installed() -> None:
    raise ImportError("writing DICOM results needs highdicom")


def test_nothing_of_a_case_is_left_where_its_dicom_cannot_be_written(tmp_path, dicom, bright, monkeypatch):
    def full(path: Path, result: Any) -> None:
        write_dicom(path, result)
        if "heatmap" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.handlers.writers.write_dicom", full)
    with pytest.raises(RuntimeError, match=r"a: .*No space left on device"):
        run(tmp_path / "out", [scan(tmp_path / "a", bright)], dicom=dicom)
    assert not list((tmp_path / "out").glob("*a_*"))


def test_a_rerun_leaves_nothing_of_the_run_before(tmp_path, dicom, bright, caplog):
    cases = [scan(tmp_path / "a", bright), scan(tmp_path / "b", bright)]
    out = run(tmp_path / "out", cases, dicom=dicom)
    (out / "a_notes.txt").write_text("mine")
    sorted((tmp_path / "b").iterdir())[2].unlink()
    with pytest.raises(RuntimeError, match="1 of 2 cases failed"):
        run(out, cases, save_montage=False)
    assert {path.name for path in out.glob("a_*")} == {"a_seg.nii.gz", "a_heatmap.nii.gz", "a_notes.txt"}
    assert len(list(out.glob("b_*"))) == 5  # a scan that cannot be read any more costs nobody a mask
    assert f"1 case(s) failed whose files of an earlier run are still in {out}: b" in caplog.text


def test_the_patient_is_named_in_the_dicom_results_and_nowhere_else(tmp_path, dicom, bright, caplog):
    caplog.set_level("DEBUG")
    out = run(tmp_path / "out", [scan(tmp_path / "a", bright)], dicom=dicom)
    holds = {path.name for path in out.iterdir() if path.is_file() and b"Doe" in _content(path)}
    assert holds == {"a_seg.dcm", "a_heatmap.dcm"}
    assert not any(text in caplog.text for text in ("Doe", "Jane", "19700102", "id7"))
    assert not [record for record in caplog.records if record.name.startswith("highdicom")]


def _content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
