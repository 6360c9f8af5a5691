"""What a cross-validation that is started again takes as done, makes anew, or refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import common.commands.crossvalidate
from common.commands.crossvalidate import crossvalidate
from common.files import file_digest


def test_what_is_finished_is_not_run_again(data, runs, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json")
    (out / "fold1" / "evaluation" / "summary.json").unlink()
    runs.clear()
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json")
    assert [(Path(c["output_dir"]).parent.name, c["configs"][-1]) for c in runs] == [("fold1", "calibrated.json")]


def test_what_was_made_from_other_weights_or_settings_is_made_anew(data, runs, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json")
    (out / "fold1" / "training" / "model.pt").write_bytes(b"other weights")
    (out / "fold1" / "training" / "finished").write_text("")  # as of an earlier version
    runs.clear()
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json")
    assert [tuple(Path(call["output_dir"]).parts[-2:]) for call in runs] == [
        ("fold1", "choose"),
        ("fold1", "evaluation"),
    ]
    (out / "fold0" / "choose" / "calibrated.json").write_text('{"gate": 0.5}')  # chosen by hand
    runs.clear()
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json")
    assert [tuple(Path(call["output_dir"]).parts[-2:]) for call in runs] == [("fold0", "evaluation")]


def test_a_finished_training_without_its_weights_is_named(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="")
    (tmp_path / "out" / "fold1" / "training" / "model.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"fold1/training/model.pt is gone, though its training is finished: put"
    ):
        crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="")


def test_weights_that_a_finished_training_has_not_made_are_refused(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="")
    weights = tmp_path / "out" / "fold0" / "training" / "model.pt"
    weights.write_bytes(b"of fold 1, which saw the test patients of fold 0")
    runs.clear()
    with pytest.raises(ValueError, match=r"fold0/training/model.pt is not what the training there has made: put that"):
        crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="")
    assert runs == []


@pytest.mark.parametrize("change", [{"max_epochs": 2}, {"spacing": (1, 1, -1)}, {"seed": 1}])
def test_a_training_of_other_settings_or_cases_is_refused(data, runs, tmp_path, change):
    before = {"choose": "", "folds": 2, "max_epochs": 1}
    for _ in range(2):
        crossvalidate("b", str(data), str(tmp_path / "out"), **before)
    key = "datalist" if "seed" in change else next(iter(change))
    with pytest.raises(ValueError, match=rf"training holds what was made with another {key}; choose another folder"):
        crossvalidate("b", str(data), str(tmp_path / "out"), **{**before, **change})
    assert len(runs) == 4
    lists = [tmp_path / "out" / f"datalist_fold{k}.json" for k in range(2)]  # those with which it was trained
    assert [str(path) for path in lists] == [call["datalist"] for call in runs[::2]]
    assert [file_digest(path) for path in lists] == [
        json.loads((tmp_path / "out" / f"fold{k}" / "training" / "made_from.json").read_text())["datalist"]
        for k in range(2)
    ]


def test_other_masks_are_chosen_from_and_scored_anew_and_other_images_are_refused(data, runs, scans, tmp_path):
    supervised = tmp_path / "supervised.json"
    supervised.write_text('{"train#handlers#4#learns_from": "masks"}')
    by_labels = {"output_dir": str(tmp_path / "labels"), "folds": 2, "choose": "choose.json", "scans": scans}
    by_masks = {**by_labels, "output_dir": str(tmp_path / "masks"), "train": f"train.json,{supervised}"}
    for arguments in (by_labels, by_masks):
        crossvalidate("b", str(data), **arguments)
    for file in ("m3.nii.gz", "mask.nii.gz"):  # of a part, and of a scan
        runs.clear()
        (data / file).write_bytes(b"drawn anew")
        crossvalidate("b", str(data), **by_labels)
        assert [Path(call["output_dir"]).name for call in runs] == 2 * ["choose", "evaluation", "parts"]
    with pytest.raises(ValueError, match=r"made with another set of masks \(the same names, other files\)"):
        crossvalidate("b", str(data), **by_masks)
    (data / "p3.nii.gz").write_bytes(b"another image")
    with pytest.raises(ValueError, match=r"training holds what was made with another set of images \(the same names"):
        crossvalidate("b", str(data), **by_labels)


def test_a_training_of_an_earlier_version_that_did_not_remember_the_images_stands(data, runs, tmp_path):
    for _ in range(2):
        crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="")
        for note in (tmp_path / "out").glob("*/training/made_from.json"):
            content = json.loads(note.read_text())
            del content["images_sha256"]
            note.write_text(json.dumps(content))
    assert [Path(call["output_dir"]).name for call in runs] == 2 * ["training", "evaluation"]


def test_a_try_that_ended_before_it_trained_binds_nobody_and_neither_does_another_device(
    data, runs, tmp_path, monkeypatch
):
    def fails(*_, **__) -> None:
        raise RuntimeError("no memory")

    out = str(tmp_path / "out")
    with monkeypatch.context() as context:
        context.setattr(common.commands.crossvalidate, "run_bundle", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            crossvalidate("b", str(data), out, folds=2, choose="", batch_size=9000)
    crossvalidate("b", str(data), out, folds=2, choose="", batch_size=9)
    runs.clear()
    crossvalidate("b", str(data), out, folds=2, choose="", batch_size=9, device="cpu", num_workers=1, progress=False)
    assert runs == []


def test_a_further_round_keeps_what_was_scored_before(data, runs, tmp_path):
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="choose.json")
    runs.clear()
    crossvalidate("b", str(data), str(tmp_path / "out"), folds=2, choose="choose.json", rounds=1)
    steps = [tuple(Path(str(call["output_dir"])).parts[-2:]) for call in runs]
    assert steps == 2 * [("round1", "training"), ("round1", "choose"), ("round1", "evaluation")]
    assert (tmp_path / "out" / "fold0" / "evaluation" / "summary.json").is_file()


def test_a_further_round_is_refused_where_its_teacher_has_other_thresholds(data, runs, tmp_path):
    out = tmp_path / "out"
    crossvalidate("b", str(data), str(out), folds=2, choose="choose.json", rounds=1)
    (out / "fold0" / "training" / "model.json").write_text('{"chosen": {"threshold": 0.5}}')
    with pytest.raises(ValueError, match="thresholds of its teacher"):
        crossvalidate("b", str(data), str(out), folds=2, choose="choose.json", rounds=1)
