from __future__ import annotations

from pathlib import Path

import pytest

from common.data import load_datalist, make_datalist, multi_hot, write_datalist
from common.datasets import bracs, camelyon16
from common.datasets.slides import BRACS_CLASSES


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"II*\0")


@pytest.fixture
def camelyon(tmp_path: Path) -> Path:
    """20 normal and 10 tumor slides, 4 test slides of which one was withdrawn."""
    touch(tmp_path, *(f"training/normal/normal_{i:03d}.tif" for i in range(1, 21)))
    touch(tmp_path, *(f"training/tumor/tumor_{i:03d}.tif" for i in range(1, 11)))
    touch(tmp_path, *(f"training/lesion_annotations/tumor_{i:03d}.xml" for i in range(1, 10)))
    touch(tmp_path, *(f"testing/images/test_{i:03d}.tif" for i in (1, 2, 49, 114)))
    touch(tmp_path, "testing/lesion_annotations/test_001.xml", "testing/lesion_annotations/test_002.xml")
    rows = ("test_001,Tumor,IDC,Macro", "test_002,Normal,None,None", "test_049,Tumor,,", "test_114.tif,Tumor,,")
    (tmp_path / "testing" / "reference.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


class TestCamelyon16:
    def test_labels_come_from_folders_and_from_the_table_of_the_test_slides(self, camelyon):
        cases = {case["case"]: case for case in camelyon16(camelyon)}
        assert len(cases) == 33
        assert all(case["cls"] == int(name.startswith("tumor")) for name, case in cases.items() if "test" not in name)
        assert [cases[f"test_{i}"]["cls"] for i in ("001", "002", "114")] == [1, 0, 1]
        assert "test_049" not in cases
        assert "test_049" in {case["case"] for case in camelyon16(camelyon, exclude="tumor_001")}
        assert cases["test_001"]["image"] == str(camelyon / "testing/images/test_001.tif")

    def test_polygons_belong_to_slides_with_tumor_only(self, camelyon):
        cases = {case["case"]: case for case in camelyon16(camelyon)}
        assert cases["tumor_003"]["label"] == str(camelyon / "training/lesion_annotations/tumor_003.xml")
        assert cases["test_001"]["label"] == str(camelyon / "testing/lesion_annotations/test_001.xml")
        assert all("label" not in cases[name] for name in ("tumor_010", "test_002", "test_114", "normal_001"))

    def test_slides_with_tumor_that_have_no_polygons_are_named(self, camelyon, caplog):
        camelyon16(camelyon)
        assert "2 slide(s) with tumor have no polygons" in caplog.text
        assert "tumor_010, test_114" in caplog.text

    def test_a_tenth_of_either_kind_validates_and_the_official_test_slides_test(self, camelyon):
        def validating(**options: object) -> list[str]:
            return [case["case"] for case in camelyon16(camelyon, **options) if case["section"] == "validation"]

        names = validating()
        assert [name[:5] for name in names] == ["norma", "norma", "tumor"]
        assert names == validating()
        assert names != validating(split_seed=1)
        tests = {case["case"] for case in camelyon16(camelyon) if case["section"] == "test"}
        assert tests == {"test_001", "test_002", "test_114"}

    def test_says_what_is_missing_or_unknown(self, camelyon):
        table = camelyon / "testing" / "reference.csv"
        text = table.read_text()
        table.write_text(text.replace("Normal", "Benign"))
        with pytest.raises(ValueError, match=r"reference.csv: test_002 is 'Benign'; expected Tumor or Normal"):
            camelyon16(camelyon)
        table.write_text(text.replace("test_002", "test_003"))
        with pytest.raises(FileNotFoundError, match=r"reference.csv has no row for test_002.tif"):
            camelyon16(camelyon)
        table.unlink()
        with pytest.raises(FileNotFoundError, match=r"reference.csv does not exist"):
            camelyon16(camelyon)
        with pytest.raises(FileNotFoundError, match=r"no file training/normal/normal_\*.tif in .*; give the folder"):
            camelyon16(camelyon / "training")


def test_what_a_mac_leaves_beside_slides_is_none(camelyon, bracs_root):
    before = camelyon16(camelyon), bracs(bracs_root)
    touch(camelyon, "training/normal/._normal_001.tif", "testing/images/._test_001.tif")
    touch(bracs_root, "BRACS_WSI/train/Group_BT/Type_N/._BRACS_701.svs")
    assert (camelyon16(camelyon), bracs(bracs_root)) == before


@pytest.fixture
def bracs_root(tmp_path: Path) -> Path:
    names = ("train/Group_BT/Type_N/BRACS_1", "train/Group_AT/Type_ADH/BRACS_2", "train/Group_MT/Type_IC/BRACS_3")
    names += ("val/Group_BT/Type_UDH/BRACS_10", "val/Group_AT/Type_FEA/BRACS_11", "test/Group_MT/Type_DCIS/BRACS_20")
    touch(tmp_path, *(f"BRACS_WSI/{name}.svs" for name in names))
    regions = ("train/6_IC/BRACS_3_IC_1", "train/5_DCIS/BRACS_3_DCIS_2", "train/4_ADH/BRACS_3_ADH_5")
    regions += ("train/0_N/BRACS_2_N_1", "val/3_FEA/BRACS_10_FEA_1", "val/1_PB/BRACS_1_PB_7")
    touch(tmp_path, *(f"BRACS_RoI/latest_version/{name}.png" for name in regions))
    return tmp_path


class TestBracs:
    def test_a_slide_has_the_labels_of_its_folder_and_of_its_regions(self, bracs_root):
        found = {case["case"]: case["cls"] for case in bracs(bracs_root)}
        assert found == {
            "BRACS_1": [],
            "BRACS_2": ["ADH"],
            "BRACS_3": ["ADH", "DCIS", "Invasive"],
            "BRACS_10": ["FEA"],
            "BRACS_11": ["FEA"],
            "BRACS_20": ["DCIS"],
        }
        assert multi_hot(found["BRACS_3"], BRACS_CLASSES) == [1, 0, 1, 1]

    def test_the_folder_alone_labels_a_slide_without_regions(self, bracs_root, caplog):
        bracs(bracs_root)
        assert caplog.text == ""
        found = {case["case"]: case["cls"] for case in bracs(bracs_root / "BRACS_WSI")}
        assert (found["BRACS_3"], found["BRACS_10"]) == (["Invasive"], [])
        assert "BRACS_RoI: no region BRACS_<number>_<type>_<n>.png of these slides" in caplog.text
        caplog.clear()
        assert found == {case["case"]: case["cls"] for case in bracs(bracs_root, regions=None)}
        assert caplog.text == ""

    def test_keeps_the_official_split_through_a_datalist(self, bracs_root):
        cases = bracs(bracs_root)
        assert [case.pop("section") for case in cases] == ["training"] * 3 + ["validation"] * 2 + ["test"]
        options = {"classes": BRACS_CLASSES, "modalities": ("HE",), "dataset_dir": bracs_root, "fractions": (1, 0, 0)}
        write_datalist(bracs_root / "list.json", make_datalist(cases, name="bracs", **options))
        loaded = load_datalist(bracs_root / "list.json", "training", dataset_dir=bracs_root)
        assert [case["cls"] for case in loaded] == [case["cls"] for case in cases]

    def test_patients_come_from_the_owners_table(self, bracs_root):
        table = bracs_root / "BRACS.csv"
        numbers = {"1": "7", "2": "7", "3": "8", "10": "9", "11": "9", "20": "10"}
        rows = [f"BRACS_{slide},{patient},{slide}" for slide, patient in numbers.items()]
        table.write_text("WSI Filename,Patient Id,RoI\n" + "\n".join(rows) + "\n")
        patients = {case["case"]: case["patient"] for case in bracs(bracs_root, table="BRACS.csv")}
        assert (patients["BRACS_1"], patients["BRACS_2"], patients["BRACS_20"]) == (
            "patient_7",
            "patient_7",
            "patient_10",
        )
        table.write_text("WSI Filename,Patient Id,RoI\n" + "\n".join(rows[:-1]) + "\n")
        with pytest.raises(FileNotFoundError, match=r"BRACS.csv: BRACS_20 is not listed"):
            bracs(bracs_root, table="BRACS.csv")

    def test_says_what_is_missing_or_unknown(self, bracs_root):
        with pytest.raises(FileNotFoundError, match=r"no file train/Group_\*/Type_\*/\*.svs in .*; give the folder"):
            bracs(bracs_root / "BRACS_RoI")
        touch(bracs_root, "BRACS_WSI/test/Group_MT/Type_LCIS/BRACS_21.svs")
        with pytest.raises(ValueError, match=r"BRACS_21.svs: unknown type 'LCIS'; expected one of N, PB"):
            bracs(bracs_root)
