from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.__main__ import main
from common.commands.prepare import prepare
from common.data import SECTIONS, load_datalist
from common.datasets import write_phantom
from tests.datasets.tables import scan
from tests.pipeline import save


def mosmed_like(root: Path, count: int = 24) -> Path:
    """Half of the studies positive, every third of these with a mask."""
    for number in range(count):
        category = f"CT-{number % 2}"
        save(root / "studies" / category / f"study_{number:04d}.nii.gz", np.full((2, 2, 2), number, np.uint8))
        if number % 6 == 1:
            save(root / "masks" / f"study_{number:04d}_mask.nii.gz", np.ones((2, 2, 2), np.uint8))
    return root


def contents(path: Path) -> dict:
    return json.loads((path / "datalist.json").read_text())


class TestPrepare:
    def test_writes_a_datalist_that_loads(self, tmp_path):
        prepare("mosmed", str(mosmed_like(tmp_path)))
        datalist = contents(tmp_path)
        assert (datalist["classes"], datalist["modalities"]) == (["none", "covid"], ["ct"])
        found = [load_datalist(tmp_path / "datalist.json", section, dataset_dir=tmp_path) for section in SECTIONS]
        assert [len(cases) for cases in found] == [14, 4, 6]

    def test_puts_cases_of_a_fixed_section_there_and_moves_no_other(self, tmp_path):
        mosmed_like(tmp_path)
        prepare("mosmed", str(tmp_path))
        drawn = contents(tmp_path)
        prepare("mosmed", str(tmp_path), masked_section="validation")
        fixed = contents(tmp_path)
        for section in SECTIONS:
            unmasked = {c["case"] for c in drawn[section] if "label" not in c}
            assert {c["case"] for c in fixed[section] if "label" not in c} == unmasked
        assert [sum("label" in c for c in fixed[section]) for section in SECTIONS] == [0, 4, 0]
        assert fixed["masked_section"] == "validation"
        assert "masked_section" not in drawn
        assert not any("section" in c for section in SECTIONS for c in fixed[section])

    @pytest.mark.parametrize("seed", range(3))
    def test_copies_of_an_image_never_lie_in_two_sections(self, tmp_path, caplog, seed):
        root = mosmed_like(tmp_path)
        for number in (3, 7):  # copies of 1 and 3, so of 1 all three
            shutil.copy(root / f"studies/CT-1/study_{1 if number == 3 else 3:04d}.nii.gz", tmp_path / "a.nii.gz")
            (tmp_path / "a.nii.gz").rename(root / f"studies/CT-1/study_{number:04d}.nii.gz")
        (root / "studies/CT-0/study_0024.nii.gz").symlink_to(root / "gone.nii.gz")  # is named where it is read
        prepare("mosmed", str(root), seed=seed)
        datalist = contents(tmp_path)
        patients = {case["case"]: (case["patient"], s) for s in SECTIONS for case in datalist[s]}
        assert len(patients) == 25
        assert {patients[f"study_000{k}"][0] for k in (1, 3, 7)} == {"study_0001"}
        assert len({patients[f"study_000{k}"][1] for k in (1, 3, 7)}) == 1
        assert "2 image(s) are there twice, and their cases now of one patient: " in caplog.text
        assert "study_0003.nii.gz is a copy of" in caplog.text

    def test_passes_options_and_names_through(self, tmp_path, capsys):
        for number in range(6):
            for name in ("t1", "flair"):
                save(tmp_path / "in" / f"P{number}" / f"{name}.nii.gz", np.full((3, 3, 12), number, np.uint8))
            mask = np.zeros((3, 3, 12), np.uint8)
            mask[1, 1, :4] = 1
            save(tmp_path / "in" / f"P{number}" / "lesion.nii.gz", mask)
        prepare(
            "substacks",
            str(tmp_path / "in"),
            dataset_dir=str(tmp_path / "out"),
            classes="none,lesion",
            modalities="t1,flair",
            label="lesion",
            max_slices=4,
            same_patient="P4,P2",
        )
        datalist = contents(tmp_path / "out")
        assert (datalist["classes"], datalist["modalities"]) == (["none", "lesion"], ["t1", "flair"])
        cases = [c for section in SECTIONS for c in datalist[section]]
        assert sorted(c["cls"] for c in cases) == [0] * 12 + [1] * 6
        assert all(not Path(p).is_absolute() for c in cases for p in (*c["image"], c["label"]))
        sections = [{c["patient"] for c in datalist[section]} for section in SECTIONS]
        assert sum(map(len, sections)) == len(set.union(*sections)) == 5  # P2 is P4
        assert "training" in capsys.readouterr().out

    def test_a_table_of_a_spreadsheet_becomes_a_stratified_datalist(self, tmp_path, capsys):
        cases = write_phantom(
            tmp_path / "data", cases=10, shape=(24, 24, 8), healthy_fraction=0.4, axcodes=("LPS", "PIR")
        )
        rows = ["image;label;patient;slice;mask"]
        for case in cases[:-1]:
            name = case["case"]
            label = "Infection" if any(case["cls"]) else "none"
            rows.append(rf"{name}\flair.nii.gz;{label};{name};;{name}\mask.nii.gz")
        last = cases[-1]["case"]
        for number, cls in reversed(list(enumerate(cases[-1]["cls"], 1))):
            rows.append(f"{last}/flair.nii.gz;{'infection' if cls else 'no'};{last};{number};")
        (tmp_path / "labels.csv").write_text("\r\n".join(rows), encoding="utf-16")
        command = ["prepare", "table", str(tmp_path / "labels.csv"), "--dataset_dir", str(tmp_path / "data")]
        main([*command, "--classes", "none,infection", "--first_slice", "1"])
        *counts, end = capsys.readouterr().out.splitlines()
        assert end == f"{tmp_path / 'data' / 'datalist.json'}: 6 training, 2 validation, 2 test"
        assert counts[2] == "test: 2 cases of 2 patients, volumes none 1, infection 1"
        assert contents(tmp_path / "data")["classes"] == ["none", "infection"]
        found = {
            section: load_datalist(tmp_path / "data" / "datalist.json", section, dataset_dir=tmp_path / "data")
            for section in SECTIONS
        }
        truth = {case["case"]: case for case in cases}
        for case in (case for section in SECTIONS for case in found[section]):
            whole = truth[case["case"]]
            assert case["cls"] == (whole["cls"] if case["case"] == last else int(any(whole["cls"])))
            assert case["image"] == whole["image"]
            assert case.get("label") == (None if case["case"] == last else whole["label"])
        for section in SECTIONS:
            assert {bool(np.any(case["cls"])) for case in found[section]} == {True, False}

    def test_a_table_whose_sections_cannot_hold_both_is_refused_with_the_counts(self, tmp_path):
        for n in range(8):
            scan(tmp_path / f"{n}.tif")
        rows = [f"{n}.tif,{'yes' if n < 2 else 'no'},P{n}" for n in range(8)]
        (tmp_path / "a.csv").write_text("\n".join(["image,label,patient", *rows]))
        message = "of 8 patients 2 have positive labels and 6 negative ones, and each of 3 sections needs one of both"
        with pytest.raises(SystemExit, match=message):
            prepare("table", str(tmp_path / "a.csv"))
        assert not (tmp_path / "datalist.json").exists()
        prepare("table", str(tmp_path / "a.csv"), fractions=(0.5, 0, 0.5))
        assert [sum(c["cls"] for c in contents(tmp_path)[section]) for section in SECTIONS] == [1, 0, 1]

    def test_sections_of_a_table_are_kept_and_the_rest_is_drawn(self, tmp_path, capsys):
        rows = [f"{n}.tif,{'ADH;DCIS' if n % 2 else '-'},P{n // 2},{'test' if n < 4 else ''}" for n in range(20)]
        for n in range(20):
            scan(tmp_path / f"{n}.tif")
        (tmp_path / "a.csv").write_text("\n".join(["image,label,patient,split", *rows]))
        prepare("table", str(tmp_path / "a.csv"), classes="none,ADH,FEA,DCIS", fractions=(0.75, 0.25, 0))
        datalist = contents(tmp_path)
        assert [c["case"] for c in datalist["test"]] == ["0", "1", "2", "3"]
        assert [len(datalist[section]) for section in SECTIONS] == [12, 4, 4]
        assert "test: 4 cases of 2 patients, volumes none 2, ADH 2, FEA 0, DCIS 2" in capsys.readouterr().out

    def test_kinds_of_cases_become_classes_and_each_section_holds_both(self, tmp_path, capsys):
        data, kinds = tmp_path / "data", ["case,grade"]
        for case in write_phantom(data, cases=12, shape=(24, 24, 8), healthy_fraction=0):
            kinds.append(f"{case['case']},{2 + (case['case'] > 'phantom_008')}")
        (tmp_path / "kinds.csv").write_text("\n".join(kinds))
        main(["prepare", "folder", str(data), "--kinds", str(tmp_path / "kinds.csv"), "--kind", "grade"])
        datalist = contents(data)
        assert datalist["classes"] == ["none", "2", "3"]
        of_grade = [[max(c["cls"]) for c in datalist[section]] for section in SECTIONS]
        assert [sorted(labels).count(2) for labels in of_grade] == [1, 1, 1]
        assert {0} < {label for section in SECTIONS for c in datalist[section] for label in c["cls"]}
        assert "training: 7 cases of 7 patients, slices none " in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"row 2, column 'grade': '2' is unknown; accepted: none, low"):
            prepare("folder", str(data), kinds=str(tmp_path / "kinds.csv"), kind="grade", classes="none,low")

    @pytest.mark.parametrize("adapter", ["folder", "table"])
    def test_a_table_of_kinds_that_says_whose_cases_are_parts_neither_copies_nor_one_patient(self, tmp_path, adapter):
        for n in range(8):
            save(tmp_path / f"c{n}" / "flair.nii.gz", np.full((2, 2, 2), n, np.uint8))
            save(tmp_path / f"c{n}" / "mask.nii.gz", np.eye(2, dtype=np.uint8)[..., None].repeat(2, 2))
        shutil.copy(tmp_path / "c1" / "flair.nii.gz", tmp_path / "c2" / "flair.nii.gz")
        rows = [f"c{n},P{n},{'low' if n % 4 else 'high'}" for n in range(8)]
        (tmp_path / "kinds.csv").write_text("\n".join(["case,patient,kind", *rows]))
        lines = [f"c{n}/flair.nii.gz,yes,c{n}" for n in range(8)]
        (tmp_path / "labels.csv").write_text("\n".join(["image,label,case", *lines]))
        root = tmp_path if adapter == "folder" else tmp_path / "labels.csv"
        prepare(adapter, str(root), kinds=str(tmp_path / "kinds.csv"), same_patient="P5,P7", for_scoring=True)
        datalist = contents(tmp_path)
        patients = {c["case"]: c["patient"] for section in SECTIONS for c in datalist[section]}
        assert patients == {f"c{n}": f"P{({2: 1, 7: 5}).get(n, n)}" for n in range(8)}

    def test_patients_keep_their_sections_with_other_images_and_masks_of_a_run(self, tmp_path):
        data, run = tmp_path / "data", tmp_path / "run"
        cases = write_phantom(data, cases=8, shape=(24, 24, 8), healthy_fraction=0)
        prepare("folder", str(data))
        before = contents(data)
        for case in (case for section in SECTIONS for case in before[section]):
            save(run / f"{case['case']}_seg.nii.gz", np.ones((24, 24, 8), np.uint8))
        for case in cases[:-1]:
            shutil.copy(case["image"], data / case["case"] / "t1ce.nii.gz")
        options = {"datalist": str(tmp_path / "next.json"), "split": str(data / "datalist.json"), "masks_of": str(run)}
        prepare("folder", str(data), modalities="t1ce", classes="none,glioma", seed=5, **options)
        after = json.loads((tmp_path / "next.json").read_text())
        for section in SECTIONS:
            old = {c["case"]: c for c in before[section] if c["case"] != cases[-1]["case"]}
            assert {c["case"]: c["cls"] for c in after[section]} == {name: c["cls"] for name, c in old.items()}
            for c in after[section]:
                assert c.get("label") == (None if section == "test" else f"../run/{c['case']}_seg.nii.gz")

    def test_papers_split_cuts_volumes_and_warns(self, tmp_path, capsys):
        write_phantom(tmp_path, cases=4, shape=(24, 24, 8), healthy_fraction=0)
        main(["prepare", "folder", str(tmp_path), "--split", "paper"])
        printed = capsys.readouterr().out
        assert "slices of one patient lie in several sections, so scores are of memory, too" in printed
        assert "of 4 patients, slices none" in printed
        datalist = contents(tmp_path)
        cases = [c for section in SECTIONS for c in datalist[section]]
        assert {(c["patient"], c["split"]) for c in cases} == {(f"phantom_{n:03d}", "paper") for n in range(4)}
        assert all(c["case"].startswith(f"{c['patient']}_s") and "of_patient" not in c for c in cases)
        trained = {c["patient"] for c in datalist["training"]}
        assert trained & {c["patient"] for c in datalist["test"]}  # what makes it memory
        assert all(c["image"] == f"slices/{c['case']}/flair.nii.gz" for c in cases)
        for section in SECTIONS:
            assert load_datalist(tmp_path / "datalist.json", section, dataset_dir=tmp_path)
        kept = tmp_path / "slices.json"
        kept.write_text(json.dumps(datalist))
        with pytest.raises(SystemExit, match=r"slices\.json: drawn by --split paper.*name a datalist that is split by"):
            main(["prepare", "folder", str(tmp_path), "--split", str(kept)])
        main(["prepare", "folder", str(tmp_path)])  # the slices are no cases of the folder
        assert sum(len(contents(tmp_path)[section]) for section in SECTIONS) == 4

    def test_a_class_keeps_so_many_of_the_slices_of_the_papers_split(self, tmp_path):
        write_phantom(tmp_path, cases=4, shape=(24, 24, 8), healthy_fraction=0)
        main(["prepare", "folder", str(tmp_path), "--split", "paper", "--at_most", "{'tumor': 2}"])
        training = contents(tmp_path)["training"]
        assert sum(c["cls"] == [1] for c in training) == 2
        assert {c["patient"] for c in training} <= {f"phantom_{n:03d}" for n in range(4)}

    def test_a_class_of_training_keeps_so_many_cases(self, tmp_path):
        for n in range(40):
            scan(tmp_path / f"{n}.tif")
        rows = [f"{n}.tif,{'yes' if n % 2 else 'no'},P{n}" for n in range(40)]
        (tmp_path / "a.csv").write_text("\n".join(["image,label,patient", *rows]))
        main(["prepare", "table", str(tmp_path / "a.csv"), "--at_most", "{'finding': 3}"])
        assert [[c["cls"] for c in contents(tmp_path)[s]].count(1) for s in SECTIONS] == [3, 3, 5]
        assert [[c["cls"] for c in contents(tmp_path)[s]].count(0) for s in SECTIONS] == [12, 3, 5]

    @pytest.mark.parametrize(("word", "cls"), [("false", {0, 1}), ("true", {"finding", ""})])
    def test_options_of_an_adapter_are_true_and_false_as_typed(self, tmp_path, word, cls):
        rows = [f"{k}.nii.gz,{k % 2}" for k in range(12)]
        for k in range(12):
            scan(tmp_path / f"{k}.nii.gz")
        (tmp_path / "a.csv").write_text("\n".join(["image,label", *rows]))
        main(["prepare", "table", str(tmp_path / "a.csv"), "--multi_label", word])
        found = [case["cls"] for section in SECTIONS for case in contents(tmp_path)[section]]
        assert {one if isinstance(one, int) else "".join(one) for one in found} == cls

    def test_the_table_is_not_written_over(self, tmp_path):
        table = tmp_path / "a.csv"
        table.write_text("image,label\n" + "".join(f"{k}.nii.gz,{k % 2}\n" for k in range(12)))
        for k in range(12):
            scan(tmp_path / f"{k}.nii.gz")
        with pytest.raises(SystemExit, match=r"--datalist \S+a.csv: there is such a file, and it is no datalist; name"):
            prepare("table", str(table), datalist=str(table))
        assert table.read_text().startswith("image,label")

    def test_a_template_is_written_where_asked_for(self, tmp_path, capsys):
        for command in (["--template", str(tmp_path / "a.csv")], [str(tmp_path / "b.tsv"), "--template"]):
            main(["prepare", "table", *command])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.tsv"]
        assert f"then: python -m common prepare table {tmp_path / 'b.tsv'}" in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"a.csv exists; name a new file"):
            prepare("table", template=str(tmp_path / "a.csv"))
        with pytest.raises(SystemExit, match="say where the data are: python -m common prepare folder PATH"):
            prepare("folder")

    @pytest.mark.parametrize(
        ("adapter", "options", "message"),
        [
            ("mosmd", {}, "unknown adapter 'mosmd'; use one of table, folder"),
            ("mosmed", {"label": "x"}, "mosmed has no option label; it has severity, registry, masked_section"),
            ("mosmed", {}, r"no file studies/CT-"),
            ("kaggle_3m", {}, "say where with --dataset_dir"),
            ("folder", {"split": "patient"}, "--split is 'patients', 'paper' or a datalist .*; no file 'patient'"),
            ("table", {"positive_from": "x"}, "--positive_from: expected a number or null, got a text: 'x'"),
            ("table", {"first_slice": 1.5}, "--first_slice: expected a whole number, got a number: 1.5"),
            ("table", {"patients_as_written": "no"}, "--patients_as_written: expected true or false, got a text: 'no'"),
            ("folder", {"at_most": 60}, "--at_most is a number a class, e.g. .*; got 60"),
        ],
    )
    def test_ends_with_one_line_that_says_what_to_do(self, tmp_path, adapter, options, message):
        with pytest.raises(SystemExit, match=message):
            prepare(adapter, str(tmp_path), **options)
        assert list(tmp_path.iterdir()) == []
