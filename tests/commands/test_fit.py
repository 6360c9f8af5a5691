"""What `fit` says and decides; that it trains, chooses and writes is shown by the demo, which is made of it."""

from __future__ import annotations

import json

import pytest

from common.commands.fit import calibration_section, described, labels_slices, summary

CLASSES = ["none", "tumor"]


def cases(*labels) -> list[dict]:
    return [{"case": f"c{i}", "patient": f"p{i % 2}", "cls": cls} for i, cls in enumerate(labels)]


@pytest.mark.parametrize(("cls", "of_slices"), [([0, 1, 1], True), (1, False), (["tumor"], False), ([], False)])
def test_one_label_a_slice_is_told_from_the_names_of_several(cls, of_slices):
    assert labels_slices({"case": "a", "cls": cls}) is of_slices


def test_a_section_is_described_by_cases_patients_and_labels():
    content = {"classes": CLASSES, "training": cases([0, 1, 1], 0, 1, 1)}
    assert described("training", content) == (
        "training 4 cases of 2 patients, volumes none 1, tumor 2, slices none 1, tumor 2"
    )


def test_training_patients_are_calibrated_on_where_validation_has_few_labels_of_a_kind():
    assert calibration_section({"validation": cases([0, 0, 0, 0, 1, 1, 1, 1])}) == "validation"
    assert calibration_section({"validation": cases(0, 0, 0, 1, 1, 1, 1)}) == "training+validation"
    assert calibration_section({}) == "training+validation"


def test_the_summary_says_what_labels_say_and_that_masks_chose_nothing(tmp_path):
    volumes = {"auc": 0.9, "auc_interval": [0.8, 1.0], "positives_marked": 1.0, "negatives_empty": 0.75}
    scores = {"gate": 0.25, "volumes": volumes | {"ml_in_negatives": {"mean": 2.0}}}
    (tmp_path / "labels.json").write_text(json.dumps(scores))
    assert summary(tmp_path, "test").splitlines() == [
        "test, from labels: volume AUC 0.900 [0.8, 1.0]",
        "at the gate 0.250: 1.000 of positive volumes marked, 0.750 of negative ones left empty, "
        "2.000 ml in a negative one",
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"dice": {"mean": 0.5, "median": None}}))
    assert summary(tmp_path, "test").splitlines()[-1] == "with masks, which chose nothing: 3D Dice 0.500, median n/a"
