from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.images import dicom_output, read_mask, read_volume
from common.images.dicom_codes import ABNORMAL, LESION, DicomCodes

hd = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
import pydicom  # noqa: E402

from tests.images.placed_series import ORIENTATIONS, PIXELS, SHAPE, affine_of, expected, in_the_world, series  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
CODES = DicomCodes("gp_unet_brats", "0.1.0", ("12738006", "SCT", "Brain"), {"tumor": ("108369006", "SCT", "Neoplasm")})
PROSTATE = (("91723000", "SCT", "Anatomical Structure"), ("41216001", "SCT", "Prostate"))


def headers(tmp_path, orientation: str = "axial", /, **changed) -> list:
    return dicom_output.read_headers(series(tmp_path, orientation, **changed))


def seg(source, mask, *, affine=None, classes=("none", "a", "b"), codes=CODES):
    return dicom_output.segmentation(
        source, mask, affine_of() if affine is None else affine, classes=classes, codes=codes
    )


def heat(source, heatmap, *, affine=None):
    return dicom_output.parametric_map(source, heatmap, affine_of() if affine is None else affine, codes=CODES)


def mask_and_heatmap() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    mask = generator.integers(0, 3, SHAPE).astype(np.uint8)
    mask[:, :, [0, 2]] = 0
    return mask, generator.normal(size=SHAPE).astype(np.float32)


def written(tmp_path, result) -> pydicom.Dataset:
    dicom_output.write_dicom(tmp_path / "result.dcm", result)
    return pydicom.dcmread(tmp_path / "result.dcm")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
class TestPlace:
    def test_a_mask_opens_again_with_the_same_voxels_in_the_same_places(self, tmp_path, orientation):
        mask, _ = mask_and_heatmap()
        source = headers(tmp_path, orientation)
        dicom_output.write_dicom(tmp_path / "seg.dcm", seg(source, mask, affine=affine_of(orientation)))
        read = hd.seg.segread(tmp_path / "seg.dcm")
        assert in_the_world(read.get_volume(combine_segments=True)) == expected(mask, orientation)
        assert read.FrameOfReferenceUID == source[0].FrameOfReferenceUID
        frames = read.get_pixels_by_source_instance([one.SOPInstanceUID for one in source], combine_segments=True)
        np.testing.assert_array_equal(frames.T, mask)

    def test_a_heatmap_opens_again_with_the_same_values_in_the_same_places(self, tmp_path, orientation):
        _, heatmap = mask_and_heatmap()
        result = heat(headers(tmp_path, orientation), heatmap, affine=affine_of(orientation))
        dicom_output.write_dicom(tmp_path / "heatmap.dcm", result)
        read = hd.imread(tmp_path / "heatmap.dcm")
        assert in_the_world(read.get_volume(dtype=np.float32)) == expected(heatmap, orientation)

    def test_slices_that_lie_elsewhere_than_the_image_are_refused(self, tmp_path, orientation):
        source = headers(tmp_path, orientation)
        for make, array in zip((seg, heat), mask_and_heatmap(), strict=True):
            with pytest.raises(ValueError, match="the image and the files of its series do not lie on one grid"):
                make(source[::-1], array, affine=affine_of(orientation))


def height(frame) -> float:
    """Of a frame of the oblique series, whose slices go towards negative x."""
    return -frame.PlanePositionSequence[0].ImagePositionPatient[0]


def test_frames_of_one_file_get_the_voxels_at_their_place_in_whatever_order_they_are(tmp_path):
    mask, heatmap = mask_and_heatmap()
    files = series(tmp_path, "oblique", Manufacturer="x", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **PIXELS)
    many = hd.legacy.LegacyConvertedEnhancedCTImage([pydicom.dcmread(f) for f in files], hd.UID(), 1, hd.UID(), 1)
    order = [2, 0, 4, 1, 3]
    by_height = sorted(many.PerFrameFunctionalGroupsSequence, key=height)
    many.PerFrameFunctionalGroupsSequence = [by_height[i] for i in order]
    (tmp_path / "many").mkdir()
    many.save_as(tmp_path / "many" / "a.dcm", enforce_file_format=True)
    results, warning = dicom_output.dicom_results(
        str(tmp_path / "many"), affine_of("oblique"), mask, heatmap, classes=("none", "a", "b"), codes=CODES
    )
    assert warning == ""
    for name, result in results.items():
        dicom_output.write_dicom(tmp_path / name, result)
    read = hd.seg.segread(tmp_path / "seg.dcm")
    assert in_the_world(read.get_volume(combine_segments=True)) == expected(mask, "oblique")
    frames = read.get_pixels_by_source_frame(many.SOPInstanceUID, [1, 2, 3, 4, 5], combine_segments=True)
    np.testing.assert_array_equal(frames.T, mask[:, :, order])
    read = hd.imread(tmp_path / "heatmap.dcm")
    assert in_the_world(read.get_volume(dtype=np.float32)) == expected(heatmap, "oblique")


class TestSeries:
    def test_results_of_a_series_are_in_the_order_of_the_image_that_is_read(self, tmp_path):
        mask, heatmap = mask_and_heatmap()
        folder = tmp_path / "scan"
        folder.mkdir()
        for number, file in enumerate(reversed(series(tmp_path, "sagittal", **PIXELS))):
            file.rename(folder / f"z{number}.dcm")
        image = read_volume(folder)
        results, _ = dicom_output.dicom_results(
            str(folder), image.affine, mask, heatmap, classes=("none", "a", "b"), codes=CODES
        )
        dicom_output.write_dicom(tmp_path / "seg.dcm", results["seg.dcm"])
        volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
        assert in_the_world(volume) == expected(mask, "sagittal")

    @pytest.mark.parametrize("slices", [SHAPE[2], 1])
    @pytest.mark.parametrize("thickness", [None, 0, "absent"])
    def test_slices_without_a_thickness_are_as_thick_as_they_are_apart(self, tmp_path, thickness, slices):
        (tmp_path / "scan").mkdir()
        for file in series(tmp_path / "scan", "axial", **PIXELS, SliceThickness=thickness if thickness == 0 else None):
            one = pydicom.dcmread(file)
            if thickness == "absent":
                del one.SliceThickness
            one.save_as(file)
            if one.InstanceNumber > slices:
                file.unlink()
        mask, heatmap = (array[..., :slices] for array in mask_and_heatmap())
        mask[1:3, 1:3] = 1
        image = read_volume(tmp_path / "scan")
        results, warning = dicom_output.dicom_results(
            str(tmp_path / "scan"), image.affine, mask, heatmap, classes=("none", "a", "b"), codes=CODES
        )
        assert warning == ""
        for name, result in results.items():
            dicom_output.write_dicom(tmp_path / name, result)
            measures = pydicom.dcmread(tmp_path / name).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            assert measures.SliceThickness == (2.5 if slices > 1 else 1.0)
        np.testing.assert_array_equal(read_mask(tmp_path / "seg.dcm", tmp_path / "scan").array, mask)

    @pytest.mark.parametrize("name", ["ImagePositionPatient", "FrameOfReferenceUID"])
    def test_a_series_without_place_gets_none_and_a_warning(self, tmp_path, name):
        (tmp_path / "scan").mkdir()
        series(tmp_path / "scan", "axial", **PIXELS, **{name: None})
        results, warning = dicom_output.dicom_results(
            str(tmp_path / "scan"), affine_of(), *mask_and_heatmap(), classes=("none", "a", "b"), codes=CODES
        )
        assert (results, warning) == ({}, f"no DICOM results: the series has no {name}")


class TestContent:
    def test_the_mask_says_what_it_shows_and_who_made_it(self, tmp_path):
        codes = DicomCodes("bundle", "0.2.0", CODES.anatomy, {**CODES.findings, "prostate": PROSTATE})
        mask, _ = mask_and_heatmap()
        source = headers(tmp_path)
        read = written(
            tmp_path,
            seg(source, mask, classes=["none", "tumor", "prostate", "other"], codes=codes),
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

    def test_codes_of_the_configs_mean_in_snomed_what_they_say(self):
        from pydicom.sr.codedict import codes

        files = sorted((REPOSITORY / "bundles").glob("*/configs/*.json"))
        given = [one for file in files if (one := json.loads(file.read_text(encoding="utf-8")).get("dicom"))]
        used = {ABNORMAL, LESION, *PROSTATE}
        for one in given:
            named = DicomCodes("", "", one["anatomy"], one["findings"])
            used |= {tuple(code) for name in one["findings"] for code in named.finding(name)} | {tuple(one["anatomy"])}
        entries = [getattr(codes.SCT, name) for name in codes.SCT.dir()]
        known = {(entry.value, "SCT", entry.meaning.partition(" (")[0]) for entry in entries}
        assert used <= known
        assert len(given) >= 4

    def test_an_empty_mask_opens_and_covers_the_series(self, tmp_path):
        result = seg(headers(tmp_path), np.zeros(SHAPE, np.uint8))
        dicom_output.write_dicom(tmp_path / "seg.dcm", result)
        volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume()
        assert volume.spatial_shape == SHAPE[::-1]
        assert not volume.array.any()

    def test_a_single_slice_keeps_its_thickness(self, tmp_path):
        source = headers(tmp_path)[:1]
        result = seg(source, np.ones((*SHAPE[:2], 1), np.uint8))
        measures = written(tmp_path, result).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.SliceThickness == 2.0

    def test_a_constant_heatmap_can_be_written(self, tmp_path):
        result = heat(headers(tmp_path), np.full(SHAPE, -2.5, np.float32))
        dicom_output.write_dicom(tmp_path / "heatmap.dcm", result)
        assert (hd.imread(tmp_path / "heatmap.dcm").get_volume(dtype=np.float32).array == -2.5).all()

    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_dciodvfy_finds_no_error(self, tmp_path, orientation):
        if shutil.which("dciodvfy") is None:
            pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
        mask, heatmap = mask_and_heatmap()
        source = headers(tmp_path, orientation)
        results = {
            "seg": seg(source, mask, affine=affine_of(orientation)),
            "empty": seg(source, 0 * mask, affine=affine_of(orientation)),
            "heatmap": heat(source, heatmap, affine=affine_of(orientation)),
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
        for result in (seg(source, mask), heat(source, heatmap)):
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
        result = seg(source, np.ones(SHAPE, np.uint8))
        assert written(tmp_path, result).PatientName == name[1]

    def test_values_that_dicom_forbids_become_empty_and_appear_in_no_message(self, tmp_path, caplog, recwarn):
        secret = {"PatientBirthDate": "2. Jan 1970", "PatientSex": "FEMALE", "PatientID": "7" * 70, "StudyDate": "x"}
        files = series(tmp_path, "axial", **secret, PatientName="Doe")
        mask, heatmap = mask_and_heatmap()
        caplog.clear()
        caplog.set_level("DEBUG")
        recwarn.clear()
        source = dicom_output.read_headers(files)
        for result in (seg(source, mask), heat(source, heatmap)):
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
        result = seg(source, np.ones(SHAPE, np.uint8))
        assert written(tmp_path, result).PatientName == ""


class TestErrors:
    def test_arrays_of_another_shape_or_with_unknown_values_are_refused(self, tmp_path):
        source = headers(tmp_path)
        with pytest.raises(ValueError, match=r"their shapes are \[5, 6, 7\] and \[7, 6, 5\]"):
            seg(source, np.zeros(SHAPE[::-1], np.uint8))
        for value in (2, 256, -1, 0.5):  # 256 is 0 as a byte
            with pytest.raises(ValueError, match=rf"the mask holds {value}, expected 0…1 for \['none', 'a'\]"):
                seg(source, np.full(SHAPE, value), classes=["none", "a"])

    def test_codes_are_three_texts(self):
        with pytest.raises(ValueError, match="anatomy: a code is three texts"):
            DicomCodes("a", "1", ("12738006", "SCT"))
        with pytest.raises(ValueError, match=r"findings.tumor: a code is three texts.*got \(108369006, "):
            DicomCodes("a", "1", findings={"tumor": (108369006, "SCT", "Neoplasm")})

    def test_the_extra_is_named_where_highdicom_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "highdicom", None)
        with pytest.raises(ImportError, match=r"needs highdicom: pip install 'weakseg-bundles\[dicom\]'"):
            dicom_output.read_headers([])
