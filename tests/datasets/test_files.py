from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.datasets.files import _text, load_volume, one_file, read_rows, read_table, told_by
from tests.pipeline import affine_of, save, world


class TestReadTable:
    def test_csv_of_a_spreadsheet_program_gives_texts_by_column(self, tmp_path: Path):
        path = tmp_path / "table.csv"
        path.write_bytes('Patient ID,Größe,\r\nA,1,\r\n"B, C",,\r\n'.encode("utf-8-sig"))
        assert read_table(path, ("Patient ID",)) == [
            {"Patient ID": "A", "Größe": "1"},
            {"Patient ID": "B, C", "Größe": ""},
        ]

    def test_first_sheet_of_a_workbook_reads_as_its_csv(self, tmp_path: Path):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for row in (("Patient ID", "Start Row"), ("A", 12), (None, None), ("B", None)):
            book.active.append(row)
        book.create_sheet("other").append(("Patient ID",))
        book.save(tmp_path / "table.xlsx")
        (tmp_path / "table.csv").write_text("Patient ID,Start Row\nA,12\nB,\n")
        columns = ("Patient ID", "Start Row")
        assert read_table(tmp_path / "table.xlsx", columns) == read_table(tmp_path / "table.csv", columns)

    @pytest.mark.parametrize(
        ("encoding", "separator"), [("utf-8", ";"), ("utf-8-sig", ","), ("utf-16", "\t"), ("utf-8", "\t")]
    )
    def test_rows_keep_their_numbers_whatever_separates_their_cells(self, tmp_path: Path, encoding, separator):
        rows = (("Größe", " label "), (), ('"a, b; c"', "\xa0yes"), ("", ""), ('"two\nlines"', ""), ("d", "no"))
        (tmp_path / "a.csv").write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
        expected = [(1, ["Größe", "label"]), (3, ["a, b; c", "yes"]), (5, ["two\nlines", ""]), (6, ["d", "no"])]
        assert read_rows(tmp_path / "a.csv") == expected

    @pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffsep=;"])
    def test_the_line_that_names_the_separator_for_excel_is_no_row(self, tmp_path: Path, first):
        (tmp_path / "a.csv").write_bytes(f"{first}\r\nimage;label, or more\r\na;1\r\n".encode())
        assert read_rows(tmp_path / "a.csv") == [(1, ["image", "label, or more"]), (2, ["a", "1"])]

    def test_the_first_sheet_that_is_shown_and_not_empty_is_read_and_named_beside_others(self, tmp_path: Path, caplog):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for name in ("hidden", "empty", "labels"):
            book.create_sheet(name).append(("image", name) if name != "empty" else ())
        book["hidden"].sheet_state = "hidden"
        del book["Sheet"]
        book.active = 1
        book.save(tmp_path / "a.xlsx")
        assert read_rows(tmp_path / "a.xlsx") == [(1, ["image", "labels"])]
        assert not caplog.messages
        book.create_sheet("later").append(("more",))
        book.save(tmp_path / "a.xlsx")
        assert read_rows(tmp_path / "a.xlsx") == [(1, ["image", "labels"])]
        assert caplog.messages == [f"{tmp_path / 'a.xlsx'}: the sheet 'labels' is read, and not 'later'"]

    def test_a_text_in_cells_merged_over_rows_is_refused(self, tmp_path: Path):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for row in ((), ("Labels", None), ("image", "split"), ("a", "test"), ("b", None)):
            book.active.append(row)
        for cells in ("A2:B2", "C3:C9"):  # a title, and cells without a text
            book.active.merge_cells(cells)
        book.save(tmp_path / "a.xlsx")
        assert len(read_rows(tmp_path / "a.xlsx")) == 4
        book.active.delete_rows(1, 2)
        book.active.merged_cells.ranges.clear()
        book.active.merge_cells("B2:B3")
        book.save(tmp_path / "a.xlsx")
        with pytest.raises(
            ValueError, match="column 'split': the cells B2:B3 are merged, so that 'test' stands in row 2"
        ):
            read_rows(tmp_path / "a.xlsx")

    def test_rows_that_a_sheet_hides_are_read_and_told(self, tmp_path: Path, caplog):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for row in (("image", "label"), ("a", "yes"), ("bad", "yes"), ("worse", "no"), ("b", "no")):
            book.active.append(row)
        for number in (3, 4, 9):  # the last is empty
            book.active.row_dimensions[number].hidden = True
        book.save(tmp_path / "a.xlsx")
        assert len(read_rows(tmp_path / "a.xlsx")) == 5
        (said,) = caplog.messages
        assert said.endswith("hides, or filters out, are read as the others: 3, 4; delete what is not meant")

    def test_a_formula_without_a_value_is_named(self, tmp_path: Path):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for row in (("image", "label"), ("a.nii", '=IF(1=1,"yes","no")')):
            book.active.append(row)
        book.save(tmp_path / "a.xlsx")
        with pytest.raises(ValueError, match=r"a.xlsx: row 2: a formula that was never computed; open the file, and"):
            read_rows(tmp_path / "a.xlsx")

    def test_numbers_of_a_sheet_are_texts_without_a_point(self, tmp_path: Path):
        openpyxl = pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        book = openpyxl.Workbook()
        for row in (("label", "score"), (), (1.0, 2.5), (True, None)):
            book.active.append(row)
        book.save(tmp_path / "a.XLSX")
        assert [_text(value) for value in (3.0, 3.5, None)] == ["3", "3.5", ""]
        assert read_rows(tmp_path / "a.XLSX") == [(1, ["label", "score"]), (3, ["1", "2.5"]), (4, ["True"])]

    def test_a_number_that_a_sheet_has_cut_is_not_taken_for_what_was_typed(self):
        numbers = (1.23456789012345e16, 12345678901234500, 12345678901234567, 123456789012345.0)
        texts = ["1.23456789012345e+16", "1.23456789012345e+16", "12345678901234567", "123456789012345"]
        assert [_text(number) for number in numbers] == texts

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", "a\nb\nGröße".encode("cp1252"), "a.csv: line 3 is not UTF-8; save the table as 'CSV UTF-8'"),
            ("a.csv", b'a,b\n"1,2\n', "a.csv: line 2: .*; are there quotes that do not close"),
            ("a.xlsx", b"a,b\n", "a.xlsx: cannot be read as .xlsx"),
        ],
    )
    def test_names_a_file_that_is_no_table(self, tmp_path: Path, name, content, message):
        if name.endswith("xlsx"):
            pytest.importorskip("openpyxl", reason="reading .xlsx is optional")
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / name)

    def test_says_how_to_go_on_without_openpyxl(self, tmp_path: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "openpyxl", None)
        (tmp_path / "table.xlsx").write_bytes(b"")
        with pytest.raises(
            ImportError, match=r"table.xlsx: reading .xlsx needs openpyxl: pip install .*xlsx.*, or save"
        ):
            read_table(tmp_path / "table.xlsx", ("a",))

    def test_names_the_file_and_the_column(self, tmp_path: Path):
        with pytest.raises(
            FileNotFoundError, match=r"none.csv does not exist; expected a table with the columns \('a',\)"
        ):
            read_table(tmp_path / "none.csv", ("a",))
        for content in ("b\n1\n", "a\n"):
            (tmp_path / "table.csv").write_text(content)
            with pytest.raises(ValueError, match=r"table.csv: the column 'a' is missing, or no row follows"):
                read_table(tmp_path / "table.csv", ("a",))


class TestLoadVolume:
    def test_turns_axes_to_ras_and_leaves_voxels_in_place(self, tmp_path: Path):
        array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        affine = affine_of("PSL", (1, 2, 3), array.shape, degrees=10.0)
        image = load_volume(save(tmp_path / "a.nii.gz", array, affine))
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        values = np.asanyarray(image.dataobj)
        assert values.dtype == np.int16
        place = world(affine, array.shape).reshape(-1, 3)
        np.testing.assert_allclose(world(image.affine, image.shape), place[values], atol=1e-5)

    def test_names_an_unreadable_file(self, tmp_path: Path):
        noise = np.random.default_rng(0).integers(255, size=(20, 20, 20)).astype(np.uint8)
        path = Path(save(tmp_path / "a.nii.gz", noise))
        for content in (path.read_bytes()[:3000], b"no volume"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"a.nii.gz: cannot be read"):
                load_volume(path)


def test_a_file_of_the_first_pattern_that_any_matches_is_taken_if_it_is_alone(tmp_path: Path):
    for name in ("b.nii", "a_Segm.nii.gz"):
        (tmp_path / name).touch()
    assert one_file(tmp_path, "b.nii*", "*Segm.nii*") == str(tmp_path / "b.nii")
    assert one_file(tmp_path, "c.nii", "*Segm.nii*") == str(tmp_path / "a_Segm.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"no file 'c.nii' \(nor d.nii\); complete the case"):
        one_file(tmp_path, "c.nii", "d.nii")
    (tmp_path / "b.nii.gz").touch()
    with pytest.raises(ValueError, match=r"b.nii and .*b.nii.gz are one file of one case; .*keep the right one"):
        one_file(tmp_path, "b.nii*", "*Segm.nii*")


def test_a_table_says_one_thing_of_each(tmp_path: Path):
    table = tmp_path / "registry.csv"

    def told(*rows: str) -> dict[str, str]:
        table.write_text("\n".join(["file,grade,more", *rows]) + "\n")
        return told_by(table, "file", "grade")

    assert told("a,1,x", "b,2,x", "a,1,y", ",,z", "c,,z", "a,,z") == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match=r"registry.csv: a is listed twice, with grade '1' and '2'"):
        told("a,1,x", "a,2,x")
