from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import common.commands.crossvalidate
from common.commands.crossvalidate import crossvalidate, over_folds


def test_every_patient_is_a_test_patient_once_and_never_trains_then(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=3, choose="choose.json", seed=1)
    tested: list[str] = []
    for call in runs:
        if call["configs"][0] == "train.json":
            content = json.loads(Path(call["datalist"]).read_text(encoding="utf-8"))
            test = {c["patient"] for c in content["test"]}
            assert not test & {c["patient"] for s in ("training", "validation") for c in content[s]}
            tested += sorted(test)
    assert sorted(tested) == [f"p{i}" for i in range(9)]


def test_each_fold_trains_then_chooses_then_evaluates_with_what_was_chosen(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="choose.json", max_epochs=1)
    assert [call["configs"] for call in runs] == 2 * [
        ["train.json"],
        ["inference.json", "evaluate.json", "choose.json"],
        ["inference.json", "evaluate.json", "calibrated.json"],
    ]
    for call in runs:
        assert call["max_epochs"] == 1
        assert call["bundle"] == "b"
    for training, choosing, evaluating in (runs[:3], runs[3:]):
        weights = str(Path(str(training["output_dir"])) / "model.pt")
        assert choosing["ckpt"] == evaluating["ckpt"] == weights
        assert training["datalist"] == choosing["datalist"] == evaluating["datalist"]


@pytest.mark.parametrize(
    ("masks", "chosen"),
    [("all", "calibrate.json"), ("some", "calibrate_labels.json"), ("none", "calibrate_labels.json")],
)
def test_thresholds_are_chosen_from_labels_where_there_are_no_masks(data, runs, tmp_path, monkeypatch, masks, chosen):
    path = data / "datalist.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for case in content["training"][{"all": 18, "some": 1, "none": 0}[masks] :]:
        case.pop("label")
    path.write_text(json.dumps(content))
    fake, said = common.commands.crossvalidate.run_bundle, []

    def choosing(bundle: str, configs: list[str], **overrides: object) -> None:
        said.append(Path(configs[-1]).name)
        fake(
            bundle,
            ["choose.json" if name.startswith("calibrate_") or name == chosen else name for name in configs],
            **overrides,
        )

    monkeypatch.setattr(common.commands.crossvalidate, "run_bundle", choosing)
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2)
    assert said[:2] == ["train.json", chosen]


def test_each_round_learns_from_the_former_network_and_its_thresholds_and_the_last_is_scored(data, runs, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json", rounds=2)
    for k in range(2):
        first, _, second, _, third, choosing, evaluating = runs[7 * k : 7 * k + 7]
        assert first["configs"] == ["train.json"]
        assert "teacher_ckpt" not in first
        for student, teacher in ((second, first), (third, second)):
            assert student["configs"] == ["train.json", "train_refine.json"]  # the teacher's choice lies beside it
            assert student["teacher_ckpt"] == str(Path(str(teacher["output_dir"])) / "model.pt")
            assert student["datalist"] == first["datalist"]
        assert choosing["ckpt"] == evaluating["ckpt"] == str(Path(str(third["output_dir"])) / "model.pt")
        assert Path(str(evaluating["output_dir"])) == out / f"fold{k}" / "round2" / "evaluation"
    assert len({call["output_dir"] for call in runs}) == len(runs) == 14


@pytest.fixture
def drawing(tmp_path, runs, monkeypatch) -> None:
    """A bundle `b` whose second training wants maps, has a natural threshold, and draws one finding."""
    folder = tmp_path / "bundles" / "b" / "configs"
    folder.mkdir(parents=True)
    keys = {"train": {"classes": ["none", "tumor"], "spacing": [1.5, 1.5, -1]}, "train_draw": {}, "inference": {}}
    keys |= {"train_refine": {"pseudo_dir": "x", "natural_threshold": 0.5}, "choose": {"natural_threshold": None}}
    for name, content in keys.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(common.commands.crossvalidate, "bundle_root", lambda bundle: tmp_path / "bundles" / bundle)


@pytest.mark.usefixtures("drawing")
def test_a_further_round_is_the_second_training_of_fit(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="choose.json", rounds=1)
    first, choosing, maps, student, again, evaluating = runs[:6]
    teacher = str(Path(str(first["output_dir"])) / "model.pt")
    assert (maps["configs"], maps["ckpt"], maps["section"]) == (["inference.json"], teacher, "training")
    assert student["configs"] == ["train.json", "train_refine.json", "train_draw.json"]
    assert (student["teacher_ckpt"], student["pseudo_dir"]) == (teacher, maps["output_dir"])
    natural = [call.get("natural_threshold") for call in (first, choosing, maps, student, again, evaluating)]
    assert natural == [None, None, None, None, 0.5, None]
    assert len(runs) == 12


def test_a_further_round_without_thresholds_is_refused_before_anything_is_trained(data, runs, tmp_path):
    with pytest.raises(ValueError, match="--rounds: pseudo-masks are cut at what --choose chooses"):
        crossvalidate("b", str(data), str(tmp_path), choose="", rounds=1)
    assert not runs


@pytest.mark.usefixtures("drawing")
def test_maps_that_teach_are_made_by_all_that_makes_masks(data, runs, tmp_path):
    evaluate = "inference.json,mosmed.json,evaluate.json"
    crossvalidate("b", str(data), str(tmp_path), folds=2, choose="choose.json", rounds=1, evaluate=evaluate)
    assert runs[2]["configs"] == ["inference.json", "mosmed.json"]


@pytest.mark.usefixtures("drawing")
def test_volumes_that_are_not_resampled_are_not_drawn(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path), folds=2, choose="choose.json", rounds=1, spacing=(-1, -1, -1))
    assert runs[3]["configs"] == ["train.json", "train_refine.json"]


def test_scores_are_averaged_over_folds_and_cases_listed_with_their_fold(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=3, choose="")
    result = json.loads((tmp_path / "out" / "crossvalidation.json").read_text())
    assert result["dice.mean"] == {"mean": pytest.approx(0.1), "std": pytest.approx(np.std([0, 0.1, 0.2], ddof=1))}
    assert result["class_scores.masks.all.median"] == {"mean": 1.0, "std": 1.0}
    assert not {"name", "class_scores.note"} & result.keys()
    with open(tmp_path / "out" / "metrics.csv", encoding="utf-8", newline="") as file:
        assert [(row["fold"], row["case"]) for row in csv.DictReader(file)] == [
            (str(k), case) for k in range(3) for case in "ab"
        ]


def test_only_numbers_that_every_fold_has_are_averaged():
    result = over_folds([{"a": {"x": 1.0}, "b": 2, "c": None}, {"a": {"x": 3.0}, "c": 1.0}])
    assert result == {"a.x": {"mean": 2.0, "std": pytest.approx(2**0.5, abs=1e-4)}}


def test_training_takes_the_parts_and_what_follows_the_scans_of_the_same_patients(data, runs, scans, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=3, choose="choose.json", scans=scans)
    steps = [Path(call["output_dir"]).name for call in runs]
    assert steps == 3 * ["training", "choose", "evaluation", "parts"]
    for k in range(3):
        lists = [json.loads(Path(call["datalist"]).read_text(encoding="utf-8")) for call in runs[4 * k : 4 * k + 4]]
        parts, whole = lists[0], lists[1]
        assert lists == [parts, whole, whole, parts]
        for section in ("training", "validation", "test"):
            patients = {case["patient"] for case in parts[section]}
            assert [case["case"] for case in whole[section]] == sorted(patients)
        assert runs[4 * k + 3]["configs"] == ["inference.json", "evaluate.json", "calibrated.json"]
        assert runs[4 * k + 3]["ckpt"] == runs[4 * k + 2]["ckpt"]


def test_scores_of_scans_and_of_parts_are_told_apart(data, runs, scans, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(data), str(out), folds=3, choose="", scans=scans)
    result = json.loads((out / "crossvalidation.json").read_text())
    assert result["volumes.method.auc"]["mean"] == pytest.approx(0.1)
    assert result["parts.volumes.method.auc"]["mean"] == pytest.approx(0.6)
    runs.clear()
    crossvalidate("b", str(data), str(out), folds=3, choose="", scans=scans)
    assert not runs


@pytest.fixture
def kept(data) -> Path:
    """The nine patients without masks, and as test section two others with masks."""
    path = data / "datalist.json"
    cases = [{"case": x, "patient": x, "image": f"{x}.nii.gz", "cls": 1, "label": f"{x}_mask.nii.gz"} for x in "ab"]
    content = json.loads(path.read_text())
    for case in content["training"]:
        del case["label"]
    for case in cases:
        (data / case["image"]).touch()
        (data / case["label"]).touch()
    path.write_text(json.dumps(content | {"test": cases}))
    return data


def test_a_kept_section_is_in_no_fold_and_scored_by_each_folds_network(kept, runs, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(kept), str(out), folds=3, choose="choose.json", keep="test")
    assert [Path(call["output_dir"]).name for call in runs] == 3 * ["training", "choose", "evaluation", "kept"]
    dealt: list[str] = []
    for k in range(3):
        training, _, evaluation, scored = runs[4 * k : 4 * k + 4]
        assert scored["ckpt"] == evaluation["ckpt"]
        assert scored["configs"] == evaluation["configs"]
        fold, held = (json.loads(Path(call["datalist"]).read_text(encoding="utf-8")) for call in (evaluation, scored))
        assert training["datalist"] == evaluation["datalist"]
        assert [case["case"] for case in held["test"]] == ["a", "b"]
        assert held["training"] == fold["training"]
        dealt += [case["patient"] for case in fold["test"]]
    assert sorted(set(dealt)) == [f"p{i}" for i in range(9)]
    result = json.loads((out / "crossvalidation.json").read_text())
    assert result["labels.volumes.auc"]["mean"] == pytest.approx(0.8)  # of the folds' own, which have no mask
    assert result["kept.dice.mean"]["mean"] == pytest.approx(0.1)
    assert (out / "kept_metrics.csv").is_file()
    assert not (out / "metrics.csv").exists()
    runs.clear()
    crossvalidate("b", str(kept), str(out), folds=3, choose="choose.json", keep="test")
    assert not runs
    with pytest.raises(ValueError, match=r"no section 'validation' to keep; it has \['training', 'test'\]"):
        crossvalidate("b", str(kept), str(out), folds=3, keep="validation")


def test_the_section_that_prepare_gave_all_masks_is_kept_unasked(kept, runs, tmp_path, capsys):
    path = kept / "datalist.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"masked_section": "test"}))
    crossvalidate("b", str(kept), str(tmp_path / "out"), folds=3, choose="")
    assert [Path(call["output_dir"]).name for call in runs] == 3 * ["training", "evaluation", "kept"]
    assert "'test' holds all masks and is kept, as by --keep test" in capsys.readouterr().out
    fold = json.loads(next((tmp_path / "out").glob("*_fold0.json")).read_text())
    assert "masked_section" not in fold  # whose test part is another
    runs.clear()
    crossvalidate("b", str(kept), str(tmp_path / "dissolved"), folds=3, choose="", keep="")
    assert [Path(call["output_dir"]).name for call in runs] == 3 * ["training", "evaluation"]
    assert "holds all masks" not in capsys.readouterr().out


def test_a_scan_of_a_patient_without_parts_is_refused_before_anything_runs(data, runs, scans, tmp_path):
    content = json.loads(Path(scans).read_text(encoding="utf-8"))
    content["test"][0]["patient"] = "somebody"
    Path(scans).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"scans.json: patients \['somebody'\] have no parts in .*; name them alike"):
        crossvalidate("b", str(data), str(tmp_path / "out"), folds=3, scans=scans)
    assert not runs
