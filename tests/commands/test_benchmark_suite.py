from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import common.commands.benchmark_suite as suite
from common.commands.benchmark_suite import benchmark_suite, bundles_of
from common.files import write_csv, write_json

LEVEL = {"gp_unet_brats": 0.8, "ensemble_gradcam_brats": 0.7}
OWN = {f"p{i}": 0.01 * i for i in range(8)}  # what a patient adds, whatever the method


@pytest.fixture
def data(tmp_path) -> Path:
    """A datalist of eight patients, the last of whom is healthy."""
    cases = [
        {"case": f"p{i}", "patient": f"p{i}", "image": f"p{i}.nii.gz", "cls": [0, int(i < 7), int(i < 7)]}
        for i in range(8)
    ]
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"], "training": cases}
    write_json(tmp_path / "datalist.json", content)
    return tmp_path


@pytest.fixture
def fits(monkeypatch) -> list[dict[str, Any]]:
    """Calls of `fit`, each of which leaves what the real one would for the fold's test patients."""
    calls: list[dict[str, Any]] = []

    def rows(datalist: str, level: float) -> list[dict[str, Any]]:
        tested = [case["case"] for case in json.loads(Path(datalist).read_text(encoding="utf-8"))["test"]]
        return [
            {
                **{"case": case, "patient": case, "dice_empty": float(case == "p7"), "dice_baseline_threshold": 0.4},
                **{"dice": level + OWN[case] if case != "p7" else 1.0, "dice_raw": level - 0.1},
            }
            for case in tested
        ]

    def fit(bundle: str, dataset_dir: str, output_dir: Path, **options: Any) -> Path:
        if bundle == options.get("broken"):
            raise RuntimeError(f"{bundle} failed")
        calls.append({"bundle": bundle, "output": output_dir, **options})
        write_csv(output_dir / "evaluation" / "metrics.csv", rows(options["datalist"], LEVEL[bundle]))
        slices = {"auc": 0.9, "sensitivity": 0.8, "specificity": 0.7}
        write_json(output_dir / "evaluation" / "labels.json", {"slices": slices, "volumes": {"negatives_empty": 0.5}})
        write_csv(output_dir / "masks" / "predictions.csv", [{"seconds": 2.0}, {"seconds": 4.0}])
        for place in ("training", "round1"):
            write_csv(output_dir / place / "training_log.csv", [{"epoch": e, "seconds": 60.0} for e in (1, 2)])
        write_json(output_dir / "peak_memory.json", {"mib": 800})
        return output_dir

    def crossvalidate(bundle: str, dataset_dir: str, output_dir: str, **options: Any) -> None:
        calls.append({"bundle": bundle, "output": Path(output_dir), **options})
        lists = sorted(Path(output_dir).parents[1].glob("*_fold*.json"))
        write_csv(Path(output_dir) / "metrics.csv", [row for path in lists for row in rows(str(path), 0.9)])

    monkeypatch.setattr(suite, "_fit", fit)
    monkeypatch.setattr(suite, "crossvalidate", crossvalidate)
    return calls


def run(data: Path, **options: Any) -> str:
    page = data / "page.md"
    benchmark_suite("lgg", str(data), str(data / "out"), bundles=",".join(LEVEL), folds=2, page=str(page), **options)
    return page.read_text()


def test_every_bundle_is_fitted_to_the_same_folds(data, fits):
    run(data, max_epochs=1)
    lists = {name: [c["datalist"] for c in fits if c["bundle"] == name and "train" not in c] for name in LEVEL}
    assert lists["gp_unet_brats"] == lists["ensemble_gradcam_brats"]
    tested = [
        c["case"] for path in lists["gp_unet_brats"] for c in json.loads(Path(path).read_text(encoding="utf-8"))["test"]
    ]
    assert sorted(tested) == sorted(OWN)
    assert all(call["max_epochs"] == 1 for call in fits)
    assert all(call["configs"] == "lgg.json" for call in fits if "train" not in call)


def test_the_page_has_dice_of_the_ill_labels_and_costs(data, fits):
    page = run(data)
    mean = 0.8 + np.mean([OWN[f"p{i}"] for i in range(7)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    scores, labels, costs = [row for row in rows if row[0] == "gp_unet_brats"]
    assert scores[1] == "7"
    assert scores[2].startswith(f"{mean:.3f} [")
    assert scores[4].startswith("0.700")
    assert labels[1:6] == ["0.900", "–", "0.800", "0.700", "0.500"]
    assert costs[1:] == ["4", "3.0", "800"]
    beside = {row[0]: row[1:] for row in rows}
    assert beside["intensity threshold"][0].startswith("0.400")
    assert beside["upper bound: trained with masks"][0].startswith(f"{mean + 0.1:.3f}")
    assert beside["upper bound: trained with masks"][1] == "–"  # the ensemble has no training with masks
    assert beside["gp_unet_brats − ensemble_gradcam_brats"] == ["+0.100 [+0.100, +0.100]"]


def test_a_bundle_that_fails_is_named_when_the_others_are_done(data, fits):
    with pytest.raises(RuntimeError, match="gp_unet_brats failed, see above, and not in"):
        run(data, broken="gp_unet_brats")
    page = (data / "page.md").read_text()
    assert "| ensemble_gradcam_brats | 7 |" in page
    assert "gp_unet_brats" not in page


def test_without_an_upper_bound_nothing_is_trained_with_masks(data, fits):
    assert "upper bound" not in run(data, upper_bound=False)
    assert not any("train" in call for call in fits)


def test_a_suite_takes_the_bundles_that_have_its_config():
    assert bundles_of("lgg", []) == ["ensemble_gradcam_brats", "gp_unet_brats", "tonno_mosmed"]
    assert len(bundles_of("phantom", [])) == 4
    with pytest.raises(ValueError, match=r"no covid\.json in gp_unet_brats; the suite covid takes insight_ct"):
        bundles_of("covid", ["gp_unet_brats"])
    with pytest.raises(ValueError, match="suite must be one of lgg, covid, phantom"):
        benchmark_suite("brats", "x", "y")
