from __future__ import annotations

from dataclasses import replace

import pytest

from common.report.cases import case_rows
from common.report.scores import baselines, compared, facts, headline
from common.report.supervision import learned, supervision
from common.report.tables import Run, read_run

PATIENTS = (("a", 1.0), ("b", 0.0))


@pytest.fixture
def run(run_dir) -> Run:
    return read_run(run_dir)


def test_the_headline_is_the_mean_dice_with_the_strongest_baseline_beside_it(run):
    head = headline(run)
    assert head["value"] == pytest.approx(run.summary["dice"]["mean"])
    assert (head["low"], head["high"]) == (run.summary["dice"]["low"], run.summary["dice"]["high"])
    assert head["on"] == "4 cases with a ground-truth mask"
    assert head["rival"]["key"] == "dice_baseline_gated"  # .35 on average, against .3 of the plain threshold
    assert head["rival"]["learned"]


def test_a_mean_says_what_healthy_cases_count_in_it(run):
    ill = dict(run.summary["dice"]) | {"mean": 0.25, "count": 3}
    note = headline(replace(run, summary=dict(run.summary) | {"dice_positive": ill}))["note"]
    assert note.endswith(" Without a lesion: 1 case, each 1 where nothing is marked, else 0; 0.250 in the 3 with one.")
    alike = dict(run.summary) | {"dice_positive": run.summary["dice"]}
    assert headline(replace(run, summary=alike))["note"].endswith("bootstrap over patients.")


def test_the_raw_map_of_the_method_is_no_baseline_of_it(run):
    summary = dict(run.summary) | {"dice_raw": dict(run.summary["dice"]) | {"mean": 0.99}}
    assert headline(replace(run, summary=summary))["rival"]["key"] == "dice_baseline_gated"


def test_differences_to_a_baseline_draw_patients_with_all_of_their_cases():
    """Of two patients, one gains in each of his scans and the other loses: a draw may hold one of them alone."""
    rows = {
        f"{p}{k}": {"case": f"{p}{k}", "patient": p, "dice": d, "other": 0.5} for p, d in PATIENTS for k in range(6)
    }
    assert compared(rows, "other")["difference"] == pytest.approx({"value": 0.0, "low": -0.5, "high": 0.5})
    apart = compared({name: row | {"patient": None} for name, row in rows.items()}, "other")["difference"]
    assert -0.5 < apart["low"] < apart["high"] < 0.5  # without names each scan is a patient of its own


def test_the_method_is_compared_with_each_baseline_case_by_case(run):
    dices = [row["dice"] for row in run.metrics.values()]
    threshold = next(row for row in baselines(run) if row["key"] == "dice_baseline_threshold")
    assert (threshold["better"], threshold["cases"]) == (sum(dice > 0.3 for dice in dices), 4)
    assert threshold["difference"]["value"] == pytest.approx(sum(dices) / 4 - 0.3)
    assert threshold["difference"]["low"] <= threshold["difference"]["value"] <= threshold["difference"]["high"]
    assert not threshold["learned"]


def test_without_masks_the_headline_is_how_labels_are_told_apart(run):
    head = headline(replace(run, summary={}, metrics={}))
    assert (head["measure"], head["value"], head["on"]) == (
        *("AUC of volumes", 1.0),
        "3 positive and 1 negative volumes",
    )
    assert head["rival"]["value"] == 0.5


def test_without_labels_nothing_is_scored_and_cases_are_counted(run):
    head = headline(replace(run, summary={}, metrics={}, label_summary={}))
    assert (head["measure"], head["value"], head["rival"]) == ("cases with a mask", 4, None)
    assert "nothing can be scored" in head["note"]


def test_a_picture_has_a_mask_where_pixels_are_marked(run):
    pictures = {"a": {"area_pixels": 500}, "b": {"area_pixels": 0}, "c": {"area_pixels": 1}}
    only = replace(run, summary={}, metrics={}, labels={}, label_summary={}, predictions=pictures)
    assert headline(only)["value"] == 2
    assert {row["case"]: row["pixels"] for row in case_rows(only)} == {"a": 500, "b": 0, "c": 1}


def test_facts_name_whom_they_are_of(run):
    found = {fact["name"]: fact for fact in facts(run)}
    assert found["AUC of volumes"]["value"] == "1.000 (1.00 to 1.00)"
    assert found["AUC of volumes"]["on"] == "3 positive, 1 negative volumes"
    assert found["sensitivity / specificity of volumes"]["on"].endswith("at the gate")


def test_facts_are_those_of_labels_of_classes_of_position_of_slides_and_of_masks_in_this_order(run):
    summary = {"slices": {"auc_position_alone": 0.61}, "auc": {"tumor": 0.75}}
    classes = {"accuracy": 0.8, "confusion": [[1, 0], [1, 3]]}
    predictions = {"a": {"volume_ml": 2.0}, "b": {"volume_ml": 3.0}, "c": {"volume_ml": None}}
    found = facts(replace(run, summary=summary, class_summary=classes, predictions=predictions))
    assert [tuple(fact.values()) for fact in found[2:]] == [
        ("class accuracy", "0.800", "5 slices; the most frequent class alone 0.800"),
        ("AUC of a slice's position alone", "0.610", "what needs no image"),
        ("AUC of tumor", "0.750", "4 slides with a label"),
        ("median volume of a mask", "2.5 ml", "2 cases"),
    ]
    assert facts(replace(run, label_summary={}, predictions={})) == []


def test_a_score_of_few_patients_says_why_it_has_no_interval_and_no_other_does(run):
    volumes = run.label_summary["volumes"]
    few = volumes | {"auc_interval": [None, None], "note": "no interval: few"}
    told = replace(run, label_summary={"note": "of memory", "volumes": few, "slices": volumes})
    found = {fact["name"]: fact["on"] for fact in facts(told)}
    assert found["AUC of volumes"] == "3 positive, 1 negative volumes; no interval: few"
    assert found["AUC of slices"] == "3 positive, 1 negative slices"
    assert headline(replace(told, summary={}, metrics={}))["note"].endswith("0.5 is chance. No interval: few.")
    told = replace(told, label_summary={"note": "of memory", "volumes": volumes, "slices": few})
    assert headline(replace(told, summary={}, metrics={}))["note"].endswith("0.5 is chance.")
    assert [fact["on"].endswith("; no interval: few") for fact in facts(told)[::2]][:2] == [False, True]


def test_supervision_says_labels_of_what_and_masks_for_what(run):
    source = {"labels": "slices", "masks": "none", "cases": 12, "patients": 12, "positives": 152, "negatives": 177}
    source["section"] = "validation"
    weights = {"seen": {"cases": 64, "patients": 60}, "chosen_from": source}
    said = " ".join(supervision(replace(run, record={"weights": weights, "section": "test"})))
    assert "Training saw 64 cases of 60 patients." in said
    assert "chosen from yes/no labels of slices of 12 cases of the validation section (152 positive, 177" in said
    assert "Masks used for these choices: none." in said
    assert "Masks of 4 cases of the test section were opened here, to score." in said
    assert "fitted to masks of training patients" in said  # the baselines, which the run has


def test_what_is_not_recorded_is_not_claimed(run):
    assert "not recorded" in supervision(replace(run, record={}))[0]
    said = " ".join(supervision(replace(run, record={"weights": {"sha256": "0"}}, metrics={})))
    assert "Nothing beside the weights says" in said
    assert "No ground-truth mask was opened here." in said


def test_masks_that_chose_settings_are_named(run):
    weights = {"chosen_from": {"masks": "12 cases, to choose these settings", "cases": 12}}
    said = " ".join(supervision(replace(run, record={"weights": weights})))
    assert "Masks used for these choices: 12 cases, to choose these settings." in said
    assert "yes/no labels" not in said


def test_pseudo_masks_are_told_back_to_the_network_that_had_labels_alone():
    first = {"trained_on": {"labels": "slices", "masks": "none"}, "chosen_from": {"labels": "slices", "masks": "none"}}
    second = {
        "trained_on": {"labels": "slices", "masks": "none", "teacher": first},
        "chosen_from": {"masks": "9 cases"},
    }
    told = {"labels": "slices", "training": "5 cases", "validation": "2 cases", "masks": "none", "teacher": second}
    lines = learned({"trained_on": told, "seen": {"cases": 4}})
    assert lines[0] == "The network learned from yes/no labels of slices: 5 cases."
    assert "chosen from no labels (masks: 9 cases)" in lines[1]
    assert "chosen from labels of slices (masks: none)" in lines[2]
    assert lines[3] == "No ground-truth mask was opened in training."
    assert lines[4] == "Validation after each epoch, by labels alone: 2 cases."


def test_masks_that_taught_a_network_are_on_the_page():
    said = learned({"trained_on": {"labels": "slices", "training": "5 cases", "masks": "those of its own cases"}})
    assert said[-1] == "Ground-truth masks in training: those of its own cases."
