from __future__ import annotations

import csv
import json

import pytest
import torch
from monai.data import MetaTensor

from common.handlers import LabelScores
from tests.pipeline import run_handler


def pair(
    name: str, probability: list[float], marked: list[int], *, organ: list[int] | None = None, truth=None
) -> tuple:
    """A case of slices of 4×4 voxels of 1 mm: their probabilities, those with a marked voxel, those with organ."""
    depth = len(probability)
    pred = torch.zeros(1, 4, 4, depth)
    pred[0, 0, 0, marked] = 1
    image = torch.ones(2, 4, 4, depth)
    if organ is not None:
        image[1] = 0
        image[1, :, :, organ] = 1
    p = torch.tensor(probability)
    batch = {"case": name, "patient": name, "image": MetaTensor(image)}
    if truth is not None:
        mask = torch.zeros(1, 4, 4, depth)
        mask[..., truth] = 1
        batch["label"] = MetaTensor(mask)
    output = {
        "pred": MetaTensor(pred),
        "slice_probability": torch.stack([1 - p, p]),
        "probability": torch.tensor([1 - p.max(), p.max()]),
    }
    return batch, output


def scores(tmp_path, items, cases, gate=0.5) -> dict:
    run_handler(LabelScores(tmp_path, gate=gate, resamples=50), items, cases=cases)
    return json.loads((tmp_path / "labels.json").read_text())


def test_volumes_are_scored_by_their_label_and_masks_where_nothing_is_are_counted(tmp_path):
    items = [pair("a", [0.2, 0.9], [1]), pair("b", [0.1, 0.3], []), pair("c", [0.6, 0.2], [0, 1])]
    cases = {"a": {"case": "a", "cls": 1}, "b": {"case": "b", "cls": 0}, "c": {"case": "c", "cls": 0}}
    volumes = scores(tmp_path, items, cases)["volumes"]
    assert volumes["auc"] == 1.0
    assert (volumes["sensitivity"], volumes["specificity"]) == (1.0, 0.5)
    assert (volumes["positives_marked"], volumes["negatives_empty"]) == (1.0, 0.5)
    assert volumes["ml_in_negatives"]["mean"] == pytest.approx(0.001)  # two voxels of a microliter in two volumes


def test_few_patients_of_a_kind_have_no_interval_and_the_reason_stands_with_the_kind(tmp_path):
    for healthy in (4, 5):
        found = [(f"{kind}{n}", kind) for kind, count in ((0, healthy), (1, 5)) for n in range(count)]
        items = [pair(name, [0.1, 0.1 + 0.8 * kind], []) for name, kind in found]
        result = scores(tmp_path, items, {name: {"case": name, "cls": [0, kind]} for name, kind in found})
        few = healthy < 5
        assert result["volumes"]["auc_interval"] == ([None, None] if few else [1.0, 1.0])
        assert ("fewer than 5 patients" in result["volumes"].get("note", "")) == few
        assert result["slices"]["auc_interval"] == [1.0, 1.0]  # those who are ill have slices without a finding
        assert "note" not in result["slices"]
        assert "note" not in result


def test_rows_are_called_by_a_small_gate_as_the_scores_are(tmp_path):
    items = [pair("a", [0.00091, 0.00089], []), pair("b", [0.00092, 0.00088], [])]
    result = scores(tmp_path, items, {"a": {"case": "a", "cls": [1, 0]}, "b": {"case": "b", "cls": [0, 1]}}, 0.0009)
    with open(tmp_path / "label_slices.csv", encoding="utf-8") as file:
        called = [(row["positive"], float(row["probability"]) > result["gate"]) for row in csv.DictReader(file)]
    assert (result["slices"]["sensitivity"], result["slices"]["specificity"]) == (0.5, 0.5)
    assert called == [("1", True), ("0", False), ("0", True), ("1", False)]


def test_slices_are_left_as_rows_where_they_have_labels_masks_or_not(tmp_path):
    items = [pair("a", [0.91234, 0.1], [0]), pair("b", [0.2], [])]
    scores(tmp_path, items, {"a": {"case": "a", "cls": [1, 0]}, "b": {"case": "b", "cls": [0]}})
    with open(tmp_path / "label_slices.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = [tuple(row[key] for key in ("case", "slice", "positive", "probability", "marked")) for row in rows]
    assert told == [("a", "0", "1", "0.91234", "1"), ("a", "1", "0", "0.1", "0"), ("b", "0", "0", "0.2", "0")]
    scores(tmp_path / "whole", items, {"a": {"case": "a", "cls": 1}})
    assert not (tmp_path / "whole" / "label_slices.csv").exists()


def test_slices_that_were_drawn_whatever_patient_they_are_of_are_said_to_be_of_memory(tmp_path):
    items = [pair(f"{kind}{n}", [0.1 + 0.8 * kind], []) for kind in (0, 1) for n in range(5)]
    cases = {batch["case"]: {"case": batch["case"], "cls": [int(batch["case"][0])]} for batch, _ in items}
    assert "note" not in scores(tmp_path, items, cases)
    drawn = [(batch | {"split": "paper"}, output) for batch, output in items]
    assert scores(tmp_path, drawn, cases)["note"].startswith("split 'paper': other slices of these patients")
    few = scores(tmp_path, drawn[:6], cases)
    assert few["note"].endswith("scores are of memory, too")
    assert few["slices"]["note"].startswith("no interval: fewer than 5 patients")


def test_slices_are_scored_where_they_hold_organ(tmp_path):
    items = [pair("a", [0.9, 0.8, 0.1], [1], organ=[1, 2]), pair("b", [0.2, 0.3, 0.9], [2], organ=[0, 1])]
    cases = {"a": {"case": "a", "cls": [0, 1, 0]}, "b": {"case": "b", "cls": [0, 0, 0]}}
    found = scores(tmp_path, items, cases)["slices"]
    assert (found["positives"], found["negatives"]) == (1, 3)
    assert found["auc"] == 1.0
    assert found["negatives_empty"] == 1.0


def test_a_finding_in_a_slice_without_organ_counts_as_missed(tmp_path):
    items = [pair("a", [0.9, 0.0], [0], organ=[0])]
    found = scores(tmp_path, items, {"a": {"case": "a", "cls": [1, 1]}})["slices"]
    assert (found["positives"], found["sensitivity"]) == (2, 0.5)


def test_a_mask_gives_the_label_where_the_datalist_has_none_and_no_label_is_left_out(tmp_path):
    items = [pair("a", [0.2, 0.9], [1], truth=[1]), pair("b", [0.1, 0.3], [], truth=[]), pair("c", [0.1, 0.3], [])]
    found = scores(tmp_path, items, {})
    assert (found["volumes"]["positives"], found["volumes"]["negatives"]) == (1, 1)
    assert found["slices"]["positives"] == 1


def test_several_labels_are_told_apart_one_by_one(tmp_path):
    """Labels of whole volumes that may hold together; the mean over those that some volume has and some has not."""
    classes = ["none", "edema", "mass", "rare"]
    found = {"a": ([0.9, 0.2, 0.1], ["edema"]), "b": ([0.8, 0.6, 0.1], ["edema", "mass"]), "c": ([0.1, 0.7, 0.1], [])}
    items, cases = [], {}
    for name, (probability, cls) in found.items():
        batch, output = pair(name, [0.5], [])
        items.append((batch, output | {"probability": torch.tensor([0.1, *probability])}))
        cases[name] = {"case": name, "cls": cls}
    run_handler(LabelScores(tmp_path, classes=classes, resamples=5), items, cases=cases)
    result = json.loads((tmp_path / "labels.json").read_text())
    assert [result["classes"][name]["auc"] for name in classes[1:3]] == [1.0, 0.5]
    assert result["macro"]["auc"] == 0.75
    assert "probability mass" in (tmp_path / "labels.csv").read_text()
    unnamed = [pair("first", [0.5], [], truth=[0]), *items]  # its label is that of its mask, which names no class
    run_handler(LabelScores(tmp_path, classes=classes, resamples=5), unnamed, cases=cases)
    assert json.loads((tmp_path / "labels.json").read_text())["classes"] == result["classes"]
    alike = {name: {"case": name, "cls": ["mass"]} for name in cases}
    run_handler(LabelScores(tmp_path, classes=classes, resamples=5), items, cases=alike)
    assert json.loads((tmp_path / "labels.json").read_text())["macro"] == {"auc": None}


def test_a_probability_at_the_gate_does_not_pass(tmp_path):
    items = [pair("a", [0.5], []), pair("b", [0.5], [])]
    found = scores(tmp_path, items, {"a": {"case": "a", "cls": 1}, "b": {"case": "b", "cls": 0}})["volumes"]
    assert (found["sensitivity"], found["specificity"]) == (0.0, 1.0)
    assert (found["positives_marked"], found["negatives_empty"]) == (0.0, 1.0)


class TestLabelsAgainstMasks:
    """`disagreeing` and the warning: yes and no of the two, whatever the classes are."""

    def found(self, tmp_path, caplog, *cases: tuple) -> tuple[dict, list[str]]:
        """Cases as (label, marked slices of the mask or None), called a, b …"""
        items, listed = [], {}
        for name, (cls, truth) in zip("abcdef", cases, strict=False):
            items.append(pair(name, [0.2, 0.9, 0.4], [1], truth=truth))
            listed[name] = {"case": name, "cls": cls} if cls is not None else {"case": name}
        caplog.clear()
        result = scores(tmp_path, items, listed)
        return result.get("disagreeing", {}), [record.getMessage() for record in caplog.records]

    def test_inverted_labels_of_volumes_are_counted_and_named_once(self, tmp_path, caplog):
        found, said = self.found(tmp_path, caplog, (0, [1]), (2, []), (1, [2]), (0, []), (1, None), (None, [0]))
        assert found == {"volumes": {"count": 2, "of": 4, "cases": ["a", "b"]}}
        assert len(said) == 1
        assert "contradict masks in 2 of 4 volumes (a, b): one says yes where the other says no" in said[0]
        assert "slices_from" not in said[0]

    def test_slices_in_the_wrong_order_are_counted_though_their_volumes_agree(self, tmp_path, caplog):
        found, said = self.found(tmp_path, caplog, ([1, 0, 0], [2]), ([0, 0, 2], [2]), (1, [0]), ([0, 0, 0], []))
        assert found == {"slices": {"count": 2, "of": 9, "cases": ["a"]}}
        assert "in 2 of 9 slices (a)" in said[0]
        assert "--slices_from top" in said[0]

    def test_names_and_grades_that_agree_are_left_alone(self, tmp_path, caplog):
        agreeing = ((["mass"], [1]), ([], []), (3, [0, 1]), ([0, 2, 1], [1, 2]), (0, []))
        assert self.found(tmp_path, caplog, *agreeing) == ({}, [])
        assert self.found(tmp_path, caplog, (["mass"], []), ([], [1]))[0]["volumes"]["count"] == 2

    def test_scores_are_what_they_are(self, tmp_path):
        cases = {name: {"case": name, "cls": int(name == "a")} for name in "ab"}
        both = [
            scores(tmp_path, [pair("a", [0.9], [0], truth=t), pair("b", [0.1], [], truth=t)], cases) for t in (None, [])
        ]
        assert both[1].pop("disagreeing")["volumes"]["count"] == 1
        assert both[0] == both[1]

    def test_a_second_run_of_the_handler_begins_afresh(self, tmp_path):
        handler = LabelScores(tmp_path, resamples=5)
        for _ in range(2):
            run_handler(handler, [pair("a", [0.9], [0], truth=[])], cases={"a": {"case": "a", "cls": 1}})
        assert handler.summary()["disagreeing"]["volumes"]["count"] == 1


def test_nothing_to_score_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no case has a label"):
        scores(tmp_path, [pair("a", [0.5], [])], {})
    assert not (tmp_path / "labels.json").exists()


def test_intervals_draw_patients_with_all_of_their_volumes_and_slices(tmp_path):
    """So copies of what a patient has change none of them."""
    found = {}
    for times in (1, 4):
        items, cases = [], {}
        for number, p in enumerate((0.9, 0.8, 0.7, 0.3, 0.85, 0.6, 0.2, 0.4, 0.75, 0.1)):
            for copy in range(times):
                name = f"{number}{copy}"
                batch, output = pair(name, [p, 1 - p], [0] if number == 9 else [])
                items.append((batch | {"patient": f"p{number}"}, output))
                cases[name] = {"case": name, "cls": [int(number < 5), 0]}
        found[times] = scores(tmp_path, items, cases)
    for kind in ("volumes", "slices"):
        assert found[4][kind]["auc_interval"] == found[1][kind]["auc_interval"]
        assert found[1][kind]["auc_interval"][0] < found[1][kind]["auc"]


def test_what_is_marked_in_negatives_has_an_interval_over_patients(tmp_path):
    items, cases = [], {}
    for number in range(8):
        batch, output = pair(str(number), [0.2], [0] if number < 4 else [])
        output["pred"].affine = torch.diag(torch.tensor([10.0, 10.0, 10.0, 1.0]))  # a voxel is a milliliter
        items.append((batch | {"patient": "ab"[number // 4]}, output))
        cases[str(number)] = {"case": str(number), "cls": 0}
    milliliters = scores(tmp_path, items, cases)["volumes"]["ml_in_negatives"]
    assert [milliliters[key] for key in ("mean", "low", "high")] == [0.5, 0.0, 1.0]  # either is drawn twice


def test_a_gate_of_0_lets_all_pass_that_have_any_probability(tmp_path):
    items = [pair("a", [0.01], []), pair("b", [0.0], [])]
    result = scores(tmp_path, items, {"a": {"case": "a", "cls": 1}, "b": {"case": "b", "cls": 0}}, gate=0.0)
    assert result["gate"] == 0.0
    assert (result["volumes"]["sensitivity"], result["volumes"]["specificity"]) == (1.0, 1.0)
