from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.datasets import labeled_table
from common.datasets.rows import COLUMNS, _meant
from common.datasets.template import write_template
from tests.datasets.tables import write
from tests.pipeline import affine_of, save


def by_name(found: tuple[list, Any, Any]) -> dict[str, dict]:
    return {case["case"]: case for case in found[0]}


class TestCases:
    def test_rows_become_cases_whatever_spreadsheet_wrote_them(self, tmp_path):
        table = write(
            tmp_path,
            " Label ;IMAGE;Mask;organ;remark,",
            "yes; p2/flair.nii.gz ;p2\\mask.nii.gz;p2/brain.nii.gz;",
            ";;;;",
            "# later;p3/flair.nii.gz;;;",
            'No;"p1\\flair.nii.gz";;p1/brain.nii.gz;',
        )
        cases, classes, modalities = labeled_table(table)
        assert (classes, modalities) == (("none", "finding"), ("image",))
        first, second = (
            {"case": p, "patient": p, "image": str(tmp_path / p / "flair.nii.gz")}
            | {"organ": str(tmp_path / p / "brain.nii.gz"), "cls": cls}
            for p, cls in (("p2", 1), ("p1", 0))
        )
        assert cases == [first | {"label": str(tmp_path / "p2" / "mask.nii.gz")}, second]

    def test_paths_are_relative_to_the_data_and_names_come_from_them_or_from_the_table(self, tmp_path):
        names = "a/t1.nii.gz,a/t2.nii.gz,b/t1.nii.gz,c.nii.gz"
        (tmp_path / "data").mkdir()
        write(tmp_path / "data", names, names)
        rows = (
            "image,label,patient,case",
            "a/t1.nii.gz,1,P1,",
            "a/t2.nii.gz,0,P1,",
            "b/t1.nii.gz,0,P2,B",
            "./c.nii.gz,1,P3,",
        )
        (tmp_path / "labels.csv").write_text("\n".join(rows))
        cases = by_name(labeled_table(tmp_path / "labels.csv", tmp_path / "data"))
        assert {name: case["patient"] for name, case in cases.items()} == {
            "a_t1": "P1",
            "a_t2": "P1",
            "B": "P2",
            "c": "P3",
        }
        assert cases["c"]["image"] == str(tmp_path / "data" / "c.nii.gz")
        (tmp_path / "here").mkdir()
        assert by_name(labeled_table(tmp_path / "labels.csv", tmp_path / "here" / ".." / "data")) == cases
        write(tmp_path, "", "far/x.nii.gz", name="far.csv")
        (tmp_path / "labels.csv").write_text("\n".join((*rows[:2], "../far/x.nii.gz,0,P3,")))
        assert by_name(labeled_table(tmp_path / "labels.csv", tmp_path / "data"))["far"]["patient"] == "P3"

    def test_a_column_a_modality_gives_a_list_of_images_in_the_order_asked_for(self, tmp_path):
        table = write(tmp_path, "image_flair,image_T1ce,label", "a/f.nii.gz,a/t.nii.gz,yes", "b/f.nii.gz,b/t.nii.gz,no")
        cases, _, modalities = labeled_table(table)
        assert modalities == ("flair", "T1ce")
        assert cases[0]["image"] == [str(tmp_path / "a" / name) for name in ("f.nii.gz", "t.nii.gz")]
        cases, _, modalities = labeled_table(table, modalities=["t1ce", "flair"])
        assert modalities == ("t1ce", "flair")
        assert cases[1]["image"] == [str(tmp_path / "b" / name) for name in ("t.nii.gz", "f.nii.gz")]
        assert labeled_table(table, modalities=["T1ce"])[0][0]["image"] == str(tmp_path / "a" / "t.nii.gz")
        plain = write(tmp_path, "flair,image,label", "c/f.nii.gz,d/g.nii.gz,yes", name="b.csv")
        assert labeled_table(plain, modalities=["flair"])[0][0]["image"] == str(tmp_path / "c" / "f.nii.gz")
        assert labeled_table(plain, modalities=["ct"])[0][0]["image"] == str(tmp_path / "d" / "g.nii.gz")
        with pytest.raises(ValueError, match=r"no column image_ct or ct; columns with texts are flair, image, label"):
            labeled_table(plain, modalities=["flair", "ct"])
        with pytest.raises(ValueError, match="--modalities flair,FLAIR: a modality is named twice"):
            labeled_table(plain, modalities=["flair", "FLAIR"])

    def test_labels_may_be_grades_scores_or_several_names(self, tmp_path):
        graded = write(tmp_path, "image,label", *(f"{n}.tif,{n}" for n in range(4)))
        assert [case["cls"] for case in labeled_table(graded)[0]] == [0, 1, 2, 3]
        assert [case["cls"] for case in labeled_table(graded, positive_from=2)[0]] == [0, 0, 1, 1]
        several = write(tmp_path, "image;label;patient", '1.tif;"ADH;DCIS";P1', "2.tif;none;P1", "3.tif;DCIS;P2")
        cases, classes, _ = labeled_table(several, classes=["none", "ADH", "DCIS"])
        assert [case["cls"] for case in cases] == [["ADH", "DCIS"], [], ["DCIS"]]
        assert classes == ("none", "ADH", "DCIS")

    def test_split_fixes_the_section_of_a_case(self, tmp_path):
        table = write(tmp_path, "image,label,split", "a.tif,1,Train", "b.tif,0,val", "c.tif,0,", "d.tif,1,TEST")
        assert [case.get("section") for case in labeled_table(table)[0]] == ["training", "validation", None, "test"]


class TestSlices:
    @pytest.fixture
    def table(self, tmp_path: Path):
        """Writes a table over a volume of 4 axial slices, stored as sagittal ones, and a case beside it."""
        save(tmp_path / "a" / "ct.nii.gz", np.zeros((3, 4, 2), np.uint8), affine_of("PIR", (1, 2, 3), (3, 4, 2)))

        def fill(*slices: tuple[Any, Any]) -> Path:
            rows = [
                f"a/ct.nii.gz,{label},{number},{'P1' if n == 2 else ''}" for n, (number, label) in enumerate(slices)
            ]
            write(tmp_path, "image,label,slice,patient", "b.nii.gz,no,,P2")
            (tmp_path / "a.csv").write_text(
                "\n".join(["image,label,slice,patient", *rows[:2], "b.nii.gz,no,,P2", *rows[2:]])
            )
            return tmp_path / "a.csv"

        return fill

    def test_a_label_a_slice_runs_from_bottom_to_top_in_any_order_of_rows(self, table):
        cases = by_name(labeled_table(table((2, "yes"), (0, "no"), (3, "yes"), (1, "no"))))
        assert (cases["a"]["cls"], cases["a"]["patient"], cases["b"]["cls"]) == ([0, 0, 1, 1], "P1", 0)
        path = table(("4.0", "no"), (1, "yes"), (2, "no"), ("3.0", "no"))
        assert by_name(labeled_table(path, first_slice=1))["a"]["cls"] == [1, 0, 0, 0]
        assert by_name(labeled_table(path, first_slice=1, slices_from="top"))["a"]["cls"] == [0, 0, 0, 1]

    @pytest.mark.parametrize(
        ("slices", "message"),
        [
            (
                [1, 2, 3, 4],
                r"rows 2 to 6, column 'slice': .*slices 0 to 3; without a row: 0, not there: 4; .*--first_slice 1",
            ),
            ([0, 1, 3], r"rows 2 to 5, column 'slice': .*has slices 0 to 3; without a row: 2$"),
            ([0, 1, 2, 3, 1], r"row 7, column 'slice': 1 is in row 3 as well"),
            ([0, 1, "x", 3], r"row 5, column 'slice': 'x' is no whole number"),
            ([0, 1, 2, ""], r"row 6, column 'image': a/ct.nii.gz is the image of row 2, column 'image' as well"),
        ],
    )
    def test_every_slice_has_one_row(self, table, slices, message):
        with pytest.raises(ValueError, match=message):
            labeled_table(table(*((n, "no") for n in slices)))

    def test_rows_of_one_image_agree_and_have_one_label_each(self, table):
        path = table((0, "no"), (1, "A;B"), (2, "A"), (3, "no"))
        with pytest.raises(ValueError, match=r"row 3, column 'label': several labels at once are for whole cases"):
            labeled_table(path, classes=["no", "A", "B"])
        path.write_text(path.read_text().replace("A;B,1,", "no,1,P3").replace(",A,", ",no,"))
        with pytest.raises(
            ValueError, match=r"row 5, column 'patient': 'P1', but 'P3' in row 3; rows of one image must"
        ):
            labeled_table(path)


def test_dicom_series_say_whose_they_are_and_keep_names_out_of_the_cases(tmp_path):
    pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    from tests.images import dicom_series as dicom

    for folder, series, patient in (
        ("x", "1.2.1", "A"),
        ("zyxwv", "1.2.2", "A"),
        ("m", "1.2.3", "B"),
        ("m", "1.2.4", "C"),
    ):
        slices = dicom.datasets(dicom.stack(), series=series, PatientID=patient)
        dicom.save(tmp_path / folder, slices, (series + "_{}.dcm").format)
    rows = ("image,label", "x/,yes", "zyxwv,no", "m/1.2.3,no", "m/1.2.4,yes")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    cases = labeled_table(tmp_path / "a.csv")[0]
    names = [case["case"] for case in cases]
    assert names[0] == "x"
    assert all(
        name.startswith(start) for name, start in zip(names[1:], ("series_", "m_series_", "m_series_"), strict=True)
    )
    assert [case["patient"] for case in cases] == ["x", "x", *names[2:]]
    assert cases[2]["image"] == str(tmp_path / "m" / "1.2.3")
    (tmp_path / "empty").mkdir()
    single = next((tmp_path / "x").iterdir()).name
    (tmp_path / "a.csv").write_text("\n".join((*rows[:2], "empty,no", f"x/{single},no")))
    with pytest.raises(
        ValueError, match=r"row 3, .*a folder without a DICOM scan; name a file.*; row 4.* is one file of a"
    ):
        labeled_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("\n".join((*rows, "m/1.2.9,no")))
    with pytest.raises(FileNotFoundError, match=r"1 of 5 files do not exist: row 6, column 'image': .*m/1.2.9"):
        labeled_table(tmp_path / "a.csv")


class TestErrors:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (("image,label",), r"a.csv: no row with an image and its label follows the header"),
            (
                ("My study", "", "image,label", "a.tif,1"),
                r"a.csv: row 1 does not name the columns, but row 3 does; take",
            ),
            (("My study;;", "image;label;mask", "a.tif;1;"), r"a.csv: row 1 does not name the columns, but row 2 does"),
            (("image,lable", "a.tif,1"), r"the column 'label' is missing; .* are image, lable; is 'lable' "),
            (("images,label", "a.tif,1"), r"the column 'image' \(or 'image_<modality>'\) is missing; .*is 'images' "),
            (("image,label,Label", "a.tif,1,mask"), r"row 1: the column 'label' occurs more than once"),
            (("image,label", "a.tif,1,b"), r"row 2: more cells than the header has columns; .* needs quotes"),
            (("image,label", "a.tif,", ",1"), r"row 2, column 'label': the label is empty"),
            (("image,label", "a.tif,1", ",1"), r"row 3, column 'image': empty"),
            (("image,label", "a.tif,1", "./a.tif,1"), r"row 3, column 'image': ./a.tif is the image of row 2, column"),
            (("image_a,image_b,label", "a.tif,a.tif,1"), r"row 2, column 'image_b': .* row 2, column 'image_a'"),
            (("image,image_b,label", "a.tif,b.tif,1"), r"image and image_b are both columns .* --modalities b"),
            (("image,label,case", "a.tif,1,../a"), r"row 2, column 'case': '../a' cannot be the name of files"),
            (("image,label,case", "a.tif,1,x", "b.tif,1,x"), r"row 3: the case name 'x' is that of row 2 as well"),
            (("image,label,patient", "a.tif,1,P", "b.tif,1,"), r"row 3, column 'patient': empty, but other rows"),
            (("image,label,organ", "a.tif,1,o.tif", "b.tif,1,"), r"row 3, column 'organ': empty, but other rows"),
            (("image,label,patient_id", "a.tif,1,P"), r"the column 'patient_id' looks like 'patient'; rename it"),
            (("image,label,participant_id", "a.tif,1,P"), r"the column 'participant_id' looks like 'patient'; rename"),
            *(
                ((f"image,label,{name}", "a.tif,1,P"), rf"the column '{name}' looks like 'patient'; rename it")
                for name in (
                    "Subject ID",
                    "Study Patient",
                    "Patient Name",
                    "patient-no",
                    "patient_ref",
                    "PatientID",
                    "MRN",
                    "PatID",
                    "Subjekt",
                    "Fallnummer",
                )
            ),
            (("image,label,set", "a.tif,1,test"), r"the column 'set' looks like 'split'; rename it"),
            (("image,label,Cohort", "a.tif,1,Train", "b.tif,0,TEST", "c.tif,0,"), "'Cohort' looks like 'split'"),
            (("image,label,mask", "a.tif,1,a.tif"), r"row 2, column 'mask': a.tif is in column 'image', too"),
            (("image,label,organ", "a.tif,1,./a.tif"), r"row 2, column 'organ': ./a.tif is in column 'image', too"),
            (("image,label,organ,mask", "a.tif,1,o.tif,o.tif"), r"row 2, column 'mask': o.tif is in column 'organ'"),
            (("image,label", "a.tif,1", "b.tif,#N/A"), r"row 3, column 'label': '#N/A' is a spreadsheet's error"),
            (
                ("image,label,patient", "a.tif,1,#REF!", "#N/A,1,P"),
                r"'patient': '#REF!' is .*; row 3, column 'image': '#N/A' is a spreadsheet's error",
            ),
            (
                ("image,label,patient", "a.tif,1,1.23E+15"),
                r"'1.23E\+15', from which a spreadsheet has cut digits; form",
            ),
            (("image,label,patient", "a.tif,1,1e+05"), r"'1e\+05', from which a spreadsheet has cut digits; form"),
            (
                ("image,label,patient", "a.tif,1,2024-02-01 00:00:00"),
                r"column 'patient': '2024-02-01 00:00:00' is a date to the spreadsheet, not a name; format",
            ),
            (("image,label", "a.tif,01:02:00", "b.tif,no"), r"'01:02:00' is a number or a date, and no label"),
            (("image,label,split", "a.tif,1,dev"), r"row 2, column 'split': 'dev'; expected training, valid"),
            (
                ("image,label,patient,split", "a.tif,1,P,test", "b.tif,1,P,", "c.tif,0,P,val"),
                r"row 4, column 'split': patient 'P' is in validation here, and in test in row 2",
            ),
        ],
    )
    def test_name_row_and_column(self, tmp_path, rows, message):
        with pytest.raises(ValueError, match=message):
            labeled_table(write(tmp_path, *rows))

    def test_missing_files_are_counted_and_the_first_three_shown(self, tmp_path):
        table = write(tmp_path, "image,label,mask", *(f"{n}.tif,1,m{n}.tif" for n in range(5)))
        for name in ("0.tif", "m1.tif", "2.tif", "3.tif", "m4.tif"):
            (tmp_path / name).unlink()
        message = (
            r"5 of 10 files do not exist: row 2, column 'image': \S+/0.tif; row 3, column 'mask': \S+/m1.tif; row 4, "
        )
        with pytest.raises(
            FileNotFoundError, match=message + r"column 'image': \S+/2.tif; …. Paths are relative to .*dataset_dir"
        ):
            labeled_table(table)
        with pytest.raises(FileNotFoundError, match=r"b.csv does not exist; expected a table"):
            labeled_table(tmp_path / "b.csv")

    def test_what_others_call_patients_and_sections_is_told_from_what_they_say_of_them(self):
        names = {
            "patient": "Patientenkennung, patient_identifier, identifier, Subject-Code, pseudonym",
            "split": "data_split, train_test, train/test, split_set, usage, is_test, training set, validation",
            "": "series identifier, PCR test, patient age, contrast usage, training date, valid until",
        }
        found = {name: _meant(name.lower(), COLUMNS) for some in names.values() for name in some.split(", ")}
        assert found == {name: one for one, some in names.items() for name in some.split(", ")}

    def test_unknown_columns_are_left_out_and_named(self, tmp_path, caplog):
        rows = ("image,label,Patient Age,masks,empty", "a.tif,1,50,m.tif,", "b.tif,1,#N/A,n.tif,")
        labeled_table(write(tmp_path, *rows))
        left_out, no_patient = caplog.messages
        assert left_out.endswith("a.csv: columns left out: 'Patient Age', 'masks' (is 'mask' meant?)")
        assert no_patient.endswith("a.csv: no column 'patient', so each case counts as a patient of its own")

    def test_columns_without_a_name_are_left_out_and_told_where_they_hold_texts(self, tmp_path, caplog):
        table = write(tmp_path, "image,,label,patient,", "a.tif,,1,P,", "b.tif,,0,Q,test", "c.tif,,0,R,train")
        labeled_table(table)
        assert caplog.messages == [f"{table}: columns without a name left out: number 5 (row 3: 'test')"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.xlsx"])
def test_a_template_is_a_table_without_cases(tmp_path, name):
    if name == "a.xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="writing .xlsx is optional")
    write_template(tmp_path / name)
    with pytest.raises(ValueError, match="no row with an image and its label follows"):
        labeled_table(tmp_path / name)
    with pytest.raises(FileExistsError, match="exists; name a new file"):
        write_template(tmp_path / name)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "p.nii.gz")
    if name == "a.xlsx":
        book = openpyxl.load_workbook(tmp_path / name)
        book.active.append(["p.nii.gz", True, 17])
        book.save(tmp_path / name)
    else:
        with (tmp_path / name).open("a") as file:
            file.write(f"p.nii.gz{'	' if name == 'a.tsv' else ','}yes{'	' if name == 'a.tsv' else ','}17\n")
    (case,) = labeled_table(tmp_path / name)[0]
    assert (case["case"], case["patient"], case["cls"]) == ("p", "17", 1)
    with pytest.raises(ValueError, match=r"a.txt: a table is a .csv, .tsv or .xlsx file"):
        write_template(tmp_path / "a.txt")


@pytest.mark.parametrize(("there", "said"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_whose_accents_another_system_wrote_otherwise_is_found(tmp_path, there, said):
    there, said = (unicodedata.normalize(form, "M\u00fcller.tif") for form in (there, said))
    table = write(tmp_path, "image,label", f"{there},yes", "a.tif,no")
    table.write_text(f"image,label\n{said},yes\na.tif,no\n", encoding="utf-8")
    assert Path(labeled_table(table)[0][0]["image"]).name == there != said
