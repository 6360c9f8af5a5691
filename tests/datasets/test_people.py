from __future__ import annotations

import pytest

from common.datasets import labeled_table
from common.datasets.people import same_person
from tests.datasets.tables import write


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pat7", "PAT7"),
        ("007", "7"),
        ("7.0", "7"),
        ("7,0", "7"),
        ("P 07", "P  7"),
        ("\u00c4", "\u00e4"),
        ("P7", "P 7"),
        ("P-7", "P_7"),
        ("P-007", "p7"),
        ("12-3", "12_03"),
    ],
)
def test_two_ways_to_write_one_patient_are_refused_unless_they_are_meant(tmp_path, one, other):
    table = write(tmp_path, "image;label;patient", f"a.tif;1;{one}", f"b.tif;0;{other}")
    message = (
        rf"row 3, column 'patient': '{other}' and '{one}' in row 2 seem to be one patient; .*--patients_as_written"
    )
    with pytest.raises(ValueError, match=message):
        labeled_table(table)
    cases = labeled_table(table, patients_as_written=True)[0]
    assert [case["patient"] for case in cases] == [one, other]


def test_a_mark_that_no_screen_shows_makes_no_second_patient(tmp_path):
    table = write(tmp_path, "image,label,patient", "a.tif,1,P7", "b.tif,0,P7\u200b")
    with pytest.raises(ValueError, match=r"'P7.u200b' and 'P7' in row 2 seem to be one patient"):
        labeled_table(table)


@pytest.mark.parametrize(
    ("one", "other"), [("1-23", "12-3"), ("P1-2", "P12"), ("1 2", "12"), ("70", "7"), ("7,000", "7"), ("A", "B")]
)
def test_numbers_beside_one_another_stay_apart(one, other):
    assert same_person(one) != same_person(other)


def test_words_for_nobody_are_no_patient(tmp_path):
    table = write(tmp_path, "image,label,patient", "a.tif,1,nan", "b.tif,0,P", "c.tif,1,NaN", "d.tif,0,")
    message = r"row 2, column 'patient': 'nan' names nobody; .*; row 4, .*'NaN' names nobody; .*; row 5, .*: empty, but"
    with pytest.raises(ValueError, match=message):
        labeled_table(table)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ("p1/f p2/f p2/g p3/f", "p2 (2)"),
        ("data/p1/x/f data/p2/x/f data/p2/y/f", "p2 (2)"),
        ("p1/f p1/g p2/f p2/g p2/h", "p1 (2), p2 (3)"),
        ("p1/f p2/f", ""),
        ("p1/f p1/g", ""),
        ("f g", ""),
    ],
)
def test_without_the_column_images_that_share_a_folder_are_named(tmp_path, caplog, images, named):
    rows = [f"{name}.tif,{number % 2}" for number, name in enumerate(images.split())]
    labeled_table(write(tmp_path, "image,label", *rows))
    (said,) = caplog.messages
    own = "no column 'patient', so each case counts as a patient of its own"
    assert said.endswith(f"{own}; images of one folder may be of one patient: {named}" if named else own)


def test_the_column_may_not_contradict_the_ids_of_dicom_series_unless_these_are_all_one(tmp_path, caplog):
    pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    from tests.images import dicom_series as dicom

    def save(*ids: str) -> None:
        for number, patient in enumerate(ids):
            slices = dicom.datasets(dicom.stack(2), series=f"1.2.{number}", PatientID=patient)
            dicom.save(tmp_path / f"s{number}", slices)

    save("A", "B", "A")
    rows = ("image,label,patient", "s0,yes,P", "s1,no,Q", "s2,yes,R")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    message = r"a.csv: row 4, column 'patient': 'R', but s2 has the PatientID of s0 in row 2, whose patient is 'P'; if"
    with pytest.raises(ValueError, match=message):
        labeled_table(tmp_path / "a.csv")
    cases = labeled_table(tmp_path / "a.csv", patients_as_written=True)[0]
    assert [case["patient"] for case in cases] == ["P", "Q", "R"]
    (tmp_path / "a.csv").write_text("\n".join(rows).replace(",R", ",P"))
    assert [case["patient"] for case in labeled_table(tmp_path / "a.csv")[0]] == ["P", "Q", "P"]
    assert not caplog.messages
    save("anonymous", "anonymous", "anonymous")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    labeled_table(tmp_path / "a.csv")
    (said,) = caplog.messages
    assert said.endswith("all DICOM series have one PatientID, so the column 'patient' alone counts")
