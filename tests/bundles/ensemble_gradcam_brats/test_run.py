"""The bundle as a user runs it: train, search thresholds and combination, evaluate, infer, on a phantom."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from common.commands.phantom import phantom_dataset
from common.metrics import dice, paper_dsc, pooled_miou
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json, run_bundle, shuffled_copy, volumes

BUNDLE = "ensemble_gradcam_brats"
EVALUATE = ("inference.json", "evaluate.json", "phantom.json")
MEMBERS = ("efficientnet_lite0", "resnet10")
ROWS = (*MEMBERS, "or", "and", "min", "max", "mean", "product", "chosen")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """`run(*EVALUATE, …)`: runs the configs on slices half as large as the demo's, and returns the output's folder."""

    def start(*configs: str, **overrides: object) -> Path:
        output = tmp_path_factory.mktemp("out")
        run_bundle(BUNDLE, configs, **{"dataset_dir": data, "output_dir": output, "zoom": 1.0} | overrides)
        return output

    return start


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def datalist_of(data: Path) -> dict[str, Path]:
    """Options with which inference runs over the test cases."""
    return {"datalist": data / "datalist.json"}


def truths_of(data: Path, cases: dict) -> dict[str, np.ndarray]:
    return {case: nib.load(data / case / "mask.nii.gz").get_fdata() > 0 for case in cases}


@pytest.fixture(scope="module")
def ckpt(run) -> Path:
    """Weights of a training with the demo's settings, but shorter."""
    return run("train.json", "phantom.json", max_epochs=10) / "model.pt"


@pytest.fixture(scope="module")
def searched(run, ckpt) -> Path:
    """`calibrated.json` of a search."""
    return run(*EVALUATE, "search.json", ckpt=ckpt, intensity_masks=[None, 0.6]) / "calibrated.json"


@pytest.fixture(scope="module")
def evaluated(run, ckpt, searched) -> Path:
    return run(*EVALUATE, str(searched), ckpt=ckpt)


@pytest.fixture(scope="module")
def unrefined(run, ckpt, searched, data, tmp_path_factory) -> Path:
    """What inference writes where the combination is all that makes the mask."""
    plain = tmp_path_factory.mktemp("plain") / "plain.json"
    plain.write_text(json.dumps({"refine": None, "gate": read_json(searched)["table_gate"], "min_volume_ml": 0.0}))
    return run("inference.json", "phantom.json", str(searched), str(plain), ckpt=ckpt, **datalist_of(data))


def test_masks_beat_the_empty_mask_and_the_threshold(evaluated):
    summary = read_json(evaluated / "summary.json")
    assert summary["dice"]["mean"] > summary["dice_empty"]["mean"] + 0.2
    assert summary["dice"]["mean"] > summary["dice_baseline_threshold"]["mean"]
    assert summary["slices"]["auc"] > 0.85  # of slices with brain


def test_search_lists_every_candidate_and_keeps_the_best_on_validation_cases(searched):
    rows = rows_of(searched.with_name("search.csv"))
    assert len(rows) == 2 * (2 + 6)  # intensity masks times members and combinations
    best = max(rows, key=lambda row: float(row["validation_dice"]))
    chosen = read_json(searched)
    assert " ".join(map(str, chosen["thresholds"])) == best["thresholds"]
    assert str(chosen["intensity_mask"] or "") == best["intensity_mask"]
    assert len(chosen["use"]) == len(best["members"].split("+"))
    assert set(chosen["table"]) == set(ROWS)
    assert Image.open(searched.with_name("threshold_grid.png")).size[0] > 100


def test_every_row_of_the_table_is_scored_on_every_case(evaluated):
    summary, cases = read_json(evaluated / "summary.json"), rows_of(evaluated / "metrics.csv")
    assert len(cases) == summary["cases"] == 7
    for row in ROWS:
        scores = [float(case[f"dice_baseline_{row}"]) for case in cases]
        assert summary[f"dice_baseline_{row}"]["mean"] == pytest.approx(np.mean(scores), abs=1e-3)
        assert np.mean(scores) > summary["dice_empty"]["mean"] + 0.1
        pooled = summary["pooled"][f"baseline_{row}"]
        assert pooled["paper_dsc"] == pytest.approx(paper_dsc(pooled["miou"]), abs=1e-3)
        assert pooled["miou"] > summary["pooled"]["empty"]["miou"]
    one, other = ([case[f"dice_baseline_{member}"] for case in cases] for member in MEMBERS)
    assert one != other


def test_row_of_the_chosen_combination_scores_what_inference_writes_without_refinement(evaluated, unrefined, data):
    scores = {row["case"]: float(row["dice_baseline_chosen"]) for row in rows_of(evaluated / "metrics.csv")}
    masks = volumes(unrefined)
    for case, truth in truths_of(data, scores).items():
        assert scores[case] == pytest.approx(dice(masks[case], truth), abs=1e-3)


def test_without_refinement_the_mask_is_where_the_heatmap_is_positive_in_gated_slices(unrefined):
    heatmaps, masks = volumes(unrefined, "heatmap"), volumes(unrefined)
    slices = [(h > 0, m > 0) for case in masks for h, m in zip(heatmaps[case].T, masks[case].T, strict=True)]
    shown = [(heat, mask) for heat, mask in slices if mask.any()]
    assert len(slices) > len(shown) > 10
    for heat, mask in shown:
        np.testing.assert_array_equal(mask, heat)
    assert any(heat.any() and not mask.any() for heat, mask in slices)  # the gate is shut for some


def test_pooled_scores_are_those_of_the_written_masks(evaluated, data):
    masks = volumes(evaluated)
    truths = truths_of(data, masks)
    pairs = [(mask > 0, truths[case]) for case, mask in masks.items()]
    summary = read_json(evaluated / "summary.json")
    assert summary["pooled"]["method"]["miou"] == pytest.approx(pooled_miou(*zip(*pairs, strict=True)), abs=1e-3)
    assert summary["dice"]["mean"] == pytest.approx(np.mean([dice(*pair) for pair in pairs]), abs=1e-3)


def test_calibration_leaves_a_bad_start_for_the_best_that_it_tries(run, ckpt, searched):
    few = {"threshold": [-0.1, 0.0, 0.1], "refine.intensity": [1.1, 1.3]}
    options = {"ckpt": ckpt, "candidates": few, "start#threshold": 0.3, "raw_thresholds": []}
    output = run(*EVALUATE, str(searched), "calibrate.json", **options)
    chosen, trials = read_json(output / "calibrated.json"), rows_of(output / "calibration.csv")
    scores = [float(row["dice"]) for row in trials]
    assert max(scores) > scores[0] + 0.02
    assert chosen["threshold"] in few["threshold"]
    same = {"threshold": chosen["threshold"], "refine.intensity": chosen["refine"]["intensity"]}
    reached = [
        score for row, score in zip(trials, scores, strict=True) if all(float(row[k]) == v for k, v in same.items())
    ]
    assert reached
    assert reached == [max(scores)] * len(reached)


def test_inference_writes_the_masks_that_evaluation_scored(run, ckpt, searched, evaluated, data):
    output = run("inference.json", "phantom.json", str(searched), ckpt=ckpt, **datalist_of(data))
    written, scored = volumes(output), volumes(evaluated)
    assert any(mask.any() for mask in scored.values())
    for case, mask in scored.items():
        np.testing.assert_array_equal(written[case], mask)
    assert written.keys() == scored.keys()
    for case in written:
        image, heatmap = (nib.load(path) for path in (data / case / "flair.nii.gz", output / f"{case}_heatmap.nii.gz"))
        assert heatmap.shape == image.shape
        np.testing.assert_allclose(heatmap.affine, image.affine, atol=1e-5)


def test_training_never_sees_where_in_a_slice_the_mask_is(run, tmp_path):
    as_is = phantom_dataset(tmp_path / "as_is", cases=8)
    short = {"max_epochs": 1}
    states = [
        torch.load(run("train.json", "phantom.json", dataset_dir=data, **short) / "model.pt", weights_only=True)
        for data in (as_is, shuffled_copy(as_is, tmp_path / "shuffled"))
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_wrong_number_of_thresholds_is_explained(data, ckpt, tmp_path):
    configs = [str(REPOSITORY / "bundles" / BUNDLE / "configs" / f"{n}.json") for n in ("inference", "phantom")]
    done = monai_bundle(
        *("run", "--config_file", str(configs), "--dataset_dir", str(data), "--output_dir", str(tmp_path)),
        *("--ckpt", str(ckpt), "--thresholds", "[0.5]", "--image_pattern", "phantom_000/flair.nii.gz"),
        check=False,
    )
    assert done.returncode != 0
    assert "'and' of 2 maps takes 2 threshold(s), got [0.5]" in done.stderr
