from __future__ import annotations

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from common.images import dicom_output
from common.images.dicom_codes import ABNORMAL, LESION, Codes

hd = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
import pydicom  # noqa: E402

CODES = Codes("gp_unet_brats", "0.1.0", ("12738006", "SCT", "Brain"), {"tumor": ("108369006", "SCT", "Neoplasm")})
SHAPE = (7, 6, 5)  # columns, rows, slices
SPACING = (0.7, 0.8, 2.5)  # between columns, rows, slices
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.8, 0.6, 0), (0.0, 0.0, -1.0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),  # the normal points to the feet
}


def axes(orientation: str) -> np.ndarray:
    """Steps from voxel to voxel along columns, rows and slices in millimeters of LPS+, a column each."""
    across, down = np.asarray(ORIENTATIONS[orientation], dtype=float)
    return np.stack([across, down, np.cross(across, down)], axis=1) * SPACING


def headers(tmp_path, orientation: str = "axial", /, **changed) -> list:
    return dicom_output.read_headers(series(tmp_path, orientation, **changed))


def series(tmp_path, orientation: str, **changed) -> list:
    """The files of a series, in the order of its slices."""
    study, whole, frame = (pydicom.uid.generate_uid() for _ in range(3))
    files = []
    for number in range(SHAPE[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, whole, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Jane", "id7", "19700102", "F"
        one.StudyDate, one.StudyTime, one.StudyID, one.Modality = "20200304", "101112", "study5", "CT"
        one.InstitutionName, one.PatientComments = "Hospital", "free text"
        one.private_block(0x0099, "Vendor", create=True).add_new(1, "LO", "private")
        one.Columns, one.Rows, one.PixelSpacing, one.SliceThickness = *SHAPE[:2], [SPACING[1], SPACING[0]], 2.0
        one.ImageOrientationPatient = [x for cosines in ORIENTATIONS[orientation] for x in cosines]
        one.ImagePositionPatient = (np.array([-12.5, 20.0, 31.0]) + number * axes(orientation)[:, 2]).tolist()
        for name, value in changed.items():
            setattr(one, name, value)
        file = tmp_path / f"{number}.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are wrong on purpose
            one.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def mask_and_heatmap() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return generator.integers(0, 3, SHAPE).astype(np.uint8), generator.normal(size=SHAPE).astype(np.float32)


def written(tmp_path, result) -> pydicom.Dataset:
    dicom_output.write_dicom(tmp_path / "result.dcm", result)
    return pydicom.dcmread(tmp_path / "result.dcm")


def in_the_world(volume) -> dict[tuple[float, ...], float]:
    """Values by position, in millimeters of LPS+."""
    indices = np.indices(volume.spatial_shape).reshape(3, -1).T
    positions = (volume.affine @ np.c_[indices, np.ones(len(indices))].T)[:3].T.round(3) + 0.0
    return dict(zip(map(tuple, positions), volume.array.ravel().tolist(), strict=True))


def expected(array: np.ndarray, orientation: str) -> dict[tuple[float, ...], float]:
    indices = np.indices(array.shape).reshape(3, -1).T
    positions = (indices @ axes(orientation).T + [-12.5, 20.0, 31.0]).round(3) + 0.0
    return dict(zip(map(tuple, positions), array.ravel().tolist(), strict=True))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
class TestPlace:
    def test_a_mask_opens_again_with_the_same_voxels_in_the_same_places(self, tmp_path, orientation):
        mask, _ = mask_and_heatmap()
        source = headers(tmp_path, orientation)
        dicom_output.write_dicom(
            tmp_path / "seg.dcm",
            dicom_output.segmentation(source, mask, classes=["none", "tumor", "cyst"], codes=CODES),
        )
        read = hd.seg.segread(tmp_path / "seg.dcm")
        assert in_the_world(read.get_volume(combine_segments=True)) == expected(mask, orientation)
        assert read.FrameOfReferenceUID == source[0].FrameOfReferenceUID
        frames = read.get_pixels_by_source_instance([one.SOPInstanceUID for one in source], combine_segments=True)
        np.testing.assert_array_equal(frames.T, mask)

    def test_a_heatmap_opens_again_with_the_same_values_in_the_same_places(self, tmp_path, orientation):
        _, heatmap = mask_and_heatmap()
        result = dicom_output.parametric_map(headers(tmp_path, orientation), heatmap, codes=CODES)
        dicom_output.write_dicom(tmp_path / "heatmap.dcm", result)
        read = hd.imread(tmp_path / "heatmap.dcm")
        assert in_the_world(read.get_volume(dtype=np.float32)) == expected(heatmap, orientation)

    def test_slices_that_lie_elsewhere_than_the_image_are_refused(self, tmp_path, orientation):
        source = headers(tmp_path, orientation)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes(orientation), [-12.5, 20.0, 31.0]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        dicom_output.check_series(source, affine, series="s")
        with pytest.raises(ValueError, match="the image and the files of s do not lie on one grid"):
            dicom_output.check_series(source[::-1], affine, series="s")


class TestContent:
    def test_the_mask_says_what_it_shows_and_who_made_it(self, tmp_path):
        codes = Codes("bundle", "0.2.0", CODES.anatomy, {**CODES.findings, "prostate": PROSTATE})
        mask, _ = mask_and_heatmap()
        source = headers(tmp_path)
        read = written(
            tmp_path,
            dicom_output.segmentation(source, mask, classes=["none", "tumor", "prostate", "other"], codes=codes),
        )
        labels = [segment.SegmentLabel for segment in read.SegmentSequence]
        types = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in read.SegmentSequence]
        categories = [s.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning for s in read.SegmentSequence]
        assert labels == ["tumor", "prostate", "other"]
        assert types == ["Neoplasm", "Prostate", "Lesion"]
        assert categories == ["Morphologically Abnormal Structure", "Anatomical Structure", categories[0]]
        segment = read.SegmentSequence[0]
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (segment.SegmentAlgorithmType, algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
            "AUTOMATIC",
            "bundle",
            "0.2.0",
        )
        assert segment.AnatomicRegionSequence[0].CodeValue == "12738006"
        assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == source[0].SeriesInstanceUID
        assert read.StudyInstanceUID == source[0].StudyInstanceUID
        assert read.SeriesInstanceUID != source[0].SeriesInstanceUID

    def test_codes_are_those_of_dicom(self):
        from pydicom.sr.codedict import codes

        known = codes.SCT
        for code, entry in [
            (ABNORMAL, known.MorphologicallyAbnormalStructure),
            (LESION, known.Lesion),
            (PROSTATE[0], known.AnatomicalStructure),
            (PROSTATE[1], known.Prostate),
        ]:
            assert tuple(code) == (entry.value, entry.scheme_designator, entry.meaning)

    def test_an_empty_mask_opens_and_covers_the_series(self, tmp_path):
        result = dicom_output.segmentation(
            headers(tmp_path), np.zeros(SHAPE, np.uint8), classes=["none", "tumor"], codes=CODES
        )
        dicom_output.write_dicom(tmp_path / "seg.dcm", result)
        volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume()
        assert volume.spatial_shape == SHAPE[::-1]
        assert not volume.array.any()

    def test_a_single_slice_keeps_its_thickness(self, tmp_path):
        source = headers(tmp_path)[:1]
        result = dicom_output.segmentation(
            source, np.ones((*SHAPE[:2], 1), np.uint8), classes=["none", "tumor"], codes=CODES
        )
        measures = written(tmp_path, result).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (2.0, 2.0)

    def test_a_constant_heatmap_can_be_written(self, tmp_path):
        result = dicom_output.parametric_map(headers(tmp_path), np.full(SHAPE, -2.5, np.float32), codes=CODES)
        dicom_output.write_dicom(tmp_path / "heatmap.dcm", result)
        assert (hd.imread(tmp_path / "heatmap.dcm").get_volume(dtype=np.float32).array == -2.5).all()

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_dciodvfy_finds_no_error(self, tmp_path, orientation):
        if shutil.which("dciodvfy") is None:
            pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
        mask, heatmap = mask_and_heatmap()
        source = headers(tmp_path, orientation)
        results = {
            "seg": dicom_output.segmentation(source, mask, classes=["none", "tumor", "cyst"], codes=CODES),
            "empty": dicom_output.segmentation(source, 0 * mask, classes=["none", "tumor", "cyst"], codes=CODES),
            "heatmap": dicom_output.parametric_map(source, heatmap, codes=CODES),
        }
        for name, result in results.items():
            dicom_output.write_dicom(tmp_path / f"{name}.dcm", result)
            done = subprocess.run(["dciodvfy", "-new", tmp_path / f"{name}.dcm"], capture_output=True, text=True)
            assert done.returncode == 0
            assert "Error" not in done.stdout + done.stderr


class TestPatient:
    def test_patient_and_study_are_taken_over_and_nothing_private(self, tmp_path):
        mask, heatmap = mask_and_heatmap()
        source = headers(tmp_path)
        for result in (
            dicom_output.segmentation(source, mask, classes=["none", "a", "b"], codes=CODES),
            dicom_output.parametric_map(source, heatmap, codes=CODES),
        ):
            read = written(tmp_path, result)
            assert (read.PatientName, read.PatientID, read.PatientBirthDate, read.PatientSex) == (
                "Doe^Jane",
                "id7",
                "19700102",
                "F",
            )
            assert (read.StudyDate, read.StudyTime, read.StudyID) == ("20200304", "101112", "study5")
            text = str(read)
            assert "Jane" in text
            assert not any(word in text for word in ("Vendor", "private", "Hospital", "free text"))

    @pytest.mark.parametrize(
        "name",
        [
            ("ISO_IR 100", "Müller^Jörg"),
            ("ISO_IR 192", "山田^太郎"),
            (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ],
    )
    def test_names_keep_their_character_set(self, tmp_path, name):
        source = headers(tmp_path, SpecificCharacterSet=name[0], PatientName=name[1])
        result = dicom_output.segmentation(source, np.ones(SHAPE, np.uint8), classes=["none", "tumor"], codes=CODES)
        assert written(tmp_path, result).PatientName == name[1]

    def test_values_that_dicom_forbids_become_empty_and_appear_in_no_message(self, tmp_path, caplog, recwarn):
        secret = {"PatientBirthDate": "2. Jan 1970", "PatientSex": "woman", "PatientID": "7" * 70, "StudyDate": "x"}
        files = series(tmp_path, "axial", **secret, PatientName="Doe")
        mask, heatmap = mask_and_heatmap()
        caplog.clear()
        caplog.set_level("DEBUG")
        recwarn.clear()
        source = dicom_output.read_headers(files)
        for result in (
            dicom_output.segmentation(source, mask, classes=["none", "a", "b"], codes=CODES),
            dicom_output.parametric_map(source, heatmap, codes=CODES),
        ):
            dicom_output.write_dicom(tmp_path / "result.dcm", result)
        told = caplog.text + " ".join(str(one.message) for one in recwarn)
        assert not any(value in told for value in (*secret.values(), "Doe") if value != "x")
        read = pydicom.dcmread(tmp_path / "result.dcm")
        assert [read[name].value or "" for name in secret] == ["", "", "", ""]
        assert read.PatientName == "Doe"

    def test_a_series_without_patient_and_study_attributes_is_enough(self, tmp_path):
        absent = dict.fromkeys(["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"])
        source = headers(tmp_path)
        for one in source:
            for name in absent:
                delattr(one, name)
        result = dicom_output.segmentation(source, np.ones(SHAPE, np.uint8), classes=["none", "tumor"], codes=CODES)
        assert written(tmp_path, result).PatientName == ""


class TestErrors:
    def test_arrays_of_another_shape_or_with_unknown_values_are_refused(self, tmp_path):
        source = headers(tmp_path)
        with pytest.raises(ValueError, match=r"the mask has the shape \[5, 6, 7\], the series \[7, 6, 5\]"):
            dicom_output.segmentation(source, np.zeros(SHAPE[::-1], np.uint8), classes=["none", "a"], codes=CODES)
        for value in (2, 256, -1, 0.5):  # 256 is 0 as a byte
            with pytest.raises(ValueError, match=rf"the mask holds {value}, expected 0…1 for \['none', 'a'\]"):
                dicom_output.segmentation(source, np.full(SHAPE, value), classes=["none", "a"], codes=CODES)

    def test_codes_are_three_texts(self):
        with pytest.raises(ValueError, match="anatomy: a code is three texts"):
            Codes("a", "1", ("12738006", "SCT"))
        with pytest.raises(ValueError, match=r"findings.tumor: a code is three texts.*got \(108369006, "):
            Codes("a", "1", findings={"tumor": (108369006, "SCT", "Neoplasm")})

    def test_the_extra_is_named_where_highdicom_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(ImportError, match=r"needs highdicom: pip install 'weakseg-bundles\[dicom\]'"):
            dicom_output.read_headers([])


PROSTATE = (("91723000", "SCT", "Anatomical Structure"), ("41216001", "SCT", "Prostate"))
