from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.commands.folds import folds, scans_of_fold

PATIENTS = [f"p{i}" for i in range(12)]


@pytest.fixture
def datalist(tmp_path) -> Path:
    """Twelve patients with two cases each, all in training."""
    cases = [{"case": p + x, "patient": p, "image": f"{p}{x}.nii.gz", "cls": [0, 1]} for p in PATIENTS for x in "ab"]
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"], "training": cases}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path / "list.json"


def patients(path: Path) -> dict[str, list[str]]:
    """Patients of each section, one entry a case."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {section: [case["patient"] for case in content[section]] for section in ("training", "validation", "test")}


def test_each_patient_is_tested_once_and_is_in_one_section_of_a_fold_with_all_cases(datalist):
    folds(str(datalist), count=3)
    dealt = [patients(datalist.with_name(f"list_fold{k}.json")) for k in range(3)]
    assert sorted(p for fold in dealt for p in fold["test"]) == sorted(2 * PATIENTS)
    for fold in dealt:
        assert sorted(p for section in fold.values() for p in section) == sorted(2 * PATIENTS)
        assert sum(len(set(section)) for section in fold.values()) == len(PATIENTS)
    assert not datalist.with_name("list_fold3.json").exists()


def test_files_of_more_folds_that_were_dealt_before_are_named(datalist, caplog):
    for name in ("other_fold9.json", "list_fold9_kept.json"):
        (datalist.parent / name).touch()
    folds(str(datalist), count=3)
    assert not caplog.messages
    folds(str(datalist), count=2)
    (message,) = caplog.messages
    assert message.endswith(f"remove {datalist.with_name('list_fold2.json')}")


def test_a_sixth_of_those_who_are_not_tested_validates(datalist):
    folds(str(datalist), count=2)
    sizes = {section: len(set(ids)) for section, ids in patients(datalist.with_name("list_fold0.json")).items()}
    assert sizes == {"training": 5, "validation": 1, "test": 6}


def test_the_seed_decides(datalist):
    found = []
    for seed in (0, 0, 1):
        folds(str(datalist), count=3, seed=seed)
        found.append([patients(datalist.with_name(f"list_fold{k}.json")) for k in range(3)])
        assert json.loads(datalist.with_name("list_fold0.json").read_text())["seed"] == seed
    assert found[0] == found[1]
    tested = [{frozenset(fold["test"]) for fold in folds_of_a_seed} for folds_of_a_seed in found]
    assert tested[0] != tested[2]


def test_each_file_is_printed_with_the_number_of_its_cases(datalist, capsys):
    folds(str(datalist), count=2)
    lines = capsys.readouterr().out.splitlines()
    counts = "10 training, 2 validation, 12 test"
    assert lines == [f"{datalist.with_name(f'list_fold{k}.json')}: {counts}" for k in range(2)]


def test_slices_that_were_drawn_whatever_patient_they_are_of_are_dealt_by_patient(datalist):
    content = json.loads(datalist.read_text())
    drawn = [case | {"split": "paper"} for case in content["training"]]
    content |= {"split": "paper", "training": drawn[::2], "test": drawn[1::2]}  # each patient is in both
    datalist.write_text(json.dumps(content))
    folds(str(datalist), count=2)
    for k in range(2):
        path = datalist.with_name(f"list_fold{k}.json")
        fold = json.loads(path.read_text())
        assert "split" not in fold
        assert not any("split" in case for section in patients(path) for case in fold[section])
        assert sum(len(set(section)) for section in patients(path).values()) == len(PATIENTS)
        assert sum(map(len, patients(path).values())) == 2 * len(PATIENTS)
    with pytest.raises(ValueError, match="patients of 'test' are in other sections, too: leave out --keep"):
        folds(str(datalist), count=2, keep="test")


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        ({"half": "left"}, None, "halves of scans and whole ones"),
        ({}, "name", r"no section 'name' to keep; it has \['tr"),
    ],
)
def test_cases_that_cannot_be_dealt_together_and_sections_that_are_none_are_refused(datalist, change, keep, message):
    content = json.loads(datalist.read_text())
    content["training"][0] |= change
    datalist.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        folds(str(datalist), count=2, keep=keep)


def test_those_who_validate_have_both_labels_where_that_can_be(datalist):
    """Two of three patients have nothing but positives, and one of ten validates."""
    content = json.loads(datalist.read_text())
    content["training"] = [
        case | {"cls": [0, 1] if int(case["patient"][1:]) % 3 == 0 else [1, 1]} for case in content["training"]
    ]
    datalist.write_text(json.dumps(content))
    for seed in range(5):
        folds(str(datalist), count=2, seed=seed)
        for k in range(2):
            fold = json.loads(datalist.with_name(f"list_fold{k}.json").read_text(encoding="utf-8"))
            mixed = {case["patient"] for case in fold["training"] + fold["validation"] if 0 in case["cls"]}
            if len(mixed) > 1:
                assert mixed & {case["patient"] for case in fold["training"]}
                assert mixed & {case["patient"] for case in fold["validation"]}
    content["training"] = [case | {"cls": [1, 1]} for case in content["training"]]
    datalist.write_text(json.dumps(content))
    folds(str(datalist), count=2)  # where it cannot be, what needs both says so


def test_whole_scans_take_the_place_of_their_parts_in_the_sections_that_are_asked_for(datalist):
    folds(str(datalist), count=3)
    fold = datalist.with_name("list_fold1.json")
    whole = [{"case": f"{p} whole", "patient": p, "image": f"{p}.nii.gz", "cls": [0, 1]} for p in PATIENTS]
    (scans := datalist.with_name("scans.json")).write_text(json.dumps({"classes": ["a", "b"], "test": whole}))
    made = json.loads(scans_of_fold(scans, fold, sections=["test"]).read_text(encoding="utf-8"))
    parts = json.loads(fold.read_text(encoding="utf-8"))
    assert [case["case"] for case in made["test"]] == [f"{p} whole" for p in PATIENTS if p in patients(fold)["test"]]
    assert {**made, "test": None} == {**parts, "test": None}


@pytest.mark.parametrize(
    ("those", "message"),
    [
        (PATIENTS[2:], rf"patients \['{PATIENTS[0]}', '{PATIENTS[1]}'\] of .* have no scan"),
        (["x"], r"\['x'\] have no par"),
    ],
)
def test_scans_are_of_the_patients_of_the_parts(datalist, those, message):
    folds(str(datalist), count=3)
    whole = [{"case": p, "patient": p, "image": f"{p}.nii.gz", "cls": 1} for p in those]
    (scans := datalist.with_name("scans.json")).write_text(json.dumps({"classes": ["a", "b"], "test": whole}))
    with pytest.raises(ValueError, match=message):
        scans_of_fold(scans, datalist.with_name("list_fold1.json"), sections=["test"])


@pytest.mark.parametrize("labels", [[0, 1], [1, 2]])
def test_patients_may_be_numbers_beside_texts(datalist, labels):
    content = json.loads(datalist.read_text()) | {"classes": ["none", "a", "b"]}
    numbers = {patient: k if k % 3 else str(k) for k, patient in enumerate(PATIENTS)}
    for k, case in enumerate(content["training"]):
        case |= {"patient": numbers[case["patient"]], "cls": labels[k // 2 % 2]}
    datalist.write_text(json.dumps(content))
    folds(str(datalist), count=3)
    dealt = [patients(datalist.with_name(f"list_fold{k}.json"))["test"] for k in range(3)]
    assert sorted(str(patient) for test in dealt for patient in test) == sorted(2 * [str(k) for k in range(12)])


def test_a_split_is_no_datalist(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"training": PATIENTS[:6], "test": PATIENTS[6:]}))
    with pytest.raises(ValueError, match="prepare folder DIR --split"):
        folds(str(tmp_path / "split.json"), count=2)
