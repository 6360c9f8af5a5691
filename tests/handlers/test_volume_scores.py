from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from common.engines import CaseDataset
from common.handlers import VolumeScores


def engine(batch: dict, output: dict) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(batch=[batch], output=[output]))


def volume(positive: float) -> torch.Tensor:
    return torch.tensor([1 - positive, positive])


def cube(*ranges) -> torch.Tensor:
    mask = torch.zeros(1, 10, 10, 10)
    for start, stop in ranges:
        mask[0, start:stop, start:stop, start:stop] = 1
    return mask


def test_volume_scores_are_those_counted_by_hand(tmp_path):
    handler = VolumeScores(tmp_path)
    handler._start(None)
    # Two lesions, one found, one component too many: tp 1, fp 1, fn 1.
    found = {"pred": cube((0, 2), (8, 10)), "probability": volume(0.9), "baseline_threshold": cube()}
    handler._score(engine({"case": "a", "label": cube((0, 2), (4, 6))}, found))
    # A healthy volume, wrongly called positive, and one without mask that is rightly called negative.
    second = {"pred": cube((1, 2)), "probability": volume(0.6), "baseline_threshold": cube()}
    handler._score(engine({"case": "b", "label": cube()}, second))
    third = {"pred": cube(), "probability": volume(0.2), "baseline_threshold": cube()}
    handler._score(engine({"case": "c", "cls": 0}, third))
    # A box: half of what was predicted.
    box = {"case": "d", "cls": 1, "box": torch.tensor([0, 0, 0, 4, 4, 2])}
    fourth = {"pred": cube((0, 4)), "probability": volume(0.5), "baseline_threshold": cube()}
    handler._score(engine(box, fourth))
    handler._finish(None)
    summary = json.loads((tmp_path / "volumes.json").read_text())
    assert summary["method"]["f1"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert summary["method"]["dice"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert summary["method"]["max_iou"]["mean"] == pytest.approx(0.5)
    assert summary["method"]["balanced_accuracy"] == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert summary["method"]["auc"] == pytest.approx(0.75)
    assert "auc" not in summary["threshold"]
    assert summary["threshold"]["balanced_accuracy"] == pytest.approx(0.5)
    assert summary["threshold"]["max_iou"]["mean"] == 0.0
    with open(tmp_path / "volumes.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [c for c in "abcd" for _ in range(2)]


def test_volume_label_reaches_the_scores_and_slice_labels_do_not():
    data = [{"case": "a", "cls": 1}, {"case": "b", "cls": [0, 1]}]
    dataset = CaseDataset(data, lambda case: case)
    assert dataset[0]["cls"] == 1
    assert "cls" not in dataset[1]


@pytest.mark.parametrize(("rank", "written"), [(0, ["a", "b"]), (1, None)])
def test_the_first_process_writes_the_rows_of_all(tmp_path, monkeypatch, rank, written):
    other = {"case": "b", "mask": "method", "predicted": 0}
    monkeypatch.setattr("common.handlers.volume_scores.gathered_rows", lambda rows, cases: [*rows, other])
    monkeypatch.setattr("common.handlers.volume_scores.get_rank", lambda: rank)
    handler = VolumeScores(tmp_path)
    handler._start(None)
    handler._score(engine({"case": "a", "cls": 1}, {"pred": cube((0, 2))}))
    handler._finish(SimpleNamespace(cases=["a", "b"]))
    if written is None:
        assert not list(tmp_path.iterdir())
    else:
        with open(tmp_path / "volumes.csv") as file:
            assert [row["case"] for row in csv.DictReader(file)] == written
