from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import common.commands.benchmark_suite as suite
from common.commands.benchmark_suite import benchmark_suite, bundles_of
from common.commands.suite_page import Method, _interval, _labels, _pooled, auc_interval, called_interval, patients_of
from common.files import write_csv, write_json
from common.metrics import roc_auc

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
                **{"dice": level + OWN[case.removeprefix("whole ")] if case != "p7" else 1.0, "dice_raw": level - 0.1},
            }
            for case in tested
        ]

    def fit(bundle: str, dataset_dir: str, output_dir: Path, **options: Any) -> Path:
        if bundle == options.get("broken"):
            raise RuntimeError(f"{bundle} failed")
        calls.append({"bundle": bundle, "output": output_dir, **options})
        write_csv(output_dir / "evaluation" / "metrics.csv", rows(options["datalist"], LEVEL[bundle]))
        slices = {"auc": 0.9, "sensitivity": 0.8, "specificity": 0.7}
        volumes = {"negatives_empty": 0.5, "positives": 3, "negatives": 1}
        slices |= {"positives": 8, "negatives": 4}
        write_json(output_dir / "evaluation" / "labels.json", {"gate": 0.5, "slices": slices, "volumes": volumes})
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
    with_masks = {"gp_unet_brats": ("train_supervised.json",)}
    monkeypatch.setattr(suite, "supervised", lambda own, *_, **__: with_masks.get(own.name, ()))
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


def test_rounds_are_those_of_the_labels_and_not_of_the_upper_bound(data, fits):
    run(data, rounds=1)
    assert [call.get("rounds") for call in fits if "train" not in call] == [1] * 4
    bounds = [call for call in fits if "train" in call]
    assert [call["train"] for call in bounds] == [("train.json", "lgg.json", "train_supervised.json")]
    assert "rounds" not in bounds[0]


def test_parts_teach_and_whole_scans_are_scored(data, fits):
    whole = [{"case": f"whole {p}", "patient": p, "image": f"{p}w.nii.gz", "cls": [0, 1]} for p in OWN]
    write_json(data / "scans.json", {"classes": ["none", "tumor"], "modalities": ["flair"], "training": whole})
    run(data, scans=str(data / "scans.json"))
    for call in fits:
        if "train" in call:
            assert call["scans"] == str(data / "scans.json")
            continue
        fold = json.loads(Path(call["datalist"]).read_text(encoding="utf-8"))
        assert all(case["case"] == f"whole {case['patient']}" for case in fold["test"])
        assert all(case["case"] == case["patient"] for case in fold["training"] + fold["validation"])


def test_the_page_has_dice_of_the_ill_labels_and_costs(data, fits):
    page = run(data)
    mean = 0.8 + np.mean([OWN[f"p{i}"] for i in range(7)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    scores, labels, costs = [row for row in rows if row[0] == "gp_unet_brats"]
    assert scores[1] == "7"
    assert scores[2].startswith(f"{mean:.3f} [")
    assert scores[4].startswith("0.700")
    assert labels[1:7] == ["0.900", "–", "–", "0.800", "0.700", "0.500"]
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


@pytest.mark.parametrize(
    ("error", "said"),
    [(subprocess.CalledProcessError(3, "run"), 3), (OSError("no space is left"), "OSError: no space is left")],
)
def test_a_fold_that_fails_ends_in_words_as_a_command_does(tmp_path, monkeypatch, error, said):
    def fit(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(suite, "fit", fit)
    with pytest.raises(SystemExit) as ended:
        suite._measured("gp_unet_brats", str(tmp_path), str(tmp_path / "fold0"))
    assert ended.value.code == said
    assert not (tmp_path / "fold0" / "peak_memory.json").exists()


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


def row(patient: str, positive: int, probability: float, fold: int = 0) -> dict[str, Any]:
    shared = {"patient": patient, "positive": positive, "probability": probability}
    return shared | {"fold": fold, "called": probability > 0.5 + fold}


class TestLabels:
    @pytest.fixture
    def two_scales(self) -> list[dict[str, Any]]:
        """Two folds that tell every positive from the negatives of their own fold, and on scales of their own."""
        return [row(f"{fold}{n}", n % 2, n % 2 * 0.1 + 0.001 * n + fold, fold) for fold in (0, 1) for n in range(12)]

    def test_the_interval_of_auc_never_holds_one_fold_against_another(self, two_scales):
        pooled = roc_auc(*([one[key] for one in two_scales] for key in ("probability", "positive")))
        assert pooled == 0.75
        assert auc_interval(two_scales) == (1.0, 1.0)

    def test_it_draws_patients_and_holds_the_mean_over_folds(self):
        rng = np.random.default_rng(0)
        rows = [row(f"{n}", n % 2, rng.normal(n % 2), n % 3) for n in range(60)]
        low, high = auc_interval(rows)
        auc = np.mean([roc_auc(*([r[k] for r in rows[f::3]] for k in ("probability", "positive"))) for f in range(3)])
        assert low < auc < high
        copies = auc_interval([one for one in rows for _ in range(4)])  # four slices a patient that are alike
        assert copies == pytest.approx((low, high))

    def test_few_patients_have_no_interval(self, two_scales):
        assert np.isnan(auc_interval(two_scales[:9])).all()
        assert np.isnan(auc_interval([one for one in two_scales if one["positive"]])).all()  # no fold has an AUC
        assert np.isnan(called_interval(two_scales[:8], positive=True)).all()
        assert np.isnan(auc_interval([])).all()

    def test_sensitivity_and_specificity_are_of_all_folds_each_by_its_own_gate(self):
        rows = [row(f"{n}", 1, 0.4 + fold + (n > 2) * 0.2, fold) for fold in (0, 1) for n in range(10)]
        low, high = called_interval(rows, positive=True)
        assert 0 < low < 0.7 < high <= 1
        assert np.isnan(called_interval(rows, positive=False)).all()  # nobody

    def test_a_share_of_all_folds_weighs_them_by_how_many_they_have(self):
        folds = [{"volumes": {"sensitivity": share, "positives": count}} for share, count in ((1.0, 3), (0.5, 1))]
        assert (
            _pooled([*folds, {"volumes": {"sensitivity": None, "positives": 0}}], "volumes", "sensitivity") == "0.875"
        )
        assert _pooled(folds, "slices", "sensitivity") == "–"

    def test_a_patient_is_ill_by_any_volume_and_has_the_highest_probability(self):
        found = patients_of([row("a", 0, 0.7), row("a", 1, 0.2), row("b", 0, 0.3)])
        assert [(one["positive"], one["probability"]) for one in found] == [(1, 0.7), (0, 0.3)]

    def test_the_table_has_them_from_the_folds_files_but_not_where_these_scored_others(self, tmp_path):
        def fold(name: str, negatives: int) -> Path:
            volumes = [row(f"{name}{n}", n % 2, 0.2 + n % 2 * 0.5) | {"case": f"{name}{n}"} for n in range(12)]
            slices = [one | {"slice": z} for one in volumes for z in (0, 1)]
            slices[0]["probability"] = 0.9
            write_csv(tmp_path / name / "evaluation" / "labels.csv", volumes)
            write_csv(tmp_path / name / "evaluation" / "slices.csv", slices)
            scores = {"positives": 6, "negatives": 6, "auc": 1.0, "sensitivity": 1.0, "specificity": 1.0}
            of_slices = {"positives": 12, "negatives": negatives, "auc": 0.9, "sensitivity": 1.0, "specificity": 0.5}
            write_json(
                tmp_path / name / "evaluation" / "labels.json", {"gate": 0.5, "volumes": scores, "slices": of_slices}
            )
            write_json(tmp_path / name / "peak_memory.json", {"mib": 1})
            return tmp_path / name

        cells = _labels(Method.read("x", [fold("p", 12), fold("q", 12)]))
        assert cells[1].startswith("0.900 [")
        assert cells[2:4] == ["1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]"]
        assert cells[4] == "1.000 [1.000, 1.000]"
        assert cells[5].startswith("0.500 [")  # of labels.json
        assert cells[5].endswith(", 1.000]")  # of the table: one of the slices passes the gate
        cells = _labels(Method.read("x", [fold("p", 12), fold("q", 13)]))  # counts of labels.json and the table differ
        assert cells[1] == "0.900"
        assert cells[2] == "1.000 [1.000, 1.000]"
        for folder in (fold("p", 12) / "evaluation", fold("q", 12) / "evaluation"):  # of labels alone, without masks
            (folder / "slices.csv").rename(folder / "label_slices.csv")
        assert _labels(Method.read("x", [tmp_path / "p", tmp_path / "q"]))[1].startswith("0.900 [")


def test_intervals_draw_patients_with_all_of_their_scans():
    rows = [{"patient": "ab"[k // 4], "dice": float(k // 4), "dice_empty": 0.0} for k in range(8)]
    assert _interval(rows) == "0.500 [0.000, 1.000]"
    assert _interval([{**row, "dice_empty": 1.0} for row in rows]) == "–"
