from __future__ import annotations

import json
import re

import pytest
import torch

from common.files import write_csv, write_json
from common.report import write_report
from common.report.training import build_training, kept_epoch

ROWS = [
    {"epoch": epoch, "loss": 1 / epoch, "auc": auc, "learning_rate": 0.001, "seconds": 2.0}
    for epoch, auc in enumerate((0.6, 0.9, 0.8, 0.9, 0.7), 1)
]


@pytest.mark.parametrize(
    ("best", "epoch", "why"),
    [
        (0.9, 4, "the highest AUC of validation, 0.900"),  # of equals the later one
        (-float("inf"), 5, "the last one"),
        (None, None, "not known: checkpoint.pt is not there"),
        (0.95, None, "not known: the log lacks the metric that decided"),
    ],
)
def test_the_epoch_is_named_whose_weights_were_kept(best, epoch, why):
    assert kept_epoch(ROWS, best=best) == {"epoch": epoch, "why": why}


def test_a_folder_without_a_log_holds_no_training(tmp_path):
    assert build_training(tmp_path) is None


def test_a_page_is_written_from_the_log_of_a_training(tmp_path):
    write_csv(tmp_path / "training_log.csv", ROWS)
    torch.save({"best": 0.9}, tmp_path / "checkpoint.pt")
    (tmp_path / "model.pt").write_bytes(b"weights")
    write_json(tmp_path / "model.json", {"trained_on": {"labels": "slices", "training": "5 cases", "masks": "none"}})
    text = write_report(tmp_path).read_text()
    report = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)[1])
    assert report["kind"] == "training"
    assert [curve["name"] for curve in report["training"]["curves"]] == ["loss", "auc", "learning rate"]
    assert (report["training"]["seconds"], report["training"]["kept"]["epoch"]) == (10.0, 4)
    learned = "The network learned from yes/no labels of slices: 5 cases."
    assert report["supervision"] == [learned, "No ground-truth mask was opened in training."]
    assert str(tmp_path) not in text
