from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data import (
    check_patients,
    load_datalist,
    make_datalist,
    multi_hot,
    slice_labels,
    split_patients,
    write_datalist,
)
from common.data.datalist import absent_classes
from common.files import atomic_path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def case(name: str, cls: Any = 1, patient: str | None = None) -> dict[str, Any]:
    return {"case": name, "patient": patient or name, "image": f"{name}/flair.nii.gz", "cls": cls}


def datalist(**sections: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": "toy", "classes": ["none", "tumor"], "modalities": ["flair"], "seed": 0, **sections}


class TestDatalistFile:
    def test_returns_what_was_written_with_absolute_paths(self, tmp_path):
        touch(tmp_path, "a/flair.nii.gz", "a/t1.nii.gz", "a/mask.nii.gz")
        written = case("a", [0, 1]) | {"image": ["a/flair.nii.gz", "a/t1.nii.gz"], "label": "a/mask.nii.gz"}
        write_datalist(tmp_path / "new" / "list.json", datalist(training=[written]))
        (loaded,) = load_datalist(tmp_path / "new" / "list.json", "training", dataset_dir=tmp_path)
        assert loaded["image"] == [str(tmp_path / "a/flair.nii.gz"), str(tmp_path / "a/t1.nii.gz")]
        assert loaded["label"] == str(tmp_path / "a/mask.nii.gz")
        assert loaded["cls"] == [0, 1]
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["list.json"]

    def test_names_up_to_three_missing_files(self, tmp_path):
        path = tmp_path / "list.json"
        write_datalist(path, datalist(training=[case(name) for name in "abcd"]))
        with pytest.raises(FileNotFoundError, match=r"4 of 4 files of 'training'") as error:
            load_datalist(path, "training", dataset_dir=tmp_path)
        assert str(error.value).count("flair.nii.gz") == 3

    def test_says_who_writes_a_datalist_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"list.json does not exist: `python -m common prepare` writes"):
            load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path)

    @pytest.mark.parametrize("content", [datalist(training=[case("a")], test=[]), [1]])
    def test_names_an_empty_section(self, tmp_path, content):
        (tmp_path / "list.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"list.json: the section 'test' is absent or empty"):
            load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path)

    def test_names_a_file_that_is_no_json(self, tmp_path):
        (tmp_path / "list.json").write_text("{")
        with pytest.raises(ValueError, match=r"list.json: not a JSON file"):
            load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                datalist(training=[case("a", patient="P1")], test=[case("b", patient="P1")]),
                "patient 'P1' is in 'training'",
            ),
            (
                datalist(training=[case("a")], test=[case("b") | {"image": ["x.nii", f"./{case('a')['image']}"]}]),
                r"the image \./a.* is in 'training' and in 'test'; it belongs in one",
            ),
            (datalist(training=[case("a"), case("a")]), r"the case name 'a' occurs more than once, for a"),
            (datalist(training=[case("a", 2)]), r"from 0 to 1 .*got 2"),
            (datalist(training=[case("a", [0, "1"])]), "case 'a': cls must be"),
            (datalist(training=[case("a", ["none"])]), r"names among \['tumor'\]; got \['none'\]"),
            (datalist(training=[case("a", ["tumor", "tumor"])]), "names among"),
            (datalist(training=[{"case": "a", "patient": "a", "image": "i"}]), r"lacks \['cls'\]: a training needs"),
            (datalist(training=[case("a")]) | {"classes": ["one"]}, "'classes' must list"),
            (datalist(test=[case("a")]), "'training' is absent or empty"),
            (datalist(training="abc"), "'training' must be a list of cases, each a dict; got abc"),
            (datalist(training={"a": case("a")}), "'training' must be a list of cases"),
            ({"training": ["a"]}, "list.json: a split, .* prepare folder DIR --split .*list.json --datalist OUT "),
            (datalist(training=[case("a") | {"case": 7}]), "case 7: case must be a text; got 7"),
            (datalist(training=[case("a") | {"image": 5}]), "case 'a': image must be a text; got 5"),
            (datalist(training=[case("a") | {"image": []}]), "image must be a path, or one a modality"),
            (datalist(training=[case("a") | {"label": ["m"]}]), "case 'a': label must be a text"),
        ],
    )
    def test_writes_nothing_that_it_would_not_read(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=message):
            write_datalist(tmp_path / "list.json", content)
        assert not list(tmp_path.iterdir())

    def test_reading_finds_a_leak_between_other_sections(self, tmp_path):
        touch(tmp_path, "a/flair.nii.gz")
        leak = datalist(training=[case("a")], validation=[case("b", patient="P")], test=[case("c", patient="P")])
        (tmp_path / "list.json").write_text(json.dumps(leak))
        with pytest.raises(ValueError, match=r"patient 'P' is in 'validation' and in 'test' \(case 'c'\)"):
            load_datalist(tmp_path / "list.json", "training", dataset_dir=tmp_path)

    def test_reading_knows_an_image_again_by_its_absolute_path(self, tmp_path):
        touch(tmp_path, "a/flair.nii.gz")
        again = case("b") | {"image": str(tmp_path / "x" / ".." / "a" / "flair.nii.gz")}
        write_datalist(tmp_path / "list.json", datalist(training=[case("a")], test=[again]))
        with pytest.raises(ValueError, match=r"the image .* is in 'training' and in 'test'"):
            load_datalist(tmp_path / "list.json", "training", dataset_dir=tmp_path)

    def test_several_cases_of_a_patient_may_share_a_section(self):
        check_patients(datalist(training=[case("a", patient="P"), case("b", patient="P")], test=[case("c")]))

    def test_slices_that_were_drawn_on_purpose_may_share_a_patient_but_no_image(self):
        drawn = datalist(training=[case("a", patient="P")], test=[case("b", patient="P")]) | {"split": "paper"}
        check_patients(drawn)
        drawn["test"][0]["image"] = drawn["training"][0]["image"]
        with pytest.raises(ValueError, match=r"the image .* is in 'training' and in 'test'"):
            check_patients(drawn)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class TestSliceLabels:
    @pytest.mark.parametrize("axcodes", ["LPS", "RAS", "LPI", "SRA", "PIR"])
    def test_run_from_inferior_to_superior_in_any_orientation(self, tmp_path, axcodes):
        mask = np.zeros((3, 4, 5), np.uint8)
        mask[1, 2, 0] = mask[0, 0, 1] = 7  # the two lowest slices of an RAS volume
        image = nib.Nifti1Image(mask, np.diag([2, 2, 3, 1]))
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
        nib.save(image.as_reoriented(turn), tmp_path / "mask.nii.gz")
        nib.save(image, tmp_path / "image.nii.gz")
        found = slice_labels(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz", class_if_positive=2)
        assert found == [2, 2, 0, 0, 0]
        nib.save(image.as_reoriented(turn), tmp_path / "image.nii.gz")
        assert slice_labels(tmp_path / "mask.nii.gz", tmp_path / "image.nii.gz") == [1, 1, 0, 0, 0]

    def test_belong_to_the_image_that_is_trained_on(self, tmp_path):
        mask = np.zeros((3, 4, 5), np.uint8)
        mask[1, 2, 0] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.diag([-2, -2, 3, 1])), tmp_path / "image.nii.gz")
        with pytest.raises(ValueError, match=r"mask.nii.gz and .*image.nii.gz do not lie on one grid"):
            slice_labels(tmp_path / "mask.nii.gz", [tmp_path / "image.nii.gz", tmp_path / "other.nii.gz"])

    def test_names_a_truncated_file_and_one_of_wrong_shape(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (32, 32, 8), dtype=np.uint8)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "cut.nii.gz")
        (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"cut.nii.gz: cannot be read"):
            slice_labels(tmp_path / "cut.nii.gz", tmp_path / "cut.nii.gz")
        nib.save(nib.Nifti1Image(noise[..., 0], np.eye(4)), tmp_path / "flat.nii.gz")
        with pytest.raises(ValueError, match=r"flat.nii.gz: expected a 3D mask, got the shape \[32, 32\]"):
            slice_labels(tmp_path / "flat.nii.gz", tmp_path / "flat.nii.gz")


class TestMakeDatalist:
    def make(self, root: Path, cases: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        absolute = [c | {"image": str(root / c["image"])} for c in cases]
        options = {"classes": ["none", "tumor"], "modalities": ["flair"]} | options
        return make_datalist(absolute, name="toy", dataset_dir=root, **options)

    def test_splits_by_patient_with_relative_paths_that_load_again(self, tmp_path):
        cases = [case(f"p{i}s{j}", [0, 1], patient=f"p{i}") for i in range(10) for j in range(2)]
        touch(tmp_path, *(c["image"] for c in cases))
        made = self.make(tmp_path, cases, seed=4)
        assert [len(made[s]) for s in ("training", "validation", "test")] == [12, 4, 4]
        assert made["training"][0]["image"] == f"{made['training'][0]['case']}/flair.nii.gz"
        write_datalist(tmp_path / "list.json", made)
        assert len(load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path)) == 4

    @pytest.mark.parametrize(("cls", "word"), [([0, 0], "positive"), (1, "negative")])
    def test_refuses_training_without_positives_or_negatives(self, tmp_path, cls, word):
        with pytest.raises(ValueError, match=f"'training' holds no {word} label"):
            self.make(tmp_path, [case(name, cls) for name in "abcd"])

    def test_cases_that_are_only_scored_need_no_negatives(self, tmp_path, recwarn):
        made = self.make(tmp_path, [case(name, 1) for name in "abcdefgh"], for_scoring=True)
        assert sum(len(made[section]) for section in ("training", "validation", "test")) == 8
        assert not recwarn.list

    def test_warns_of_a_test_part_without_negatives(self, tmp_path):
        cases = [case(name, 1) for name in "abcdefgh"]
        test = split_patients("abcdefgh", fractions=(0.5, 0, 0.5))[2]
        cases = [c | {"cls": 1 if c["case"] in test else [0, 1]} for c in cases]
        with pytest.warns(UserWarning, match="'test' holds no negative label"):
            self.make(tmp_path, cases, fractions=(0.5, 0, 0.5))

    def test_stratified_sections_hold_both_and_cases_with_a_section_lie_there(self, tmp_path):
        cases = [case(f"p{i}", int(i % 5 == 0)) for i in range(20)]
        cases[0]["section"] = cases[1]["section"] = "validation"
        made = self.make(tmp_path, cases, stratify=True)
        assert [len(made[s]) for s in ("training", "validation", "test")] == [12, 3, 5]
        assert [sum(c["cls"] for c in made[s]) for s in ("training", "validation", "test")] == [2, 1, 1]
        assert {"p0", "p1"} <= {c["case"] for c in made["validation"]}
        assert all("section" not in c for s in ("training", "validation", "test") for c in made[s])

    def test_refuses_a_patient_whose_cases_name_two_sections(self, tmp_path):
        cases = [case(f"p{i}", i % 2) for i in range(8)]
        cases += [case(f"q{i}", i) | {"patient": "q", "section": ("test", "training")[i]} for i in range(2)]
        with pytest.raises(ValueError, match=r"patient 'q' is to go to 'test' and to 'training' \(case 'q1'\)"):
            self.make(tmp_path, cases)

    def test_patients_of_several_classes_who_all_have_one_are_stratified_by_it(self, tmp_path):
        cases = [case(f"p{i:02d}", [0, 2 if i % 5 == 0 else 1]) for i in range(20)]
        for seed in range(3):
            made = self.make(tmp_path, cases, stratify=True, seed=seed, classes=["none", "low", "high"])
            rare = [sum(max(c["cls"]) == 2 for c in made[s]) for s in ("training", "validation", "test")]
            assert rare == [2, 1, 1]

    def test_refuses_a_stratified_section_without_negatives_and_counts_them(self, tmp_path):
        cases = [case(f"p{i}", int(i > 1)) for i in range(20)]
        with pytest.raises(
            ValueError, match=r"of 20 patients 18 have positive labels and 2 negative ones, and each of 3"
        ):
            self.make(tmp_path, cases, stratify=True)
        assert len(self.make(tmp_path, cases, stratify=True, fractions=(0.6, 0, 0.4))["test"]) == 8

    def test_refuses_another_number_of_images_than_modalities(self, tmp_path):
        with pytest.raises(ValueError, match="case 'a': 1 image"):
            self.make(tmp_path, [case("a")], modalities=["flair", "t1"])

    def test_refuses_another_number_of_fractions_than_sections(self, tmp_path):
        for fractions in ((0.5, 0.5), (0.4, 0.2, 0.2, 0.2), 0.8):
            with pytest.raises(ValueError, match="fractions must be three numbers, for training, validation, test"):
                self.make(tmp_path, [case(name, [0, 1]) for name in "abcdef"], fractions=fractions)


def test_a_class_that_training_lacks_is_an_error_where_classes_are_split_apart_and_else_told(tmp_path):
    cases = [case(f"p{i}", i % 2) for i in range(8)] + [case("rare", 2) | {"section": "test"}]
    touch(tmp_path, *(c["image"] for c in cases))
    absolute = [c | {"image": str(tmp_path / c["image"])} for c in cases]
    options = {"classes": ["none", "mild", "severe"], "modalities": ["flair"], "dataset_dir": tmp_path}
    with pytest.raises(ValueError, match="'training' holds no severe, which other sections do: nothing can be learned"):
        make_datalist(absolute, name="toy", stratify=True, **options)
    with pytest.warns(UserWarning, match="holds no severe"):
        make_datalist(absolute, name="toy", fractions=(0.9, 0.1, 0), **options)
    make_datalist(absolute, name="toy", for_scoring=True, **options)


def test_classes_that_a_section_lacks_are_named():
    sections = {"training": [{"cls": [0, 1]}], "validation": [{"cls": ["b"]}, {"cls": []}], "test": [{"case": "x"}]}
    assert absent_classes(sections, ("none", "a", "b")) == {"training": ["b"], "validation": ["a"]}


class TestSeveralLabels:
    CLASSES = ("none", "ADH", "FEA", "DCIS")

    @pytest.mark.parametrize(
        ("cls", "expected"), [(["DCIS", "ADH"], [1, 0, 1]), ([], [0, 0, 0]), (0, [0, 0, 0]), (2, [0, 1, 0])]
    )
    def test_names_and_an_index_become_one_entry_a_positive_class(self, cls, expected):
        assert multi_hot(cls, self.CLASSES) == expected

    @pytest.mark.parametrize("cls", [[0, 1], ["IC"], "ADH", 4, -1])
    def test_refuses_what_is_no_label_of_the_whole_case(self, cls):
        with pytest.raises(ValueError, match=r"cls must be an index or a list of names .* got"):
            multi_hot(cls, self.CLASSES)

    def test_names_survive_a_datalist_and_an_empty_list_counts_as_negative(self, tmp_path):
        cases = [case(f"p{i}", ["FEA"] if i % 2 else []) for i in range(8)]
        touch(tmp_path, *(c["image"] for c in cases))
        absolute = [c | {"image": str(tmp_path / c["image"])} for c in cases]
        options = {"classes": list(self.CLASSES), "modalities": ["flair"], "dataset_dir": tmp_path}
        made = make_datalist(absolute, name="toy", fractions=(1, 0, 0), **options)
        write_datalist(tmp_path / "list.json", made)
        loaded = load_datalist(tmp_path / "list.json", "training", dataset_dir=tmp_path)
        assert [c["cls"] for c in loaded] == [c["cls"] for c in cases]
        with pytest.raises(ValueError, match="holds no positive label"):
            make_datalist([c | {"cls": []} for c in absolute], name="toy", **options)
