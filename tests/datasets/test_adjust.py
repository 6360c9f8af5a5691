from __future__ import annotations

import json

import pytest

from common.datasets.adjust import at_most, of_one_patient, with_masks_of, with_sections_of

CASES = [{"case": f"c{n}", "patient": f"P{n // 2}", "label": "own", "cls": n % 3} for n in range(6)]
CLASSES = ("none", "mild", "severe")


@pytest.mark.parametrize("as_datalist", [True, False])
def test_patients_keep_the_sections_of_a_datalist_and_others_are_drawn(tmp_path, caplog, as_datalist):
    patients = {"training": ["P1", "P8"], "test": ["P0"]}
    content = {s: [{"patient": p} for p in ids] for s, ids in patients.items()} if as_datalist else patients
    (tmp_path / "split.json").write_text(json.dumps(content | {"seed": 0}))
    cases = with_sections_of(CASES, tmp_path / "split.json")
    assert [case.get("section") for case in cases] == ["test", "test", "training", "training", None, None]
    assert "split.json: without 1 patient(s), who are drawn: P2" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"training": ["P9"]}', r"holds none of the patients, e.g. 'P0'; it has P9, …"),
        ('{"training": ["P1"], "test": ["P1"]}', "patient 'P1' is in 'training' and in 'test'"),
        ("[1]", "holds none of the patients"),
        ("training", "is not a JSON file"),
    ],
)
def test_sections_of_other_patients_are_refused(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        with_sections_of(CASES, tmp_path / "split.json")


def test_a_section_that_the_data_name_is_not_overruled(tmp_path):
    (tmp_path / "split.json").write_text('{"training": ["P1"], "test": ["P0"]}')
    same, other = ([*CASES[2:3], CASES[0] | {"section": section}] for section in ("test", "validation"))
    assert [case["section"] for case in with_sections_of(same, tmp_path / "split.json")] == ["training", "test"]
    with pytest.raises(ValueError, match=r"of 1 patient\(s\), e.g. 'P0' \(validation there, test here\): leave out"):
        with_sections_of(other, tmp_path / "split.json")


def test_masks_of_a_run_take_the_place_of_the_datas_and_labels_stay(tmp_path, caplog):
    for name in ("c0_seg.nii.gz", "c1_seg.png", "c1_heatmap.tif"):
        (tmp_path / name).touch()
    cases = with_masks_of(CASES[:3], tmp_path)
    expected = [str(tmp_path / "c0_seg.nii.gz"), str(tmp_path / "c1_seg.png"), None]
    assert [case.get("label") for case in cases] == expected
    assert [case["cls"] for case in cases] == [0, 1, 2]
    assert "no mask of 1 case(s), e.g. c2" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no mask of any case, e.g. c4_seg.nii.gz; is it of a run\?"):
        with_masks_of(CASES[4:], tmp_path)


def test_a_class_keeps_so_many_cases_and_a_smaller_draw_is_part_of_a_larger_one():
    many = [{"case": f"{n:03d}", "cls": n % 3 if n % 2 else [0, n % 3]} for n in range(90)]

    def drawn(count: int, seed: int = 0) -> list[str]:
        kept = at_most(many, {"severe": count}, CLASSES, seed=seed)
        assert [case["case"] for case in kept] == sorted(case["case"] for case in kept)
        assert sum(int(case["case"]) % 3 < 2 for case in kept) == 60
        return [case["case"] for case in kept if int(case["case"]) % 3 == 2]

    assert [len(drawn(count)) for count in (0, 5, 20, 40)] == [0, 5, 20, 30]
    assert set(drawn(5)) < set(drawn(20))
    assert drawn(5) == drawn(5) != drawn(5, seed=1)
    assert drawn(5) != [case["case"] for case in many if int(case["case"]) % 3 == 2][:5]


@pytest.mark.parametrize("counts", [{"bad": 3}, {"mild": -1}, {"mild": "3"}, {"mild": True}])
def test_refuses_what_is_no_number_of_a_class(counts):
    with pytest.raises(ValueError, match="expected a number for each of none, mild, severe"):
        at_most(CASES, counts, CLASSES)


def test_several_labels_at_once_cannot_be_counted():
    with pytest.raises(ValueError, match="case 'a' has several labels at once"):
        at_most([{"case": "a", "cls": ["mild", "severe"]}], {"mild": 1}, CLASSES)


def test_scans_of_one_patient_are_his_who_is_named_first():
    cases = [{"case": name, "patient": name} for name in ("a", "b", "c")]
    assert [case["patient"] for case in of_one_patient(cases, ["c", "a"])] == ["c", "b", "c"]
    with pytest.raises(ValueError, match=r"same_patient: no patient d, e among the cases, e\.g\. a\."):
        of_one_patient(cases, ["a", "d", "e"])
