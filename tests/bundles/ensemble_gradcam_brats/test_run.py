"""The bundle as a user runs it: train, search thresholds and combination, evaluate, infer, on a phantom."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.commands.phantom import phantom_dataset
from common.commands.run import names, run_bundle
from common.metrics import dice, pooled_miou
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json

BUNDLE = "ensemble_gradcam_brats"
EVALUATE = "inference.json,evaluate.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """`run(EVALUATE, …)`: runs the configs under `phantom.json` and returns the folder of the output."""

    def start(*configs: str, output: Path | None = None, **overrides) -> Path:
        output = output or tmp_path_factory.mktemp("out")
        first, *others = configs
        settings = {"dataset_dir": str(data), "output_dir": str(output), "progress": False, **overrides}
        run_bundle(BUNDLE, [*names(first), "phantom.json", *others], **settings)
        return output

    return start


@pytest.fixture(scope="module")
def ckpt(run) -> str:
    return str(run("train.json") / "model.pt")


@pytest.fixture(scope="module")
def searched(run, ckpt) -> Path:
    return run(EVALUATE, "search.json", ckpt=ckpt, intensity_masks="[None, 0.6]")


@pytest.fixture(scope="module")
def evaluated(run, ckpt, searched) -> Path:
    return run(EVALUATE, str(searched / "calibrated.json"), ckpt=ckpt)


def test_masks_beat_the_empty_mask_and_the_threshold(evaluated):
    summary = read_json(evaluated / "summary.json")
    assert summary["dice"]["mean"] > summary["dice_empty"]["mean"] + 0.2
    assert summary["dice"]["mean"] > summary["dice_baseline_threshold"]["mean"]
    assert summary["slices"]["auc"] > 0.9


def test_search_lists_every_candidate_and_keeps_the_best_on_validation_cases(searched):
    with open(searched / "search.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 6)  # intensity masks times members and combinations
    best = max(rows, key=lambda row: float(row["validation_dice"]))
    chosen = read_json(searched / "calibrated.json")
    assert " ".join(map(str, chosen["thresholds"])) == best["thresholds"]
    assert str(chosen["intensity_mask"] or "") == best["intensity_mask"]
    assert len(chosen["use"]) == len(best["members"].split("+"))
    assert set(chosen["table"]) == {"efficientnet_lite0", "resnet10", "or", "and", "min", "max", "mean", "product"} | {
        "chosen"
    }
    assert Image.open(searched / "threshold_grid.png").size[0] > 100


def test_every_row_of_the_table_is_scored_and_members_are_among_them(evaluated):
    summary = read_json(evaluated / "summary.json")
    for row in ("efficientnet_lite0", "resnet10", "or", "and", "min", "max", "mean", "product", "chosen"):
        assert 0 <= summary[f"dice_baseline_{row}"]["mean"] <= 1
        assert summary["pooled"][f"baseline_{row}"]["paper_dsc"] > 0


def test_pooled_scores_are_those_of_the_written_masks(evaluated, data):
    cases = [path.name.removesuffix("_seg.nii.gz") for path in sorted(evaluated.glob("*_seg.nii.gz"))]
    preds = [nib.load(evaluated / f"{case}_seg.nii.gz").get_fdata() > 0 for case in cases]
    truths = [nib.load(data / case / "mask.nii.gz").get_fdata() > 0 for case in cases]
    summary = read_json(evaluated / "summary.json")
    assert summary["pooled"]["method"]["miou"] == pytest.approx(pooled_miou(preds, truths), abs=1e-3)
    assert summary["dice"]["mean"] == pytest.approx(
        np.mean([dice(*p) for p in zip(preds, truths, strict=True)]), abs=1e-3
    )


def test_calibration_chooses_refinement_on_top_of_the_combination(run, ckpt, searched):
    few = {"threshold": [-0.1, 0.0, 0.1], "refine.intensity": [1.1, 1.3]}
    output = run(EVALUATE, str(searched / "calibrated.json"), "calibrate.json", ckpt=ckpt, candidates=few)
    assert read_json(output / "calibrated.json")["refine"]["intensity"] in (1.1, 1.2, 1.3)
    with open(output / "calibration.csv") as file:
        scores = [float(row["dice"]) for row in csv.DictReader(file) if row["dice"]]
    assert max(scores) >= scores[0]


def test_inference_writes_the_masks_that_evaluation_scored(run, ckpt, searched, evaluated, data):
    output = run("inference.json", str(searched / "calibrated.json"), ckpt=ckpt)
    scored = sorted(path.name for path in evaluated.glob("*_seg.nii.gz"))
    assert scored
    for name in scored:
        np.testing.assert_array_equal(nib.load(output / name).get_fdata(), nib.load(evaluated / name).get_fdata())
    for path in data.glob("*/flair.nii.gz"):
        image, heatmap = nib.load(path), nib.load(output / f"{path.parent.name}_heatmap.nii.gz")
        assert heatmap.shape == image.shape
        np.testing.assert_allclose(heatmap.affine, image.affine, atol=1e-5)


def test_without_refinement_the_mask_is_where_the_heatmap_is_positive_in_opened_slices(run, ckpt, tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps({"refine": None, "gate": -1.0}))
    output = run("inference.json", str(tmp_path / "plain.json"), ckpt=ckpt)
    for path in output.glob("*_seg.nii.gz"):
        heatmap = nib.load(str(path).replace("_seg", "_heatmap")).get_fdata()
        mask = nib.load(path).get_fdata() > 0
        np.testing.assert_array_equal(mask, heatmap > 0)


def test_a_wrong_number_of_thresholds_is_explained(data, ckpt, tmp_path):
    configs = [str(REPOSITORY / "bundles" / BUNDLE / "configs" / f"{n}.json") for n in ("inference", "phantom")]
    done = monai_bundle(
        *("run", "--config_file", str(configs), "--dataset_dir", str(data), "--output_dir", str(tmp_path)),
        *("--ckpt", ckpt, "--thresholds", "[0.5]"),
        check=False,
    )
    assert done.returncode != 0
    assert "'and' of 2 maps takes 2 threshold(s), got [0.5]" in done.stderr
