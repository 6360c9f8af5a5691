from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy.stats import spearmanr

from common.handlers import ClassScores
from common.handlers.class_scores import true_classes
from common.masks import MapsToMaskd, clean, multi_otsu
from common.metrics import dice
from tests.bundles.conftest import read_json
from tests.pipeline import run_handler

CLASSES = ["healthy", "LGG", "HGG"]
DEPTH = 4


def volume(array: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.as_tensor(array[None]), affine=torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])))


def case(number: int, cls: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Slices 1 and 2 hold a tumor under uneven heat; slice 3 shows nothing at all."""
    rng = np.random.default_rng(number)
    truth = np.zeros((24, 20, DEPTH), np.uint8)
    truth[4:16, 5:15, 1:3] = 1
    heat = (rng.random(truth.shape) + truth * rng.uniform(0.5, 2.0, truth.shape)).astype(np.float32)
    shown = np.ones(truth.shape, np.float32)
    shown[..., 3] = 0
    probability = rng.dirichlet(np.ones(3), DEPTH).T.astype(np.float32)
    image = np.stack([rng.random(truth.shape) * shown, np.ones_like(shown)])  # everything is organ
    batch = {"case": f"case_{number}", "patient": f"patient_{number}", "image": image}
    batch |= {"label": volume(truth), "cls": cls}
    pred = (heat > 1.2).astype(np.uint8)
    pred[..., 0] = 0
    return batch, {"heatmap": volume(heat), "pred": volume(pred), "slice_probability": probability}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


CASES = [case(0, [0, 1, 1, 0]), case(1, [0, 2, 2, 0]), case(2, [0, 2, 2, 0])]
CLEAN = {"min_size": 20, "largest_only": True}


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    options = {"offset": 0.2, "fixed": 1.0, "clean": CLEAN, "offsets": [0.0, 0.2, 5.0], "resamples": 5}
    known = {batch["case"]: {"case": batch["case"], "cls": batch["cls"]} for batch, _ in CASES}
    run_handler(ClassScores(folder, classes=CLASSES, **options), CASES, cases=known)
    return folder


def test_raw_cleaned_and_fixed_masks_are_scored_slice_by_slice(scored):
    written = rows(scored / "class_slices.csv")
    assert len(written) == 9  # the slices that show nothing are left out
    heat, truth = (np.asarray(part[0]) for part in (CASES[0][1]["heatmap"], CASES[0][0]["label"]))
    row, heat, truth = written[1], heat[..., 1], truth[..., 1] > 0
    raw = heat > multi_otsu(heat) - 0.2
    assert (row["class"], row["slice"]) == ("1", "1")
    assert float(row["dice_raw"]) == pytest.approx(dice(raw, truth), abs=1e-4)
    assert float(row["dice_cleaned"]) == pytest.approx(dice(clean(raw, **CLEAN), truth), abs=1e-4)
    assert float(row["dice_fixed"]) == pytest.approx(dice(heat > 1.0, truth), abs=1e-4)
    assert float(row["dice_mask"]) == pytest.approx(dice(heat > 1.2, truth), abs=1e-4)
    assert written[0]["dice_raw"] == ""  # no finding there
    assert read_json(scored / "class_scores.json")["healthy_marked"] == 0


def test_medians_are_of_all_and_of_each_class_with_intervals_of_slices_and_of_patients(scored):
    summary = read_json(scored / "class_scores.json")
    own = [float(row["dice_mask"]) for row in rows(scored / "class_slices.csv") if row["class"] == "2"]
    masks = summary["masks"]
    assert masks.keys() == {"all", "LGG", "HGG"}
    assert (masks["all"]["slices"], masks["HGG"]["slices"]) == (6, 4)
    assert masks["HGG"]["dice_mask"]["median"] == pytest.approx(np.median(own), abs=1e-3)
    low, high = masks["HGG"]["dice_mask"]["interval_slices"]
    assert low <= masks["HGG"]["dice_mask"]["median"] <= high
    assert masks["LGG"]["dice_mask"]["interval_patients"] == [None, None]  # of one patient
    assert np.sum(summary["confusion"]) == 9
    assert summary["classes"].keys() == set(CLASSES)
    assert Image.open(scored / "class_scores.png").size[0] > 1000


def test_confidence_is_ranked_against_dice_where_both_vary(scored, tmp_path):
    own = [row for row in rows(scored / "class_slices.csv") if row["dice_mask"]]
    confident = [float(row[f"probability_{CLASSES[int(row['called'])]}"]) for row in own]
    rank = spearmanr(confident, [float(row["dice_mask"]) for row in own]).statistic
    assert read_json(scored / "class_scores.json")["confidence_against_dice"] == pytest.approx(rank, abs=1e-4)
    unmasked = [({key: value for key, value in batch.items() if key != "label"}, output) for batch, output in CASES]
    known = {batch["case"]: {"case": batch["case"], "cls": [1] * DEPTH} for batch, _ in CASES}
    run_handler(ClassScores(tmp_path, classes=CLASSES, offsets=[0.1], resamples=5), unmasked, cases=known)
    assert not (tmp_path / "offset_sweep.csv").exists()
    summary = read_json(tmp_path / "class_scores.json")
    assert (summary["confidence_against_dice"], summary["healthy_marked"], summary["masks"]) == (None, None, {})


def test_offsets_are_swept(scored):
    sweep, slices = rows(scored / "offset_sweep.csv"), rows(scored / "class_slices.csv")
    assert [float(row["offset"]) for row in sweep] == [0.0, 0.2, 5.0]
    own = [float(row["dice_raw"]) for row in slices if row["dice_raw"]]
    assert float(sweep[1]["dice_raw"]) == pytest.approx(np.median(own), abs=1e-3)
    assert not any("@" in name for name in slices[0])


def test_a_sweep_of_test_patients_is_refused(tmp_path):
    for section in ("test", "validation+test"):
        with pytest.raises(ValueError, match=r"the test patients'.*say --section validation"):
            ClassScores(tmp_path, classes=CLASSES, offsets=[0.1], section=section)
        ClassScores(tmp_path, classes=CLASSES, section=section)
    ClassScores(tmp_path, classes=CLASSES, offsets=[0.1], section="validation")


def test_heat_counts_inside_the_organ_as_in_the_masks_of_a_run(tmp_path):
    """With the rule of the run, each slice's raw and cleaned masks are those that the run writes."""
    (batch, output), rng = case(0, [0, 2, 2, 0]), np.random.default_rng(1)
    organ = np.zeros((24, 20, DEPTH), np.float32)
    organ[2:20, 3:19] = 1
    organ[10:, 12:] = 0  # the lesion reaches beyond
    heat = np.asarray(output["heatmap"])
    maps = np.concatenate([0 * heat, 0 * heat, heat])
    logits = np.broadcast_to(np.array([0.1, 0.2, 0.7], np.float32)[:, None, None, None], maps.shape)
    image = volume(np.stack([rng.random(organ.shape), organ]))[0]
    for cleaning in ({}, CLEAN):
        made = {"pred": torch.as_tensor(np.concatenate([maps, logits])), "image": image}
        rule = MapsToMaskd(binarize="multi_otsu", offset=0.1, evidence="own", gate=None, clean=cleaning)
        made = rule(made)
        made |= {key: volume(np.asarray(made[key][0])) for key in ("pred", "heatmap")}
        scored = batch | {"image": image, "organ": volume(organ)}
        options = {"offset": 0.1, "fixed": -1.0, "clean": cleaning, "resamples": 5}
        run_handler(ClassScores(tmp_path, classes=CLASSES, **options), [(scored, made)])
        found = [row for row in rows(tmp_path / "class_slices.csv") if row["dice_mask"]]
        assert len(found) == 2
        for row in found:
            truth = np.asarray(batch["label"])[0, ..., int(row["slice"])] > 0
            assert row["dice_cleaned"] == row["dice_mask"]
            assert cleaning or row["dice_raw"] == row["dice_mask"]
            assert float(row["dice_fixed"]) == pytest.approx(dice(organ[..., 1] > 0, truth), abs=1e-4)


def test_one_label_of_a_case_is_that_of_its_slices_with_a_finding():
    truth = np.zeros((3, 3, 4), bool)
    truth[1, 1, 1:3] = True
    assert true_classes({"case": "a", "cls": 2}, truth, 4) == [0, 2, 2, 0]
    assert true_classes({"case": "a", "cls": 2}, None, 4) == [2, 2, 2, 2]
    assert true_classes({"case": "a", "cls": [0, 1, 2, 0]}, truth, 4) == [0, 1, 2, 0]
    assert true_classes({"case": "a"}, truth, 4) == [0, 1, 1, 0]
    assert true_classes({"case": "a"}, None, 4) == [None] * 4


def test_slices_that_are_cases_of_their_own_are_scored_by_patient_and_as_in_their_volumes(scored, tmp_path):
    """As `prepare --split paper` writes them; the mark makes a note."""
    slices, known = [], {}
    for batch, output in CASES:
        for z in range(3):
            name = f"{batch['case']}_s{z:03d}"
            one = {"case": name, "patient": batch["patient"], "split": "paper", "image": batch["image"][..., [z]]}
            one |= {"label": batch["label"][..., [z]], "cls": [batch["cls"][z]]}
            known[name] = {"case": name, "cls": [batch["cls"][z]]}
            slices.append((one, {key: value[..., [z]] for key, value in output.items()}))
    options = {"offset": 0.2, "fixed": 1.0, "clean": CLEAN, "resamples": 5}
    run_handler(ClassScores(tmp_path, classes=CLASSES, **options), slices, cases=known)
    whole, cut = (read_json(folder / "class_scores.json") for folder in (scored, tmp_path))
    assert "of memory" in cut.pop("note")
    assert cut == whole
    assert {row["patient"] for row in rows(tmp_path / "class_slices.csv")} == {f"patient_{k}" for k in range(3)}


def test_heat_below_0_is_no_evidence_however_large_the_offset(tmp_path):
    heat = np.full((8, 8), -1.0)
    heat[2:6, 2:6], heat[3:5, 3:5] = 0.5, 2.0
    organ = np.ones(heat.shape, bool)
    handler = ClassScores(tmp_path, classes=CLASSES, offset=100.0)
    found = handler._mask_scores(heat, heat > 9, heat > 0, organ)
    assert (found["dice_raw"], found["dice_mask"]) == (1.0, 0.0)
