"""The paper's protocol for MosMed in one command: from the owners' folder to AUC on folds of A and Dice on B.

With a small encoder and a stand-in for lungmask, whose weights are on the internet.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

import common.commands.crossvalidate
from common.commands.crossvalidate import crossvalidate
from common.commands.prepare import prepare
from tests.bundles.conftest import REPOSITORY, load_script, read_json, volumes
from tests.bundles.mosmed import SHAPE, run_with_modules, write_mosmed

VARIANTS = read_json(REPOSITORY / "bundles" / "insight_ct" / "docs" / "ablation_variants.json")
SMALL = {"encoder_name": "efficientnet_lite0", "size": 32, "shape": [32, 32, 4], "width": 8}
LUNGMASK = """
import numpy as np

class LMInferer:
    def __init__(self, modelname, modelpath, tqdm_disable):
        assert (modelname, modelpath) == ("R231", None)

    def apply(self, slices):
        lungs = np.zeros(slices.shape, np.uint8)
        lungs[:, 2:-2, 2:-2] = 1
        return lungs
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("mosmed")
    write_mosmed(data, studies=16, masks=2)
    with pytest.warns(UserWarning, match="'test' holds no negative label"):
        prepare("mosmed", str(data), masked_section="test", fractions=(0.8, 0.2, 0.0))
    (data / "modules").mkdir()
    (data / "modules" / "lungmask.py").write_text(LUNGMASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.commands.crossvalidate, "run_bundle", partial(run_with_modules, modules=data / "modules"))
        crossvalidate(
            "insight_ct",
            str(data),
            str(data / "out"),
            folds=2,
            keep="test",
            train="train.json,mosmed.json,paper.json",
            evaluate="inference.json,evaluate.json,mosmed.json,paper.json",
            choose="",
            max_epochs=8,
            patience=1,
            **SMALL,
        )
    return data / "out"


def test_volumes_without_masks_are_told_apart_by_fold_and_those_with_masks_are_segmented(run):
    scores = read_json(run / "crossvalidation.json")
    assert 0 <= scores["labels.volumes.auc"]["mean"] <= 1
    assert scores["kept.dice.mean"]["std"] >= 0
    with open(run / "kept_metrics.csv", encoding="utf-8") as file:
        cases = [(row["fold"], row["case"]) for row in csv.DictReader(file)]
    assert cases == [(fold, f"study_000{number}") for fold in "01" for number in (1, 3)]
    for k in range(2):
        fold = read_json(run / f"datalist_fold{k}.json")
        assert not {"study_0001", "study_0003"} & {case["case"] for part in ("training", "test") for case in fold[part]}
        for mask in volumes(run / f"fold{k}" / "kept").values():
            assert mask.shape == SHAPE
            assert not mask[[0, -1]].any()  # beyond what lungmask calls lung


def test_training_stops_without_progress_and_pools_above_otsus_threshold(run):
    for k in range(2):
        with open(run / f"fold{k}" / "training" / "training_log.csv", encoding="utf-8") as file:
            reached = [float(row["auc"]) for row in csv.DictReader(file)]
        assert len(reached) < 8
        assert reached[-1] <= max(reached[:-1]) + 1e-6
        trained = read_json(run / f"fold{k}" / "training" / "model.json")["trained"]
        assert (trained["organ"], trained["otsu"]) == ("lungmask", True)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_row_of_the_ablation_builds_a_head_that_trains(name):
    changes = VARIANTS[name]
    options = {"name": "insight", "tokens": False, "width": 8}
    names = {"head_name": "name", "head_tokens": "tokens"}
    options |= {names.get(k, k): v for k, v in changes.items() if k not in ("stack", "decoupling", "embedding")}
    head = load_script("insight_ct", "heads").make_head(in_channels=6, num_labels=1, **options).train()
    heatmap, probability, penalty = head(torch.rand(2, 6, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(1))
    (probability.sum() + penalty).backward()
    assert heatmap.shape == (2, 1, 4, 4)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
