from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from common.engines import CaseDataset
from common.handlers import VolumeScores
from tests.pipeline import run_handler


def read(path: Path) -> dict:
    """JSON, strictly."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def volume(positive: float) -> torch.Tensor:
    return torch.tensor([1 - positive, positive])


def cube(*ranges) -> torch.Tensor:
    mask = torch.zeros(1, 10, 10, 10)
    for start, stop in ranges:
        mask[0, start:stop, start:stop, start:stop] = 1
    return mask


def test_volume_scores_are_those_counted_by_hand(tmp_path):
    # Two lesions, one found, one component too many: tp 1, fp 1, fn 1.
    lesions = {"case": "a", "label": cube((0, 2), (4, 6))}
    found = {"pred": cube((0, 2), (8, 10)), "probability": volume(0.9), "baseline_threshold": cube()}
    # A healthy volume, wrongly called positive, and one without mask that is rightly called negative.
    healthy = {"case": "b", "label": cube()}
    second = {"pred": cube((1, 2)), "probability": volume(0.6), "baseline_threshold": cube()}
    third = {"pred": cube(), "probability": volume(0.2), "baseline_threshold": cube()}
    # A box: half of what was predicted.
    box = {"case": "d", "cls": 1, "box": torch.tensor([0, 0, 0, 4, 4, 2])}
    fourth = {"pred": cube((0, 4)), "probability": volume(0.5), "baseline_threshold": cube()}
    run_handler(
        VolumeScores(tmp_path), [(lesions, found), (healthy, second), ({"case": "c", "cls": 0}, third), (box, fourth)]
    )
    summary = read(tmp_path / "volumes.json")
    assert summary["method"]["f1"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert summary["method"]["dice"]["mean"] == pytest.approx(0.5)  # of the one with lesions
    assert (summary["method"]["volumes"], summary["method"]["with_lesion"]) == (4, 1)
    assert summary["method"]["negatives_empty"] == pytest.approx(1 / 2)
    assert summary["method"]["ml_in_negatives"]["mean"] == pytest.approx((0.001 + 0.0) / 2, abs=1e-4)
    assert summary["method"]["max_iou"]["mean"] == pytest.approx(0.5)
    assert summary["method"]["balanced_accuracy"] == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert summary["method"]["auc"] == pytest.approx(0.75)
    assert "auc" not in summary["threshold"]
    assert summary["threshold"]["balanced_accuracy"] == pytest.approx(0.5)
    assert summary["threshold"]["max_iou"]["mean"] == 0.0
    with open(tmp_path / "volumes.csv", encoding="utf-8") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [c for c in "abcd" for _ in range(2)]


def test_volume_label_reaches_the_scores_and_slice_labels_do_not():
    data = [{"case": "a", "cls": 1}, {"case": "b", "cls": [0, 1]}]
    dataset = CaseDataset(data, lambda case: case)
    assert dataset[0]["cls"] == 1
    assert "cls" not in dataset[1]


def test_of_one_volume_the_spread_and_the_interval_are_null(tmp_path):
    run_handler(VolumeScores(tmp_path), [({"case": "a", "label": cube((0, 2))}, {"pred": cube((0, 2))})])
    method = read(tmp_path / "volumes.json")["method"]
    assert [method["dice"][key] for key in ("mean", "low", "high")] == [1.0, None, None]
    assert method.keys() == {"volumes", "with_lesion", "dice", "precision", "recall", "f1"}  # nothing of other labels


def test_a_mask_that_marks_nothing_has_no_dice_from_healthy_volumes(tmp_path):
    truths = [cube((0, 4)), cube((2, 6)), cube(), cube(), cube()]
    nothing = {"pred": MetaTensor(cube(), affine=torch.diag(torch.tensor([10.0, 10, 10, 1])))}
    all_of_it = {"baseline_all": cube((0, 10))}
    run_handler(
        VolumeScores(tmp_path), [({"case": str(k), "label": t}, nothing | all_of_it) for k, t in enumerate(truths)]
    )
    summary = read(tmp_path / "volumes.json")
    assert (summary["method"]["dice"]["mean"], summary["method"]["dice"]["count"]) == (0.0, 2)
    assert (summary["method"]["with_lesion"], summary["method"]["volumes"]) == (2, 5)
    assert summary["method"]["negatives_empty"] == 1.0
    assert summary["all"]["negatives_empty"] == 0.0
    assert summary["all"]["ml_in_negatives"]["mean"] == 1000.0  # of all voxels, a ml each
    with open(tmp_path / "volumes.csv", encoding="utf-8") as file:
        assert [row["dice"] for row in csv.DictReader(file) if row["mask"] == "method"] == ["0.0"] * 2 + ["nan"] * 3


def test_intervals_draw_patients_with_all_of_their_volumes(tmp_path):
    apart = [(cube((0, 4)), cube((0, 4)))] * 4 + [(cube((0, 4)), cube((6, 8)))] * 4
    rows = [({"case": str(k), "patient": "ab"[k // 4], "label": t}, {"pred": p}) for k, (t, p) in enumerate(apart)]
    run_handler(VolumeScores(tmp_path), rows)
    found = read(tmp_path / "volumes.json")["method"]["dice"]
    assert [found[key] for key in ("mean", "low", "high")] == [0.5, 0.0, 1.0]


def test_a_volume_of_which_nothing_is_known_is_no_negative_one(tmp_path):
    unknown = {"case": "a", "box": torch.tensor([0, 0, 0, 2, 2, 2])}
    healthy = {"case": "b", "cls": 0}
    run_handler(VolumeScores(tmp_path), [(unknown, {"pred": cube((0, 2))}), (healthy, {"pred": cube()})])
    method = read(tmp_path / "volumes.json")["method"]
    assert (method["negatives_empty"], method["ml_in_negatives"]["count"]) == (1.0, 1)
