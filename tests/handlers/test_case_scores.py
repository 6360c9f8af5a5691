from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from sklearn.metrics import roc_auc_score

from common import metrics
from common.handlers import CaseScores, position_prior
from tests.pipeline import affine_of, evaluator, run_handler, save

SHAPE = (8, 9, 6)  # LPS, slices last
AXES = {"LPS": (0, 1, 2), "ASL": (1, 2, 0), "RIP": (0, 2, 1)}


def in_file(volume: np.ndarray, axcodes: str) -> MetaTensor:
    """An LPS volume as a file with other axes holds it, `[1, …]`."""
    flips = [i for i, code in enumerate("LPS") if code not in axcodes]
    turned = np.transpose(np.flip(volume, flips), AXES[axcodes]).copy()
    affine = affine_of(axcodes, (1.0, 1.0, 1.0), turned.shape)
    return MetaTensor(torch.as_tensor(turned[None]), affine=torch.as_tensor(affine))


def item(number: int, axcodes: str = "LPS", *, healthy: bool = False, patient: str | None = None) -> dict[str, Any]:
    """A random case in LPS order, slices 0 and 5 healthy."""
    rng = np.random.default_rng(number)
    truth = rng.random(SHAPE) > 0.6
    truth[..., [0, 5]] = False
    truth &= not healthy
    heat = rng.normal(size=SHAPE) + truth
    return {
        "case": f"case_{number}",
        "patient": patient or f"case_{number}",
        "axcodes": axcodes,
        "truth": truth,
        "heat": heat.astype(np.float32),
        "pred": (heat > 1) & (np.arange(SHAPE[2]) != 5),
        "p": rng.random(SHAPE[2]),
        "baseline": rng.random(SHAPE) > 0.5,
        "outside": rng.random(),
    }


def pair(case: dict[str, Any]) -> tuple[dict, dict]:
    turned = {
        k: in_file(v, case["axcodes"])
        for k, v in {
            "label": 4 * case["truth"].astype(np.int16),
            "pred": 2 * case["pred"].astype(np.uint8),
            "heatmap": case["heat"],
            "baseline_threshold": case["baseline"].astype(np.uint8),
        }.items()
    }
    batch = {"case": case["case"], "patient": case["patient"], "label": turned.pop("label")}
    output = {"slice_probability": np.stack([1 - case["p"], case["p"]]), "heat_outside": torch.tensor(case["outside"])}
    return batch, turned | output


def score(tmp_path: Path, cases: list[dict[str, Any]], **options: Any) -> CaseScores:
    handler = CaseScores(tmp_path, **{"resamples": 50, **options})
    run_handler(handler, [pair(case) for case in cases])
    return handler


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)


@pytest.fixture
def cases() -> list[dict[str, Any]]:
    return [item(0), item(1, "ASL"), item(2, "RIP", patient="p"), item(3, healthy=True, patient="p")]


def test_rows_are_the_metrics_of_each_case_whatever_its_axes(tmp_path, cases):
    score(tmp_path, cases, raw_threshold=0.3)
    for row, case in zip(read(tmp_path / "metrics.csv"), cases, strict=True):
        truth, pred, raw = case["truth"], case["pred"], case["heat"] > 0.3
        mean = [float(np.mean(s)) if len(s) else np.nan for s in (metrics.slice_dice(m, truth) for m in (pred, raw))]
        expected = {
            "dice": metrics.dice(pred, truth),
            "dice_positive": metrics.dice(pred, truth) if truth.any() else np.nan,
            "iou": metrics.iou(pred, truth),
            "dice_raw": metrics.dice(raw, truth),
            "slice_dice": mean[0],
            "slice_dice_raw": mean[1],
            "healthy_fpr": metrics.healthy_false_positive_rate(pred, truth),
            "heat_outside": case["outside"],
            "dice_empty": float(not truth.any()),
            "dice_baseline_threshold": metrics.dice(case["baseline"], truth),
            "slice_dice_baseline_threshold": baseline.mean()
            if len(baseline := metrics.slice_dice(case["baseline"], truth))
            else np.nan,
        }
        assert (row.pop("case"), row.pop("patient")) == (case["case"], case["patient"])
        assert {k: float(v) for k, v in row.items()} == pytest.approx(expected, abs=6e-5, nan_ok=True)


def test_pooled_scores_are_those_of_all_voxels_together(tmp_path, cases):
    pooled = score(tmp_path, cases).summary()["pooled"]
    truths = [case["truth"] for case in cases]
    rows = {"method": [c["pred"] for c in cases], "empty": [np.zeros_like(t) for t in truths]}
    for name, masks in (rows | {"baseline_threshold": [c["baseline"] for c in cases]}).items():
        miou = metrics.pooled_miou(masks, truths)
        assert pooled[name]["miou"] == pytest.approx(miou, abs=6e-5), name
        assert pooled[name]["paper_dsc"] == pytest.approx(2 * miou / (1 + miou), abs=6e-5), name


def test_slices_are_listed_from_below_with_their_truth_and_probability(tmp_path, cases):
    score(tmp_path, cases)
    rows = iter(read(tmp_path / "slices.csv"))
    for case in cases:
        for z in range(SHAPE[2]):
            row = next(rows)
            assert (row["case"], row["patient"], int(row["slice"])) == (case["case"], case["patient"], z)
            assert int(row["positive"]) == int(case["truth"][..., z].any())
            assert float(row["probability"]) == pytest.approx(case["p"][z], abs=6e-5)
            assert float(row["position"]) == pytest.approx(z / 5, abs=6e-5)
    assert next(rows, None) is None


def test_slices_without_organ_are_left_out_unless_they_hold_a_finding(tmp_path, cases):
    case = cases[0]
    batch, output = pair(case)
    organ = np.zeros(SHAPE, np.uint8)
    organ[2:5, 2:5, 2:4] = 1
    batch["organ"] = in_file(organ, case["axcodes"])
    run_handler(CaseScores(tmp_path, resamples=50), [(batch, output)])
    positive = set(np.flatnonzero(case["truth"].any(axis=(0, 1))))
    scored = {int(row["slice"]) for row in read(tmp_path / "slices.csv")}
    assert scored == {2, 3} | positive
    assert len(scored) < SHAPE[2]


def test_cases_of_which_no_slice_shows_organ_or_a_finding_have_no_slice_scores(tmp_path):
    batch, output = pair(item(0, healthy=True))
    batch["organ"] = in_file(np.zeros(SHAPE, np.uint8), "LPS")
    run_handler(CaseScores(tmp_path, resamples=50), [(batch, output)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["slices"], summary["cases"]) == ({}, 1)


def test_summary_is_that_of_the_cases_and_of_all_slices(tmp_path, cases):
    score(tmp_path, cases)
    result = summary(tmp_path)
    assert result["cases"] == 4
    dices = [metrics.dice(case["pred"], case["truth"]) for case in cases]
    assert result["dice"] == pytest.approx(
        metrics.summarize(dices, patients=[case["patient"] for case in cases]), abs=6e-5
    )
    by_case = metrics.bootstrap_interval(dices)  # two cases are of one patient
    assert (result["dice"]["low"], result["dice"]["high"]) != by_case
    assert result["slice_dice"]["count"] == 3  # undefined in the healthy case
    positive = np.concatenate([case["truth"].any(axis=(0, 1)) for case in cases])
    probability = np.concatenate([case["p"] for case in cases])
    assert result["slices"]["auc"] == pytest.approx(roc_auc_score(positive, probability), abs=6e-5)
    assert result["slices"]["auc_interval"] == [None, None]  # of three patients
    score(tmp_path, [item(number) for number in range(6)])
    slices = summary(tmp_path)["slices"]
    low, high = slices["auc_interval"]
    assert 0 <= low < slices["auc"] < high <= 1


def test_slices_that_were_drawn_whatever_patient_they_are_of_are_said_to_be_of_memory(tmp_path, cases):
    handler = CaseScores(tmp_path, resamples=5)
    run_handler(handler, [pair(case) for case in cases])
    assert "note" not in summary(tmp_path)
    run_handler(handler, [(batch | {"split": "paper"}, output) for batch, output in map(pair, cases)])
    assert "scores are of memory" in summary(tmp_path)["note"]
    assert "split" not in read(tmp_path / "metrics.csv")[0]
    run_handler(handler, [pair(case) for case in cases])
    assert "note" not in summary(tmp_path)


def test_summary_is_strict_json_with_null_where_a_score_is_undefined(tmp_path):
    score(tmp_path, [item(3, healthy=True)])
    result = summary(tmp_path)
    assert result["dice"]["mean"] is not None
    assert result["dice"]["low"] is None  # no interval of one case
    assert result["slice_dice"] == {
        "mean": None, "std": None, "median": None, "low": None, "high": None, "median_low": None, "median_high": None,
        "count": 0,
    }  # fmt: skip
    assert result["slices"]["auc"] is None
    assert result["slices"]["auc_interval"] == [None, None]


def test_threshold_sweep_is_the_mean_dice_of_the_raw_map_at_each_threshold(tmp_path, cases):
    sweep = [-0.5, 0.0, 0.7, 1.5, 99.0]
    score(tmp_path, cases, sweep=sweep)
    rows = read(tmp_path / "threshold_sweep.csv")
    assert [float(row["threshold"]) for row in rows] == sweep
    expected = [np.mean([metrics.dice(case["heat"] > t, case["truth"]) for case in cases]) for t in sweep]
    assert [float(row["dice_raw"]) for row in rows] == pytest.approx(expected, abs=6e-5)


def test_position_alone_is_scored_by_the_prior_at_each_slice(tmp_path, cases):
    prior = [0.1, 0.7, 0.3, 0.9]
    score(tmp_path, cases, position_prior=prior)
    positive = np.concatenate([case["truth"].any(axis=(0, 1)) for case in cases])
    by_slice = [prior[b] for b in (0, 0, 1, 2, 3, 3)]  # positions 0, 0.2 … 1 in quarters
    expected = roc_auc_score(positive, by_slice * 4)
    assert summary(tmp_path)["slices"]["auc_position_alone"] == pytest.approx(expected, abs=6e-5)


def test_position_prior_is_the_share_of_positive_slices_in_each_bin():
    cases = [{"cls": [0, 0, 1, 2, 0]}, {"cls": [1, 1, 0]}, {"cls": 1}, {}]
    # Positions 0, 1/4, 1/2, 3/4, 1 and 0, 1/2, 1: a bin begins at its lower bound, the last one holds 1.
    assert position_prior(cases, bins=4) == pytest.approx([1 / 2, 0, 2 / 2, 1 / 3])
    assert position_prior(cases, bins=2) == pytest.approx([1 / 3, 3 / 5])
    assert position_prior([{"cls": [1]}], bins=3) == [1, 0, 0]
    assert position_prior([], bins=2) == [0, 0]


@pytest.mark.parametrize("bins", [4, 10, 20])
def test_a_prior_learned_from_slices_ranks_the_same_slices_perfectly(tmp_path, bins):
    case = item(0)
    case["truth"] = np.zeros(SHAPE, bool)
    case["truth"][..., 2:4] = True
    prior = position_prior([{"cls": [0, 0, 1, 1, 0, 0]}] * 3, bins=bins)
    score(tmp_path, [case], position_prior=prior)
    assert summary(tmp_path)["slices"]["auc_position_alone"] == 1.0


def test_cases_without_a_label_are_left_out(tmp_path, cases):
    pairs = [pair(case) for case in cases]
    del pairs[1][0]["label"]
    handler = CaseScores(tmp_path, resamples=10)
    run_handler(handler, pairs)
    assert [row["case"] for row in read(tmp_path / "metrics.csv")] == ["case_0", "case_2", "case_3"]


def test_without_any_label_it_says_so_and_writes_nothing(tmp_path, cases, caplog):
    pairs = [pair(case) for case in cases]
    for batch, _ in pairs:
        del batch["label"]
    run_handler(CaseScores(tmp_path / "out"), pairs)
    assert re.search(r"no case has a mask: scored from labels .*label_pattern", caplog.text)
    assert not (tmp_path / "out").exists()


def test_label_of_another_shape_fails_its_case_alone_with_both_shapes(tmp_path):
    image = np.random.default_rng(0).uniform(0.9, 1.1, (20, 20, 6)).astype(np.float32)
    image[5:10, 5:10, 2:4] = 3.0
    cases = [
        {
            "case": name,
            "patient": name,
            "image": save(tmp_path / name / "image.nii.gz", image),
            "label": save(tmp_path / name / "label.nii.gz", (label > 2).astype(np.uint8)),
        }
        for name, label in (("good", image), ("small", image[:18]), ("short", image[..., :5]))
    ]
    engine = evaluator(cases, [CaseScores(tmp_path / "out", resamples=10)], spacing=[-1.0, -1.0, -1.0])
    with pytest.raises(RuntimeError, match="2 of 3 cases failed"):
        engine.run()
    assert str(tmp_path / "small" / "label.nii.gz") in engine.failed["small"]
    assert "their shapes are [18, 20, 6] and [20, 20, 6]" in engine.failed["small"]
    assert "[20, 20, 5]" in engine.failed["short"]
    (row,) = read(tmp_path / "out" / "metrics.csv")
    assert (row["case"], float(row["dice"])) == ("good", 1.0)


@pytest.mark.parametrize(
    ("seen", "expected"), [([0.1, 0.9], [0.1] * 3 + [0.9] * 3), ([*range(12)], [*range(1, 12, 2)])]
)
def test_slices_of_a_scan_that_was_resampled_have_the_probability_of_the_one_that_was_seen_there(
    tmp_path, seen, expected
):
    batch, output = pair(item(0))
    output["slice_probability"] = np.stack([1 - np.array(seen), np.array(seen)])
    handler = CaseScores(tmp_path, resamples=5)
    run_handler(handler, [(batch, output)])
    assert [row["probability"] for row in handler.slices] == pytest.approx(expected)


def test_a_second_run_starts_afresh(tmp_path, cases):
    handler = score(tmp_path, cases)
    run_handler(handler, [pair(cases[0])])
    assert len(read(tmp_path / "metrics.csv")) == 1
    assert len(read(tmp_path / "slices.csv")) == SHAPE[2]


def test_within_the_organ_pooled_scores_count_no_other_voxel(tmp_path, cases):
    organ = np.zeros(SHAPE, bool)
    organ[2:6, 3:7, 1:4] = True
    items = [pair(case) for case in cases]
    for (batch, _), case in zip(items, cases, strict=True):
        batch["organ"] = in_file(organ.astype(np.uint8), case["axcodes"])
    handler = CaseScores(tmp_path, resamples=5, pooled_within="organ")
    run_handler(handler, items)
    expected = metrics.pooled_miou([case["pred"][organ] for case in cases], [case["truth"][organ] for case in cases])
    assert handler.summary()["pooled"]["method"]["miou"] == pytest.approx(expected, abs=6e-5)
