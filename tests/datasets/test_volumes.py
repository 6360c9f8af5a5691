from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pytest

from common.datasets import autopet, duke, mosmed
from tests.pipeline import affine_of, save, world


def volume(*slices: int, shape: tuple[int, int, int] = (4, 5, 6)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[1, 2, list(slices)] = 1
    return array


@pytest.fixture
def mosmed_root(tmp_path: Path) -> Path:
    """Two healthy studies, and one each of CT-1 (with mask), CT-2 and CT-4."""
    rows = []
    for number, category in ((1, "CT-0"), (2, "CT-0"), (255, "CT-1"), (939, "CT-2"), (1110, "CT-4")):
        name = f"study_{number:04d}"
        save(tmp_path / "studies" / category / f"{name}.nii.gz", volume())
        rows.append(f"{name},{category},/studies/{category}/{name}.nii.gz,")
    save(tmp_path / "masks" / "study_0255_mask.nii.gz", volume(3))
    rows[2] += "/masks/study_0255_mask.nii.gz"
    (tmp_path / "dataset_registry.csv").write_text("study_id,category,study_file,mask_file\n" + "\n".join(rows) + "\n")
    return tmp_path


class TestMosmed:
    def test_ct_0_is_negative_and_every_other_category_positive(self, mosmed_root):
        cases = mosmed(mosmed_root)
        assert [(c["case"], c["cls"]) for c in cases] == [
            ("study_0001", 0),
            ("study_0002", 0),
            ("study_0255", 1),
            ("study_0939", 1),
            ("study_1110", 1),
        ]
        assert cases[3]["image"] == str(mosmed_root / "studies" / "CT-2" / "study_0939.nii.gz")
        assert [c["cls"] for c in mosmed(mosmed_root, severity=True)] == [0, 0, 1, 2, 4]

    def test_only_masked_studies_have_a_label_and_a_fixed_section_if_asked(self, mosmed_root):
        assert [c["case"] for c in mosmed(mosmed_root) if "label" in c] == ["study_0255"]
        assert not any("section" in c for c in mosmed(mosmed_root))
        fixed = {c["case"]: c["section"] for c in mosmed(mosmed_root, masked_section="validation") if "section" in c}
        assert fixed == {"study_0255": "validation"}

    def test_a_section_for_masks_of_which_there_are_none_is_refused(self, mosmed_root):
        (mosmed_root / "masks" / "masks").mkdir()
        (mosmed_root / "masks" / "study_0255_mask.nii.gz").rename(mosmed_root / "masks" / "masks" / "a_mask.nii.gz")
        assert not any("label" in case for case in mosmed(mosmed_root))
        with pytest.raises(
            FileNotFoundError, match=r"no file masks/study_\*_mask.nii.gz in .*: 'test' would get no case"
        ):
            mosmed(mosmed_root, masked_section="test")

    def test_registry_gives_the_categories(self, mosmed_root):
        table = mosmed_root / "dataset_registry.csv"
        table.write_text(table.read_text().replace("study_0002,CT-0", "study_0002,CT-3"))
        cases = mosmed(mosmed_root, severity=True, registry=table.name)
        assert [c["cls"] for c in cases] == [0, 3, 1, 2, 4]

    def test_registry_and_folders_must_name_the_same_studies(self, mosmed_root):
        table = mosmed_root / "dataset_registry.csv"
        rows = table.read_text().splitlines()
        table.write_text("\n".join([*rows, "study_0003,CT-0,/studies/CT-0/study_0003.nii.gz,"]))
        with pytest.raises(
            FileNotFoundError, match=r"study_0003.nii.gz does not exist, but dataset_registry.csv lists it"
        ):
            mosmed(mosmed_root, registry=table.name)
        table.write_text("\n".join(rows[:-1]))
        with pytest.raises(ValueError, match=r"dataset_registry.csv: study_1110 is not listed"):
            mosmed(mosmed_root, registry=table.name)
        with pytest.raises(FileNotFoundError, match=r"labels.csv does not exist; expected a table with the columns"):
            mosmed(mosmed_root, registry="labels.csv")

    def test_says_what_is_wrong_with_the_folder(self, mosmed_root):
        with pytest.raises(ValueError, match=r"masked_section must be among .*; got 'val'"):
            mosmed(mosmed_root, masked_section="val")
        with pytest.raises(FileNotFoundError, match=r"no file studies/CT-\*/study_\*.nii.gz in .*; give the folder"):
            mosmed(mosmed_root / "studies")
        save(mosmed_root / "masks" / "study_0700_mask.nii.gz", volume(1))
        with pytest.raises(FileNotFoundError, match=r"study_0700_mask.nii.gz: there is no study of that name"):
            mosmed(mosmed_root)
        (mosmed_root / "masks" / "study_0700_mask.nii.gz").unlink()
        for other in ("studies/CT-3/study_0001.nii.gz", "masks/study_0255_mask.nii"):
            save(mosmed_root / other, volume())
            with pytest.raises(ValueError, match=rf"{Path(other).name[:10]}.* are one file of one case"):
                mosmed(mosmed_root)
            (mosmed_root / other).unlink()
        save(mosmed_root / "studies" / "CT-5" / "study_0700.nii.gz", volume())
        with pytest.raises(ValueError, match="its category is 'CT-5'; expected one of"):
            mosmed(mosmed_root)


@pytest.fixture
def autopet_root(tmp_path: Path) -> Path:
    """One patient with a tumor study and a study after therapy, one negative patient."""
    studies = (("PETCT_01140d52d8", "08-13-2005-NA-A-56839", (2, 3), "MELANOMA"),)
    studies += (("PETCT_01140d52d8", "11-02-2005-NA-A-10001", (), "NEGATIVE"),)
    studies += (("PETCT_0143bab87a", "03-04-2003-NA-B-33529", (), "NEGATIVE"),)
    rows = ["Series UID,Subject ID,Modality,File Location,diagnosis,age,sex"]
    for patient, study, slices, diagnosis in studies:
        for name in ("SUV", "CTres", "SEG"):
            save(tmp_path / patient / study / f"{name}.nii.gz", volume(*slices))
        for series in ("CT", "PT", "SEG"):
            location = f"./FDG-PET-CT-Lesions/{patient}/{study}/{series}-1"
            rows.append(f"1.2.3,{patient},{series},{location},{diagnosis},060Y,M")
    (tmp_path / "fdg_metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


class TestAutopet:
    def test_a_study_is_positive_where_its_mask_is_not_empty(self, autopet_root):
        cases = autopet(autopet_root, modalities=("SUV", "CTres"))
        assert [(c["case"][-5:], c["patient"], c["cls"]) for c in cases] == [
            ("56839", "PETCT_01140d52d8", 1),
            ("10001", "PETCT_01140d52d8", 0),
            ("33529", "PETCT_0143bab87a", 0),
        ]
        assert [Path(p).name for p in cases[0]["image"]] == ["SUV.nii.gz", "CTres.nii.gz"]

    def test_the_diagnosis_labels_studies_and_needs_no_mask(self, autopet_root):
        masks = list(autopet_root.glob("*/*/SEG.nii.gz"))
        assert len(masks) == 3
        for path in masks:
            path.unlink()
        cases = autopet(autopet_root, cls_from="diagnosis")
        assert [c["cls"] for c in cases] == [1, 0, 0]
        assert not any("label" in c for c in cases)

    def test_a_table_without_places_labels_by_patient_unless_that_is_ambiguous(self, autopet_root):
        table = autopet_root / "fdg_metadata.csv"
        table.write_text("Subject ID,diagnosis\nPETCT_01140d52d8,LYMPHOMA\nPETCT_0143bab87a,NEGATIVE\n")
        assert [c["cls"] for c in autopet(autopet_root, cls_from="diagnosis")] == [1, 1, 0]
        table.write_text(table.read_text() + "PETCT_01140d52d8,NEGATIVE\n")
        with pytest.raises(ValueError, match=r"one diagnosis for PETCT_01140d52d8/08-.*got \['LYMPHOMA', 'NEGATIVE'\]"):
            autopet(autopet_root, cls_from="diagnosis")
        table.write_text("Subject ID,diagnosis\nPETCT_01140d52d8,LYMPHOMA\n")
        with pytest.raises(ValueError, match=r"one diagnosis for PETCT_0143bab87a/03-.*got \[\]"):
            autopet(autopet_root, cls_from="diagnosis")

    def test_says_what_is_missing(self, autopet_root):
        with pytest.raises(ValueError, match="cls_from must be 'mask' or 'diagnosis'; got 'csv'"):
            autopet(autopet_root, cls_from="csv")
        with pytest.raises(FileNotFoundError, match=r"56839: no file 'PT.nii\*'; complete the case"):
            autopet(autopet_root, modalities=("PT",))
        (autopet_root / "PETCT_0143bab87a" / "03-04-2003-NA-B-33529" / "SEG.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"33529: no file 'SEG.nii\*'"):
            autopet(autopet_root)
        (autopet_root / "fdg_metadata.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"fdg_metadata.csv does not exist"):
            autopet(autopet_root, cls_from="diagnosis")
        with pytest.raises(FileNotFoundError, match=r"no folder PETCT_\*/<study>"):
            autopet(autopet_root / "PETCT_0143bab87a")


DUKE = (10, 8, 6)  # columns, rows, slices


def write_duke(root: Path, boxes: dict[str, tuple[int, ...]], axcodes: str = "LPS") -> None:
    """Scans whose box (first and last column, row, slice, from 1) is filled with 1; DICOM axes run along `axcodes`."""
    columns = "Start Column,End Column,Start Row,End Row,Start Slice,End Slice"
    lines = []
    for patient, (c0, c1, r0, r1, s0, s1) in boxes.items():
        scan = np.zeros(DUKE, np.uint8)
        scan[c0 - 1 : c1, r0 - 1 : r1, s0 - 1 : s1] = 1
        save(root / patient / "post1.nii.gz", scan, affine_of(axcodes, (1.0, 1.5, 3.0), DUKE))
        lines.append(f"{patient},{c0},{c1},{r0},{r1},{s0},{s1}")
    (root / "Annotation_Boxes.csv").write_text(f"Patient ID,{columns}\n" + "\n".join(lines) + "\n")


def filled(path: str) -> list[int]:
    """Box around the voxels that are not zero."""
    where = np.argwhere(np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj))
    return [*where.min(axis=0).tolist(), *(where.max(axis=0) + 1).tolist()]


class TestDuke:
    @pytest.mark.parametrize("axcodes", ["LPS", "RAI", "LAS", "RPI"])
    def test_box_lies_around_the_tumor_of_the_positive_breast(self, tmp_path, axcodes):
        write_duke(tmp_path / "in", {"Breast_MRI_001": (2, 4, 3, 6, 1, 2)}, axcodes)
        cases = {c["case"]: c for c in duke(tmp_path / "in", tmp_path / "out")}
        # The low columns are on the patient's right where columns run to the left.
        side, other = ("right", "left") if axcodes[0] == "L" else ("left", "right")
        positive, negative = cases[f"Breast_MRI_001_{side}"], cases[f"Breast_MRI_001_{other}"]
        assert (positive["cls"], negative["cls"]) == (1, 0)
        assert positive["box"] == filled(positive["image"])
        assert "box" not in negative
        assert not np.asanyarray(nib.Nifti1Image.from_filename(negative["image"]).dataobj).any()
        assert positive["patient"] == negative["patient"] == "Breast_MRI_001"

    def test_halves_are_all_of_the_scan_in_its_place(self, tmp_path):
        numbers = np.arange(np.prod(DUKE), dtype=np.int16).reshape(DUKE)
        write_duke(tmp_path / "in", {"Breast_MRI_001": (2, 4, 3, 6, 1, 2)})
        affine = affine_of("LPS", (1.0, 1.5, 3.0), DUKE, degrees=15.0)
        save(tmp_path / "in" / "Breast_MRI_001" / "post1.nii.gz", numbers, affine)
        place = world(affine, DUKE).reshape(-1, 3)
        seen: list[int] = []
        for case in duke(tmp_path / "in", tmp_path / "out"):
            image = nib.Nifti1Image.from_filename(case["image"])
            values = np.asanyarray(image.dataobj)
            np.testing.assert_allclose(world(image.affine, image.shape), place[values], atol=1e-4)
            seen += values.ravel().tolist()
        assert sorted(seen) == numbers.ravel().tolist()

    def test_a_box_across_the_middle_leaves_the_other_breast_out_and_is_clipped(self, tmp_path):
        write_duke(tmp_path / "in", {"Breast_MRI_002": (3, 6, 3, 6, 1, 2)}, "RAS")  # the middle lies after column 5
        (case,) = duke(tmp_path / "in", tmp_path / "out")
        assert case["case"] == "Breast_MRI_002_left"
        assert case["box"] == filled(case["image"]) == [2, 2, 0, 5, 6, 2]

    def test_tables_that_count_from_0(self, tmp_path):
        write_duke(tmp_path / "in", {"Breast_MRI_001": (2, 4, 3, 6, 1, 2)}, "RAS")
        table = tmp_path / "in" / "Annotation_Boxes.csv"
        table.write_text(table.read_text().replace("001,2,4,3,6,1,2", "001,1,3,2,5,0,1"))
        case = duke(tmp_path / "in", tmp_path / "out", first_index=0)[0]
        assert case["box"] == filled(case["image"])

    def test_the_owners_workbook_is_found_by_itself(self, tmp_path):
        root = tmp_path / "in"
        write_duke(root, {"Breast_MRI_001": (2, 4, 3, 6, 1, 2)})
        table = root / "Annotation_Boxes.csv"
        book = openpyxl.Workbook()
        for line in table.read_text().splitlines():
            book.active.append([int(text) if text.isdigit() else text for text in line.split(",")])
        expected = duke(root, tmp_path / "out")
        book.save(table.with_suffix(".xlsx"))
        table.unlink()
        assert duke(root, tmp_path / "out") == expected
        table.with_suffix(".xlsx").unlink()
        with pytest.raises(FileNotFoundError, match=r"Annotation_Boxes\.xlsx"):
            duke(root, tmp_path / "out")

    def test_says_what_is_wrong_with_the_table(self, tmp_path):
        root, out = tmp_path / "in", tmp_path / "out"
        write_duke(root, {"Breast_MRI_001": (2, 4, 3, 6, 1, 2)})
        table = root / "Annotation_Boxes.csv"
        good = table.read_text()

        def complains(error, message, content, **options):
            table.write_text(content)
            with pytest.raises(error, match=message):
                duke(root, out, **options)

        beyond = r"the box \[2, 4, 3, 6, 1, 7\] .* does not lie in an image of \(10, 8, 6\)"
        complains(ValueError, beyond, good.replace("6,1,2", "6,1,7"))
        complains(ValueError, "does not lie in", good.replace("001,2,4", "001,4,2"))
        complains(ValueError, "does not lie in", good.replace("6,1,2", "6,0,2"))
        complains(ValueError, "box of Breast_MRI_001 is not all numbers", good.replace("6,1,2", "6,1,"))
        complains(ValueError, "2 rows for 1 patients", good + good.splitlines()[1] + "\n")
        complains(ValueError, "Breast_MRI_001 is not listed", good.replace("MRI_001", "MRI_009"), allow_missing=True)
        more = good + "Breast_MRI_003,1,1,1,1,1,1\n"
        complains(
            FileNotFoundError, r"Breast_MRI_003/post1.nii.gz does not exist, but Annotation_Boxes.csv lists", more
        )
        complains(ValueError, "the column 'Start Row' is missing", good.replace("Start Row", "Row"))
        assert not out.exists()
        table.write_text(more)
        assert len(duke(root, out, allow_missing=True)) == 2
        with pytest.raises(ValueError, match="write the parts to another folder"):
            duke(root, root)
        save(root / "Breast_MRI_001" / "pre.nii.gz", np.zeros((3, 3, 3)))
        with pytest.raises(ValueError, match=r"pre.nii.gz and the first volume of its case do not lie on one grid"):
            duke(root, out, modalities=("post1", "pre"), allow_missing=True)
