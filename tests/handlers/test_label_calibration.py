from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.handlers import LabelCalibration
from common.masks import OF_LUNGS, otsu
from tests.pipeline import run_handler

START = {"gate_smooth_mm": 0.0, "binarize": "fixed", "refine": None}


def items_of(labels: dict[str, list[int] | int], heat_of_nothing: float = 0.2) -> tuple[list, dict]:
    """A volume of six slices for each label; ill slices have a spot of heat .9 and probability .8, others .1."""
    items, cases = [], {}
    for seed, (name, cls) in enumerate(labels.items()):
        rng = np.random.default_rng(seed)
        ill = np.broadcast_to(np.array(cls) > 0, 6).copy()
        heat = rng.uniform(0, heat_of_nothing, (12, 12, 6))
        heat[3:7, 3:7, ill] = 0.9
        probability = np.broadcast_to(np.where(ill, 0.8, 0.1), heat.shape)
        pred = np.stack([np.zeros_like(heat), heat, 1 - probability, probability])
        image = MetaTensor(torch.ones(2, *heat.shape))
        items.append(({"case": name, "image": image}, {"pred": torch.as_tensor(pred, dtype=torch.float32)}))
        cases[name] = {"case": name, "patient": name, "cls": cls}
    return items, cases


def calibrate(tmp_path, labels, **options) -> dict:
    items, cases = items_of(labels)
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, **options)
    run_handler(handler, items, cases=cases)
    return json.loads((tmp_path / "calibrated.json").read_text())


SLICES = {"ill": [0, 0, 1, 1, 0, 0], "well": [0] * 6}


def test_gate_and_threshold_follow_the_labels_of_slices_and_lie_beside_the_weights(tmp_path):
    chosen = calibrate(tmp_path, SLICES, quantile=0.99)
    assert chosen["gate"] == pytest.approx(0.4, abs=0.001)  # half way from .1 to .8, in logits
    assert chosen["threshold"] == pytest.approx(0.198, abs=0.002)
    assert chosen["min_volume_ml"] == 0.0
    beside = json.loads((tmp_path / "model.json").read_text())
    assert beside["chosen"] == chosen
    source = beside["chosen_from"]
    assert (source["labels"], source["masks"], source["positives"], source["negatives"]) == ("slices", "none", 2, 10)


def test_a_section_is_told_with_what_it_chose_and_test_cases_are_warned_of(tmp_path, caplog):
    (listed := tmp_path / "datalist.json").write_text("{}")
    for section, warned in (("validation", False), ("test", True)):
        calibrate(tmp_path, SLICES, section=section, datalist=listed)
        assert json.loads((tmp_path / "model.json").read_text())["chosen_from"]["section"] == section
        assert ("scores of these test cases flatter them" in caplog.text) == warned


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("common.handlers.base.get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="LabelCalibration looks at all cases in one process, but 2 were started"):
        calibrate(tmp_path, SLICES)


def test_few_labels_of_a_kind_are_warned_of(tmp_path, caplog):
    calibrate(tmp_path, SLICES)
    assert "gate and threshold hang on 2 positive slices; let more decide" in caplog.text
    caplog.clear()
    calibrate(tmp_path, {"ill": [0, 1, 1, 1, 1, 0], "well": [0] * 6})
    assert "hang on" not in caplog.text


def test_one_label_a_volume_gives_a_low_gate_and_asks_for_a_smallest_volume(tmp_path):
    options = {"quantile": 0.9, "refine": None}
    items, cases = items_of({"ill": 1, "well": 0, "odd": 0, "fine": 0})
    items[2][1]["pred"][2] = 0.15  # more suspicious than what is ill
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, for_volumes=options)
    run_handler(handler, items, cases=cases)
    chosen = json.loads((tmp_path / "calibrated.json").read_text())
    assert chosen["gate"] == pytest.approx(0.1)  # the highest below what is ill
    assert chosen["threshold"] == pytest.approx(0.18, abs=0.005)
    # A tenth of the odd one's 864 voxels of a microliter are above the threshold: fewer than half of what is ill.
    assert chosen["min_volume_ml"] == pytest.approx(0.087, abs=0.01)
    cases["odd"]["half"] = "left"  # where what is in the other half may reach over the middle
    run_handler(handler, items, cases=cases)
    halved = json.loads((tmp_path / "calibrated.json").read_text())
    assert halved == chosen | {"min_volume_ml": 0.0}
    for case in cases.values():
        case["half"] = "left"
    run_handler(handler, items, cases=cases)
    assert json.loads((tmp_path / "calibrated.json").read_text()) == halved


def test_beside_labels_of_slices_a_healthy_volume_says_no_of_each_of_its_slices(tmp_path):
    chosen = calibrate(tmp_path, {"ill": [0, 0, 1, 1, 0, 0], "well": 0, "somewhere": 1})
    assert chosen["gate"] == pytest.approx(0.4, abs=0.001)
    source = json.loads((tmp_path / "model.json").read_text())["chosen_from"]
    assert (source["labels"], source["positives"], source["negatives"]) == ("slices", 2, 10)


def test_heat_of_a_slice_that_the_gate_mistakes_does_not_raise_the_threshold(tmp_path):
    items, cases = items_of({"ill": [0, 0, 1, 1, 0, 0], "well": [0] * 6, "more": [0, 1, 1, 1, 1, 0]})
    pred = items[1][1]["pred"]
    pred[1, ..., 3] = 0.95
    pred[2, ..., 3], pred[3, ..., 3] = 0.1, 0.9  # as sure as it is wrong
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, quantile=0.99)
    run_handler(handler, items, cases=cases)
    assert json.loads((tmp_path / "calibrated.json").read_text())["threshold"] < 0.21


def test_the_natural_threshold_of_maps_counts_where_the_quantile_is_lower(tmp_path):
    assert calibrate(tmp_path, SLICES, natural=0.5)["threshold"] == 0.5
    assert calibrate(tmp_path, SLICES, natural=0.1)["threshold"] == pytest.approx(0.2, abs=0.005)


def test_a_natural_threshold_that_maps_do_not_reach_yields_to_what_positives_reach(tmp_path, caplog):
    items, cases = items_of({"ill": [0, 1, 1, 1, 1, 0], "well": [0] * 6})
    pred, image = items[0][1]["pred"], items[0][0]["image"]
    for index, hottest in zip((1, 2, 3, 4), (0.3, 0.4, 0.6, 0.6), strict=True):
        pred[1, ..., index] = pred[1, ..., index].clamp(max=hottest)
    pred[1, 0, 0, 0] = 0.99  # a slice labeled negative does not count,
    image[1, 0, 0], pred[1, 0, 0, 1:] = 0, 0.99  # nor what lies outside the organ
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, natural=0.5, quantile=0.99)
    run_handler(handler, items, cases=cases)
    threshold = json.loads((tmp_path / "calibrated.json").read_text())["threshold"]
    assert threshold == pytest.approx(0.375, abs=0.001)  # a quarter of them has less
    assert "three quarters of 4 positives reach 0.3749 and not the natural threshold 0.5" in caplog.text


def test_of_one_label_a_volume_the_hottest_slice_says_what_positives_reach(tmp_path):
    labels = {"ill": 1, "well": 0, "odd": 0}
    assert calibrate(tmp_path, labels, natural=0.5, quantile=0.99)["threshold"] == 0.5
    assert calibrate(tmp_path, labels, natural=3.0, quantile=0.99)["threshold"] == pytest.approx(0.9, abs=0.001)


def bright_case(tmp_path, **options) -> dict:
    """Of three patients of whom one is ill and two have a brightness of 2 and of 1 to half of their slices."""
    items, cases = items_of({"ill": [0, 1, 1, 1, 1, 0], "well": [0] * 6, "half": [0] * 6})
    ill, well, half = (batch["image"] for batch, _ in items)
    ill[0, :, :, 1:5] = 9.0  # of slices labeled yes
    well[0] = 2.0
    half[0, :, :, 3:], half[1, :, :, 3:] = 9.0, 0.0
    run_handler(LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", **options), items, cases=cases)
    return json.loads((tmp_path / "calibrated.json").read_text())


REFINE = {"dilate_mm": 3.0, "intensity": 1.1, "adaptive": 0.5, "smooth_mm": 0.0, "largest": True}


def test_in_lungs_what_is_brighter_than_healthy_ones_and_every_lesion_stays(tmp_path):
    chosen = bright_case(tmp_path, start=START | {"refine": REFINE}, organ="lung", natural=0.5, natural_gate=0.5)
    assert chosen["refine"] == OF_LUNGS["refine"] | {"adaptive": 0.0, "intensity": chosen["refine"]["intensity"]}
    assert chosen["refine"]["largest"] is False
    assert chosen["refine"]["intensity"] == pytest.approx(2.0, abs=0.01)
    assert (chosen["gate"], chosen["gate_smooth_mm"]) == (0.5, 6.0)


@pytest.mark.parametrize(("normalize", "intensity"), [("organ_median", 1.1), ("none", 2.0), ("slice_max", 2.0)])
def test_constants_of_multiples_give_way_in_other_units(tmp_path, normalize, intensity):
    chosen = bright_case(tmp_path, start=START | {"refine": REFINE}, normalize=normalize)
    assert chosen["refine"]["intensity"] == pytest.approx(intensity, abs=0.01)
    assert chosen["refine"] == REFINE | {"intensity": chosen["refine"]["intensity"], "adaptive": 0.5 * (intensity < 2)}


def test_a_natural_gate_that_positives_do_not_reach_yields(tmp_path):
    chosen = calibrate(tmp_path, SLICES, natural_gate=0.95)
    assert chosen["gate"] == pytest.approx(0.8)


def test_a_sensitivity_that_is_asked_for_chooses_the_gate_of_slices_and_of_volumes(tmp_path):
    chosen = calibrate(tmp_path, SLICES, natural_gate=0.5, sensitivity=0.9)
    assert chosen["gate"] == pytest.approx(0.4, abs=0.001)
    items, cases = items_of({"ill": 1, "faint": 1, "too": 1, "well": 0})
    items[1][1]["pred"][2] = 0.7
    for sensitivity, gate in ((None, 0.1), (0.5, 0.3)):
        handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, sensitivity=sensitivity)
        run_handler(handler, items, cases=cases)
        assert json.loads((tmp_path / "calibrated.json").read_text())["gate"] == pytest.approx(gate)


def test_in_lungs_heat_of_those_who_taught_counts_where_there_is_no_other(tmp_path):
    labels = {"ill": [0, 1, 1, 1, 1, 0], "taught": [0] * 6, "new": [0] * 6}
    (datalist := tmp_path / "datalist.json").write_text(json.dumps({"training": [{"case": "taught"}]}))
    items, cases = items_of(labels)
    items[1][1]["pred"][1] = 0.9  # of whom it was told that nothing is there
    items[0][1]["pred"][1, :, :, [0, 5]] = 0.0
    options = {"start": START, "organ": "lung", "datalist": datalist, "ckpt": tmp_path / "model.pt"}
    run_handler(LabelCalibration(tmp_path, **options), items, cases=cases)
    assert json.loads((tmp_path / "calibrated.json").read_text())["threshold"] < 0.2
    datalist.write_text(json.dumps({"training": [{"case": name} for name in labels]}))
    run_handler(LabelCalibration(tmp_path, **options), items, cases=cases)
    assert json.loads((tmp_path / "calibrated.json").read_text())["threshold"] == pytest.approx(0.9, abs=0.01)


def test_every_candidate_is_listed_with_what_labels_say_about_it(tmp_path):
    calibrate(tmp_path, SLICES, quantiles=[0.5])
    with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"chosen", "natural zero", "quantile 0.5", "Otsu", "no refinement"}
    assert rows["chosen"]["positive_slices_marked"] == rows["chosen"]["negative_slices_empty"] == "1.0"
    assert rows["chosen"]["negative_volumes_empty"] == "1.0"
    assert float(rows["natural zero"]["threshold"]) == 0.0
    assert float(rows["quantile 0.5"]["threshold"]) == pytest.approx(0.1, abs=0.01)


def test_the_candidate_of_otsu_is_the_median_of_the_cases_whose_heat_has_contrast(tmp_path):
    items, cases = items_of(SLICES)
    for heat, expected in ((0.9, otsu(np.repeat([0.1, 0.9], 2))), (0.1, np.inf)):
        for _, output in items:
            output["pred"][1] = 0.1
        items[0][1]["pred"][1, :6] = heat  # the other one is flat
        run_handler(LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START), items, cases=cases)
        with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
            rows = {row["candidate"]: row for row in csv.DictReader(file)}
        assert float(rows["Otsu"]["threshold"]) == pytest.approx(expected, abs=1e-3)


def test_probabilities_that_do_not_rise_with_the_label_are_an_error(tmp_path):
    items, cases = items_of(SLICES)
    cases["ill"]["cls"] = [1, 1, 0, 0, 1, 1]
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START)
    with pytest.raises(ValueError, match="has not learned"):
        run_handler(handler, items, cases=cases)


class TestClassesWithoutNegatives:
    """Class 1 to the left, class 2 to the right, and no slice that shows nothing."""

    OTSU = {"binarize": "otsu", "refine": {"dilate_mm": 2.0}}  # noqa: RUF012

    def calibrate(self, tmp_path, *, training: list[int], called: dict[int, int], without=OTSU) -> dict:
        """Of validation slices of classes 1 and 2 that are called as said; returns what lies beside the weights."""
        items, cases = [], {}
        for cls in (1, 2):
            heat = np.full((3, 12, 12, 6), 0.1)
            heat[called[cls], 3:7, 3:7] = 0.9
            probability = np.zeros_like(heat)
            probability[[called[cls], 3 - called[cls]]] = np.array([0.7, 0.3]).reshape(2, 1, 1, 1)
            pred = torch.as_tensor(np.concatenate([heat, probability]), dtype=torch.float32)
            items.append(({"case": f"c{cls}", "image": MetaTensor(torch.ones(2, 12, 12, 6))}, {"pred": pred}))
            cases[f"c{cls}"] = {"case": f"c{cls}", "patient": f"c{cls}", "cls": [cls] * 6}
        listed = [{"case": f"t{i}", "patient": f"t{i}", "cls": cls} for i, cls in enumerate(training)]
        path = tmp_path / "datalist.json"
        path.write_text(json.dumps({"training": listed, "validation": list(cases.values())}))
        options = {"ckpt": tmp_path / "model.pt", "start": START, "without_negatives": without, "datalist": path}
        run_handler(LabelCalibration(tmp_path, **options), items, cases=cases)
        return json.loads((tmp_path / "model.json").read_text())

    def test_every_slice_passes_its_own_heat_is_cut_and_model_json_says_so(self, tmp_path, caplog):
        beside = self.calibrate(tmp_path, training=[1, 2], called={1: 1, 2: 2})
        assert beside["chosen"] == {
            **{"gate": 0.0, "gate_smooth_mm": 0.0, "binarize": "otsu", "threshold": 0.0, "raw_threshold": 0.0},
            **{"refine": {"dilate_mm": 2.0}, "min_volume_ml": 0.0},
        }
        source = beside["chosen_from"]
        assert source["rule"] == "no label says that nothing is there: every case is marked, cut by Otsu"
        assert (source["positives"], source["negatives"], source["classes_told_apart"]) == (12, 0, 1.0)
        assert "no better than by chance" not in caplog.text
        with open(tmp_path / "calibration.csv", encoding="utf-8", newline="") as file:
            rows = {row["candidate"]: row for row in csv.DictReader(file)}
        assert set(rows) == {"chosen", "multi-Otsu", "no refinement"}
        assert rows["no refinement"]["positive_slices_marked"] == "1.0"

    def test_classes_that_are_told_apart_by_chance_are_warned_of(self, tmp_path, caplog):
        beside = self.calibrate(tmp_path, training=[1, 2], called={1: 1, 2: 1})
        assert beside["chosen_from"]["classes_told_apart"] == 0.5
        assert "classes are told apart no better than by chance (0.5 of each class called so)" in caplog.text

    @pytest.mark.parametrize(("training", "without"), [([1, 2, 0], OTSU), ([1, 2], None)])
    def test_a_section_without_negatives_is_an_error_where_there_are_some_or_the_bundle_needs_them(
        self, training, without, tmp_path
    ):
        with pytest.raises(ValueError, match="a gate needs positive and negative labels; all 12 are yes"):
            self.calibrate(tmp_path, training=training, called={1: 1, 2: 2}, without=without)


def test_another_number_of_labels_than_slices_is_an_error(tmp_path):
    items, cases = items_of(SLICES)
    cases["ill"]["cls"] = [0, 1]
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START)
    with pytest.raises(ValueError, match="2 labels"):
        run_handler(handler, items, cases=cases)


def test_what_is_for_volumes_counts_where_no_slice_has_a_label(tmp_path):
    options = {"quantile": 0.5, "refine": {"dilate_mm": 9.0}}
    assert calibrate(tmp_path, SLICES, for_volumes=options) == calibrate(tmp_path, SLICES)
    assert calibrate(tmp_path, {"ill": 1, "well": 0}, for_volumes=options)["refine"] == options["refine"]


def test_of_many_cases_some_are_looked_at_from_all_of_the_list(tmp_path):
    items, cases = items_of({name: [0, 1, 0, 0, 0, 0] for name in "abcde"})
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, most=3)
    run_handler(handler, items, cases=cases)
    assert [row["case"] for row in handler.rows] == ["a", "c", "e"]


def test_of_a_volume_with_one_label_its_hottest_slice_reaches_the_natural_threshold(tmp_path):
    items, cases = items_of({"ill": 1, "well": 0})
    pred = items[0][1]["pred"]
    for z, highest in enumerate((0.3, 0.3, 0.3, 0.3, 0.6, 0.3)):
        pred[1, ..., z] = pred[1, ..., z].clamp(max=highest)
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, natural=0.5)
    run_handler(handler, items, cases=cases)
    assert json.loads((tmp_path / "calibrated.json").read_text())["threshold"] == 0.5


def test_heat_outside_the_organ_is_none_of_nothing(tmp_path):
    """There it is as low as anywhere inside, which would pull a quantile down."""
    items, cases = items_of(SLICES)
    for batch, _ in items:
        batch["image"][1, 8:] = 0
    handler = LabelCalibration(tmp_path, ckpt=tmp_path / "model.pt", start=START, quantile=0.5)
    run_handler(handler, items, cases=cases)
    threshold = json.loads((tmp_path / "calibrated.json").read_text())["threshold"]
    assert threshold == pytest.approx(0.1, abs=0.01)  # half of what is uniform to 0.2
