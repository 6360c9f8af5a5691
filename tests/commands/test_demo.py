from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import common.commands.fit_runs
from common.commands.demo import configs_of, demo, reach_of, table
from common.report.scores import BASELINES
from tests.bundles.conftest import run_bundle

SCORE = {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A demo's folder, and what it printed; its runs are forked."""
    home = tmp_path_factory.mktemp("demo")
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.commands.fit_runs, "run_bundle", run_bundle)
        patch.setattr("builtins.print", lambda *lines, **_: printed.extend(lines))
        demo(str(home), cases=8, epochs=8)
    return home, "\n".join(printed)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_demo_trains_as_many_epochs_as_asked(finished):
    assert [row["epoch"] for row in rows(finished[0] / "training" / "training_log.csv")] == [
        str(n) for n in range(1, 9)
    ]


def test_demo_scores_the_test_cases_alone_and_marks_all(finished):
    home, _ = finished
    datalist = json.loads((home / "data" / "datalist.json").read_text())
    tested = {case["case"] for case in datalist["test"]}
    assert {row["case"] for row in rows(home / "evaluation" / "metrics.csv")} == tested
    assert 0 < len(tested) < 8
    assert len(rows(home / "masks" / "predictions.csv")) == 8
    assert len(list((home / "masks").glob("*_heatmap.nii.gz"))) == 8
    assert len(list((home / "masks").glob("*_seg.nii.gz"))) == 8


def test_evaluation_and_inference_give_a_case_the_same_probability_by_the_trained_weights(finished):
    home, _ = finished
    inferred = {row["case"]: row["probability_tumor"] for row in rows(home / "masks" / "predictions.csv")}
    scored = {row["case"]: row["probability_tumor"] for row in rows(home / "evaluation" / "predictions.csv")}
    assert scored
    assert scored.items() <= inferred.items()


def test_demo_prints_the_scores_that_it_found_and_where_the_files_are(finished):
    home, printed = finished
    assert table(json.loads((home / "evaluation" / "summary.json").read_text())) in printed
    for name in ("evaluation", "masks", "evaluation/report.html"):
        assert f"{home / name}\n" in f"{printed}\n"
    assert "report" in (home / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_only_the_ensemble_trains_on_its_masks_unless_asked(monkeypatch, tmp_path):
    given: list[int] = []

    def fit(*_, rounds, **__):
        given.append(rounds)
        raise InterruptedError

    monkeypatch.setattr("common.commands.demo.fit", fit)
    monkeypatch.setattr("common.commands.demo.phantom_dataset", lambda home, **_: home)
    for bundle, asked in (("gp_unet_brats", None), ("ensemble_gradcam_brats", None), ("ensemble_gradcam_brats", 0)):
        with pytest.raises(InterruptedError):
            demo(str(tmp_path), bundle, rounds=asked)
    assert given == [0, 1, 0]


def test_table_parts_what_was_learned_from_what_was_not():
    summary = {"dice": SCORE, "dice_empty": SCORE | {"mean": 0.125}, "dice_baseline_gated": SCORE}
    summary["dice_baseline_opened"] = SCORE | {"mean": 0.25}
    lines = table(summary | {"slices": {"auc": 0.875, "auc_position_alone": 0.625}}).splitlines()
    assert [line[:47].strip() for line in lines[1:-1]] == [
        *("learned from yes/no labels", "method (mask)", "threshold in marked slices"),
        *("not learned (thresholds fitted with the masks o", "empty mask", "threshold without thin parts"),
        "slice position alone",
    ]
    assert [lines[number][47:].split() for number in (2, 3, 5, 6, 7)] == [
        ["0.500", "0.250", "-", "0.750", "0.875"],
        ["0.500", "0.250", "-", "0.750", "0.875"],
        ["0.125", "0.250", "-", "0.750", "-"],
        ["0.250", "0.250", "-", "0.750", "-"],
        ["-", "-", "0.625"],
    ]
    assert len({len(lines[number]) for number in (0, 2, 3, 5, 6, 7)}) == 1
    assert lines[-1] == "learning gained +0.250 Dice over the best that is not learned"


def test_each_baseline_has_a_row_and_a_name_of_its_own_in_80_columns():
    shown = table({**dict.fromkeys(["dice", *BASELINES], SCORE), "slices": {"auc": 0.875}}).splitlines()
    rows = [line for line in shown if "0.250 - 0.750" in line]
    assert len({row[:47] for row in rows}) == len(BASELINES) + 1
    assert {len(row) for row in rows} == {80}


def test_table_says_what_is_undefined():
    shown = table({"dice": {"mean": None, "low": None, "high": None}, "slices": {"auc": None}})
    assert shown.splitlines()[2].split()[2:] == ["n/a", "n/a", "-", "n/a", "n/a"]
    assert "position" not in shown
    assert "gained" not in shown


def test_each_bundle_takes_its_config_for_the_clinics_phantom_where_it_has_one():
    assert configs_of("gp_unet_brats") == ["phantom.json", "clinic.json"]
    assert configs_of("tonno_mosmed")[:1] == ["phantom.json"]


def test_masks_reach_two_voxels_and_where_a_rule_reaches_further_that(finished):
    assert [reach_of(bundle)["start#refine#dilate_mm"] for bundle in ("gp_unet_brats", "tonno_mosmed")] == [6.0, 9.0]
    chosen = json.loads((finished[0] / "training" / "calibrated.json").read_text())
    assert chosen["refine"]["dilate_mm"] == 6.0
