from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.datasets import folder
from common.datasets.kinds import with_kinds
from tests.pipeline import save

CASES = [
    {"case": "a", "patient": "P1", "cls": [0, 1, 1]},
    {"case": "b", "patient": "P1", "cls": [1, 0, 0]},
    {"case": "c", "patient": "P2", "cls": [0, 0, 0]},
]


def table(folder: Path, *lines: str) -> Path:
    path = folder / "kinds.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_findings_are_of_the_kind_of_their_case_and_other_slices_stay_negative(tmp_path):
    path = table(tmp_path, "case,site,Grade", "b,X,2", "a,Y,3", "c,X,3")
    cases, classes = with_kinds(CASES, path, column="grade")
    assert [case["cls"] for case in cases] == [[0, 2, 2], [1, 0, 0], [0, 0, 0]]
    assert classes == ("none", "2", "3")
    assert [case["cls"] for case in CASES] == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_volumes_are_of_a_kind_as_slices_are(tmp_path):
    whole = [case | {"cls": max(case["cls"])} for case in CASES]
    cases, _ = with_kinds(whole, table(tmp_path, "case,kind", "a,low", "b,high", "c,low"))
    assert [case["cls"] for case in cases] == [2, 1, 0]


def test_masks_of_a_folder_and_a_table_make_classes(tmp_path):
    for name, depth in (("a", 1), ("b", 3)):
        mask = np.zeros((4, 5, 3), np.uint8)
        mask[1, 2, :depth] = 4
        save(tmp_path / name / "flair.nii.gz", np.ones((4, 5, 3), np.uint8))
        save(tmp_path / name / "mask.nii.gz", mask)
    cases, classes = with_kinds(folder(tmp_path), table(tmp_path, "case;kind", "a;glioma", "b;meningioma"))
    assert [case["cls"] for case in cases] == [[1, 0, 0], [2, 2, 2]]
    assert classes == ("none", "glioma", "meningioma")


@pytest.mark.parametrize(
    ("kinds", "classes", "expected", "names"),
    [
        (("10", "2.0", "2"), None, (2, 1), ("none", "2", "10")),
        (("mild", "Severe", "MILD"), None, (1, 2), ("none", "mild", "Severe")),
        (("low", "high", "low"), ("healthy", "low", "high"), (1, 2), ("healthy", "low", "high")),
        (("2.0", "3", ""), ("none", "2", "3"), (1, 2), ("none", "2", "3")),
        (("low", "low", "no"), None, (1, 1), ("none", "low")),
    ],
)
def test_classes_follow_from_the_kinds_unless_they_are_given(tmp_path, kinds, classes, expected, names):
    path = table(tmp_path, "case,kind", *(f"{name},{kind}" for name, kind in zip("abc", kinds, strict=True)))
    cases, found = with_kinds(CASES, path, classes=classes)
    assert (tuple(max(case["cls"]) for case in cases[:2]), found) == (expected, names)


def test_cases_without_a_kind_are_left_out_and_named(tmp_path, caplog):
    cases, classes = with_kinds(CASES, table(tmp_path, "case,kind", "a,low", "b,"))
    assert ([case["case"] for case in cases], classes) == (["a"], ("none", "low"))
    assert "kinds.csv: 2 case(s) left out, without a kind: b, c" in caplog.text


def test_a_kind_may_be_that_of_a_patient_and_a_table_says_whose_a_case_is(tmp_path):
    cases, _ = with_kinds(CASES, table(tmp_path, "patient,kind", "P1,low", "P2,high"))
    assert [(case["patient"], max(case["cls"])) for case in cases] == [("P1", 2), ("P1", 2), ("P2", 0)]
    cases, _ = with_kinds(CASES, table(tmp_path, "case,patient,kind", "a,Q,low", "b,R,low", "c,R,high"))
    assert [case["patient"] for case in cases] == ["Q", "R", "R"]


def test_cases_that_were_not_read_are_told_where_they_have_a_folder(tmp_path, caplog):
    (tmp_path / "d").mkdir()
    path = table(tmp_path, "case,kind", "a,low", "b,low", "c,low", "d,low")
    assert len(with_kinds(CASES, path, root=tmp_path)[0]) == 3
    assert "kinds.csv: 1 row(s) of a case without such images: d" in caplog.text
    with pytest.raises(ValueError, match="no case of the data has a text in the column 'kind'"):
        with_kinds(CASES, table(tmp_path, "case,kind", "a,", "d,low"), root=tmp_path)


def test_cases_without_labels_stay_without(tmp_path):
    plain = [{"case": name, "patient": name} for name in "ab"]
    assert with_kinds(plain, table(tmp_path, "case,kind", "a,low", "b,no"))[0] == plain


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (("case,grade", "a,2"), {}, "column 'kind' is missing; --kind names another; columns with texts are case, gr"),
        (("cases,kind", "a,2"), {}, "the column 'case' is missing; columns with texts are cases, kind; is 'cases' me"),
        (("case,kind", "a,2", "B,3"), {}, r"kinds.csv: row 3, column 'case': the data have no case 'B'"),
        (("case,kind", "aa,2", "a,3"), {}, r"row 2, column 'case': the data have no case 'aa'; is 'a' meant\?"),
        (("case,kind", "a,2", ",3"), {}, "row 3, column 'case': empty"),
        (("case,kind", "a,2", "a,3"), {}, "row 3, column 'kind': '3', but '2' in row 2; case 'a' has one"),
        (("case,kind", "a,2", "a,2"), {}, "row 3, column 'case': 'a' is in row 2, too"),
        (("patient,kind", "P1,2", "P2,2", "P1,"), {}, "row 4, column 'kind': '', but '2' in row 2; patient 'P1' has"),
        (("case,kind", "a,lwo"), {"classes": ["none", "low", "high"]}, r"row 2, column 'kind': 'lwo' \(did you mean"),
        (
            ("case,kind", "a,1"),
            {"classes": ["none", "II", "III"]},
            "row 2, column 'kind': '1' is unknown; accepted: none",
        ),
        (("case,kind", "a,low;high"), {}, "row 2, column 'kind': 'low;high' names several; a case has one kind"),
        (("case,kind", "a,unknown"), {}, "row 2, column 'kind': 'unknown' means that nobody knows; leave the cell emp"),
        (("case,kind", "a,2-Jan"), {}, "row 2, column 'kind': '2-Jan' is a number or a date, and no kind"),
        (("case,kind", "a,#N/A"), {}, "row 2, column 'kind': '#N/A' is a spreadsheet's error"),
        (("case,kind", "a,low", "b,none"), {}, "row 3, column 'kind': 'none', but case 'b' holds a finding"),
        (("case,kind", "c,none"), {}, "the column 'kind' names no kind; row 2, column 'kind': 'none'"),
        (("case,kind,x", "a,,1", "b,,1"), {}, "the column 'kind' is missing"),
        (("case,patient,kind", "a,p7,2", "b,P7,2"), {}, "row 3, column 'patient': 'P7' and 'p7' in row 2 seem to be o"),
        (("case,patient,kind", "a,p7,2", "b,,2"), {}, "row 3, column 'patient': empty, but other rows have one"),
        (("case,patient,kind", "a,p7,2", "b,nan,2"), {}, "row 3, column 'patient': 'nan' names nobody; write who"),
        (("case,kind",), {}, "no row with a case and its kind follows the header"),
    ],
)
def test_says_where_a_table_is_wrong(tmp_path, lines, options, message):
    with pytest.raises(ValueError, match=message):
        with_kinds(CASES, table(tmp_path, *lines), **options)


def test_says_that_there_is_no_table_and_that_several_labels_have_no_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a table, in each row a case and its kind"):
        with_kinds(CASES, tmp_path / "kinds.csv")
    with pytest.raises(ValueError, match=r"case 'a' has the labels \['ADH'\]; a kind is for one yes or no"):
        with_kinds([CASES[0] | {"cls": ["ADH"]}], table(tmp_path, "case,kind", "a,low"))


def test_counts_slices_of_grades_of_the_real_gliomas(real_data):
    root = real_data("lgg")
    cases, classes = with_kinds(folder(root), root / "cases.csv", column="grade")
    labels = [label for case in cases for label in case["cls"]]
    assert (len(cases), classes) == (81, ("none", "2", "3"))
    assert np.bincount(labels).tolist() == [1791, 432, 512]
