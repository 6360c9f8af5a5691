from __future__ import annotations

from pathlib import Path

import pytest

from common.data import cases, find_cases


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_names_cases_after_their_folder_and_pairs_masks_where_present(tmp_path):
    touch(tmp_path, "b/flair.nii.gz", "a/flair.nii.gz", "a/mask.nii.gz", "c/other.nii.gz")
    cases = find_cases(tmp_path, "*/flair.nii.gz", label_pattern="*/mask.nii.gz")
    assert cases == [
        {
            "case": "a",
            "patient": "a",
            "image": str(tmp_path / "a/flair.nii.gz"),
            "label": str(tmp_path / "a/mask.nii.gz"),
        },
        {"case": "b", "patient": "b", "image": str(tmp_path / "b/flair.nii.gz")},
    ]


@pytest.mark.parametrize("pattern", ["*/*/flair.nii.gz", "**/flair.nii.gz"])
def test_joins_nested_folders_with_underscores(tmp_path, pattern):
    touch(tmp_path, "site1/p1/flair.nii.gz", "site2/p1/flair.nii.gz")
    assert [c["case"] for c in find_cases(tmp_path, pattern)] == ["site1_p1", "site2_p1"]


def test_names_flat_files_by_their_stem(tmp_path):
    touch(tmp_path, "x.1.nii.gz", "y.nii")
    assert [c["case"] for c in find_cases(tmp_path, "*.nii*")] == ["x.1", "y"]


def test_tells_files_of_one_folder_apart_by_their_stem(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    cases = find_cases(tmp_path, "images/*.nii.gz", label_pattern="labels/*.nii.gz")
    assert [c["case"] for c in cases] == ["images_a", "images_b"]
    assert [c.get("label") for c in cases] == [str(tmp_path / "labels/a.nii.gz"), None]


def test_lists_modalities_in_the_order_of_their_patterns(tmp_path):
    touch(tmp_path, "a/a_t1.nii", "a/a_flair.nii", "b/b_t1.nii", "b/b_flair.nii")
    cases = find_cases(tmp_path, ["*/*_t1.nii", "*/*_flair.nii"])
    assert [Path(p).name for p in cases[1]["image"]] == ["b_t1.nii", "b_flair.nii"]


def test_the_organ_stands_beside_its_image_and_none_may_lack(tmp_path):
    touch(tmp_path, "a/ct.nii.gz", "a/lung.nii.gz", "b/ct.nii.gz", "b/lung.nii.gz", "b/mask.nii.gz")
    for found in (find_cases, cases):
        listed = found(tmp_path, "*/ct.nii.gz", label_pattern="*/mask.nii.gz", organ_pattern="*/lung.nii.gz")
        assert [c["organ"] for c in listed] == [str(tmp_path / name / "lung.nii.gz") for name in "ab"]
        assert ["label" in c for c in listed] == [False, True]
    (tmp_path / "a/lung.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image\(s\) missing: '\*/lung.nii.gz' beside a/ct.nii.gz"):
        find_cases(tmp_path, "*/ct.nii.gz", organ_pattern="*/lung.nii.gz")


@pytest.mark.parametrize("order", [["*/t1.nii", "*/t2.nii"], ["*/t2.nii", "*/t1.nii"]])
def test_names_what_a_case_lacks(tmp_path, order):
    touch(tmp_path, "a/t1.nii", "a/t2.nii", "b/t1.nii")
    with pytest.raises(FileNotFoundError, match=r"1 image.*'\*/t2.nii' beside b/t1.nii"):
        find_cases(tmp_path, order)


def test_says_where_it_looked_when_nothing_matches(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no file matches '\*/flair.nii.gz' in {tmp_path}"):
        find_cases(tmp_path, "*/flair.nii.gz")


def test_refuses_two_masks_for_one_case(tmp_path):
    touch(tmp_path, "a/flair.nii", "a/mask1.nii", "a/mask2.nii")
    with pytest.raises(ValueError, match="fit one case"):
        find_cases(tmp_path, "*/flair.nii", label_pattern="*/mask?.nii")
