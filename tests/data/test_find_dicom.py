from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from common.data import find_cases, load_datalist
from common.datasets import folder
from common.images.dicom_files import find_series
from tests.images.dicom_series import BIRTH, NAME, datasets, packaged, save, stack


def series(where: Path, uid: str = "1.2.826.1", patient: str = "MRN-1", **options) -> Path:
    return save(where, datasets(stack(2), series=uid, PatientID=patient, **options), (uid + "_{}.dcm").format)


def found(root: Path, pattern, **options) -> dict[str, str]:
    """Images by case, relative to the root."""
    return {case["case"]: str(Path(case["image"]).relative_to(root)) for case in find_cases(root, pattern, **options)}


class TestFolders:
    def test_a_folder_is_a_case_with_its_mask_and_organ(self, tmp_path):
        for name in ("site_1", "site_2"):
            series(tmp_path / name)
            (tmp_path / name / "lung.nii.gz").touch()
        (tmp_path / "site_2" / "mask.nii.gz").touch()
        cases = find_cases(tmp_path, "site_*/", label_pattern="*/mask.nii.gz", organ_pattern="*/lung.nii.gz")
        assert [case["image"] for case in cases] == [str(tmp_path / "site_1"), str(tmp_path / "site_2")]
        assert [case["organ"] for case in cases] == [str(tmp_path / f"site_{i}/lung.nii.gz") for i in (1, 2)]
        assert [case.get("label") for case in cases] == [None, str(tmp_path / "site_2/mask.nii.gz")]

    def test_modalities_are_folders_of_one_case(self, tmp_path):
        for name in ("b", "a.1"):
            series(tmp_path / name / "flair")
            series(tmp_path / name / "t1ce", "1.2.826.2")
            (tmp_path / name / "mask.nii.gz").touch()
        cases = find_cases(tmp_path, ["*/flair/", "*/t1ce/"], label_pattern="*/mask.nii.gz")
        assert [case["case"] for case in cases] == ["a.1", "b"]
        assert cases[1]["image"] == [str(tmp_path / "b/flair"), str(tmp_path / "b/t1ce")]
        assert cases[1]["label"] == str(tmp_path / "b/mask.nii.gz")
        with pytest.raises(FileNotFoundError, match=r"'\*/t2/'"):
            find_cases(tmp_path, ["*/flair/", "*/t2/"])

    def test_folders_without_a_scan_are_named_and_left_out(self, tmp_path, caplog):
        series(tmp_path / "p1")
        (tmp_path / "docs").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "p1_seg.dcm").write_bytes(packaged("liver_1frame.dcm").read_bytes())
        assert found(tmp_path, "*/") == {"p1": "p1"}
        assert "2 folder(s) without a DICOM scan left out: docs, out" in caplog.text
        with pytest.raises(FileNotFoundError, match=r"no folder with a DICOM scan matches 'o\*/'"):
            find_cases(tmp_path, "o*/")

    def test_a_link_to_nothing_stays_a_case_so_that_it_is_named(self, tmp_path):
        series(tmp_path / "p1")
        (tmp_path / "p2").symlink_to(tmp_path / "gone")
        assert found(tmp_path, "*/") == {"p1": "p1", "p2": "p2"}

    @pytest.mark.parametrize("pattern", ["*/*.dcm", "*/*"])
    def test_a_pattern_of_slices_says_what_to_give_instead(self, tmp_path, pattern):
        save(tmp_path / "p1", datasets(stack(2)), ("IM{}" if pattern == "*/*" else "{}.dcm").format)
        with pytest.raises(ValueError, match=r"image_pattern .* single files of DICOM series.* as '\*/', or 'dicom'"):
            find_cases(tmp_path, pattern)

    def test_slides_in_dicom_are_files(self, tmp_path):
        (tmp_path / "p1.dcm").write_bytes(packaged("SC_rgb_small_odd.dcm").read_bytes())
        assert found(tmp_path, "*.dcm") == {"p1": "p1.dcm"}

    def test_folders_within_each_other_are_refused(self, tmp_path):
        series(tmp_path / "p1" / "s1")
        with pytest.raises(ValueError, match=r"matches p1 and p1/s1 within; use 'dicom'"):
            find_cases(tmp_path, "p1/**/")


class TestTree:
    def test_is_grouped_by_series_and_named_by_folders_or_uids(self, tmp_path, caplog):
        series(tmp_path / "p1")
        series(tmp_path / "mixed", "1.2.826.2", "MRN-2")
        series(tmp_path / "mixed", "1.2.826.3", "MRN-2", Modality="CT")
        series(tmp_path, "1.2.826.4", "MRN-3")
        series(tmp_path / "p1", "1.2.826.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        series(tmp_path / "p1", "1.2.826.6", SOPClassUID="1.2.840.10008.5.1.4.1.1.30")
        screen = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}
        save(tmp_path / "p1", datasets(stack(1), series="1.2.826.7", **screen), "screen{}.dcm".format)
        (tmp_path / "p1" / "seg.dcm").write_bytes(packaged("liver_1frame.dcm").read_bytes())
        (tmp_path / "notes.txt").write_text("no DICOM")
        cases = found(tmp_path, "dicom")
        names = {image: case for case, image in cases.items()}
        assert names["p1"] == "p1"
        assert names.keys() == {"p1", "mixed/1.2.826.2", "mixed/1.2.826.3", "1.2.826.4"}
        assert names["mixed/1.2.826.2"].startswith("mixed_series_")
        assert names["1.2.826.4"].startswith("series_")
        assert len(cases) == 4
        left_out = "4 series that are no scans left out: 1 localizer, 1 Parametric Map, 1 Segmentation, 1 screenshot"
        assert left_out in caplog.text
        assert found(tmp_path, "dicom") == cases

    def test_cases_of_one_patient_share_the_patient_and_nothing_else(self, tmp_path):
        for name, patient in (("a", "MRN-1"), ("b", "MRN-2"), ("c", "MRN-1"), ("d", ""), ("e", "")):
            series(tmp_path / name, f"1.2.826.{ord(name)}", patient)
        for pattern in ("dicom", "*/"):
            patients = {case["case"]: case["patient"] for case in find_cases(tmp_path, pattern)}
            assert patients == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}
        cases = folder(tmp_path, modalities=["x"], pattern="*/", label=None)
        assert [case["patient"] for case in cases] == ["a", "b", "a", "d", "e"]

    @pytest.mark.parametrize("pattern", ["dicom", "*/", "*/*/"])
    def test_no_case_is_named_after_a_person(self, tmp_path, caplog, pattern):
        caplog.set_level(logging.DEBUG)
        below = "scan" if pattern == "*/*/" else ""
        series(tmp_path / "ZYXWV Qrst 1961" / below)
        series(
            tmp_path / "phantom" / below, "1.2.826.2", "MRN-2", PatientName="Phantom^2", PatientIdentityRemoved="YES"
        )
        series(tmp_path / "x_MRN-3" / below, "1.2.826.3", "MRN-3")
        cases = find_cases(tmp_path, pattern)
        names = sorted(case["case"] for case in cases)
        assert names[0].startswith("phantom")
        assert names[1].startswith("series_")
        assert ("MRN" in names[2]) == (pattern != "dicom")  # there the folder is the user's choice
        said = " ".join(str([case["case"], case["patient"]]) for case in cases) + caplog.text
        assert not [text for text in (*NAME.lower().split("^"), BIRTH) if text in said.lower()]

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("李明", {"PatientName": "李^明"}),
            ("王小明_T1", {"PatientName": "Wang^XiaoMing=王^小明"}),
            ("Öz_T1", {"PatientName": "Öz^Ali"}),
            ("Mu\u0308ller", {"PatientName": "Müller^Jörg"}),  # as some file systems write it
            ("OBrien", {"PatientName": "O'Brien^Pat"}),
            ("P_99", {"patient": "P/99"}),
            ("MRN_4815_1623", {"patient": "MRN-4815-1623"}),
            ("1961-04-02", {}),
        ],
    )
    def test_nor_is_one_in_other_letters_or_signs(self, tmp_path, name, told):
        series(tmp_path / name, SpecificCharacterSet="ISO_IR 192", **told)
        series(tmp_path / "Xi_1961", "1.2.826.2", PatientName="Li^Xia", SpecificCharacterSet="ISO_IR 192")
        assert sorted(found(tmp_path, "dicom"))[1].startswith("series_")
        assert "Xi_1961" in found(tmp_path, "dicom")  # a name is not any word that holds its letters

    def test_masks_lie_beside_the_series_or_above_it(self, tmp_path):
        series(tmp_path / "p1" / "dicom")
        series(tmp_path / "p2" / "dicom", "1.2.826.2")
        for name in ("p1/mask.nii.gz", "p2/dicom/mask.nii.gz"):
            (tmp_path / name).touch()
        cases = find_cases(tmp_path, "dicom", label_pattern="**/mask.nii.gz")
        assert [case["label"] for case in cases] == [
            str(tmp_path / "p1/mask.nii.gz"),
            str(tmp_path / "p2/dicom/mask.nii.gz"),
        ]
        (tmp_path / "lung.nii.gz").touch()
        with pytest.raises(FileNotFoundError, match=r"'lung.nii.gz' beside p1/dicom"):
            find_cases(tmp_path, "dicom", organ_pattern="lung.nii.gz")

    def test_says_what_is_wrong_with_the_rest(self, tmp_path, caplog):
        series(tmp_path / "p1")
        (tmp_path / "p2").mkdir()
        (tmp_path / "p2" / "cut.dcm").write_bytes(b"x")
        assert found(tmp_path, "dicom") == {"p1": "p1"}
        assert "1 broken DICOM file(s): p2/cut.dcm (no DICOM header)" in caplog.text
        (tmp_path / "p1" / "004.dcm.gz").write_bytes(gzip.compress(b"x"))
        with pytest.raises(ValueError, match=r"004\.dcm\.gz: packed: unpack it; it may be a slice of the series"):
            find_series(tmp_path / "p1")
        with pytest.raises(FileNotFoundError, match=r"no DICOM scan matches 'dicom' in .*/none"):
            find_cases(tmp_path / "none", "dicom")
        (tmp_path / "sent").mkdir()
        (tmp_path / "sent" / "Study1.ZIP").touch()
        (tmp_path / "sent" / "Study2.tar.gz").touch()
        (tmp_path / "sent" / "notes.gz").touch()
        with pytest.raises(FileNotFoundError, match=r"the pattern; unpack Study1\.ZIP, Study2\.tar\.gz first\."):
            find_cases(tmp_path / "sent", "dicom")
        with pytest.raises(ValueError, match="'dicom' is a case a series; give folders instead"):
            find_cases(tmp_path, ["dicom", "*/"])


def test_a_datalist_names_folders_and_series_and_says_which_are_missing(tmp_path):
    series(tmp_path / "p1")
    series(tmp_path / "mixed", "1.2.826.2")
    series(tmp_path / "mixed", "1.2.826.3")
    path = tmp_path / "list.json"

    def write(*images: str) -> None:
        cases = [{"case": f"c{i}", "patient": f"c{i}", "image": image} for i, image in enumerate(images)]
        path.write_text(json.dumps({"classes": ["none", "tumor"], "test": cases}))

    write("p1", "mixed/1.2.826.2")
    loaded = load_datalist(path, "test", dataset_dir=tmp_path)
    assert [case["image"] for case in loaded] == [str(tmp_path / "p1"), str(tmp_path / "mixed/1.2.826.2")]
    write("p1", "mixed/1.2.826.2", "mixed/1.2.826.9", "p2")
    with pytest.raises(FileNotFoundError, match=r"2 of 4 files of 'test' do not exist, e.g. .*1.2.826.9, .*p2; check"):
        load_datalist(path, "test", dataset_dir=tmp_path)
