from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import common.commands.crossvalidate
from common.commands.ablate import ablate, table

LEVEL = {"max": 0.2, "avg": 0.5}


@pytest.fixture
def data(tmp_path) -> Path:
    """A datalist of six patients, and three variants."""
    cases = [{"case": f"p{i}", "patient": f"p{i}", "image": f"p{i}.nii", "cls": [0, 1], "label": "m"} for i in range(6)]
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"], "training": cases}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    for name in ("m", *(case["image"] for case in cases)):
        (tmp_path / name).touch()
    variants: dict[str, dict] = {"plain": {"pooling": "max"}, "mean": {"pooling": "avg"}, "full": {}}
    (tmp_path / "variants.json").write_text(json.dumps(variants))
    return tmp_path


@pytest.fixture
def runs(monkeypatch) -> list[dict]:
    """Calls of `run_bundle`; fold k scores the level of the variant's pooling + k / 10."""
    calls: list[dict] = []

    def fake(bundle: str, configs: list[str], **overrides: Any) -> None:
        output = Path(overrides["output_dir"])
        calls.append({"step": output.name, "variant": output.parts[-3], "configs": configs, **overrides})
        output.mkdir(parents=True, exist_ok=True)
        if overrides.get("pooling") == "broken":
            raise subprocess.CalledProcessError(1, "run")
        (output / "model.pt").touch()
        if output.name == "calibrate":
            (output / "calibrated.json").write_text("{}")
        elif output.name == "evaluation":
            dice = LEVEL.get(overrides.get("pooling", ""), 0.8) + int(output.parent.name[-1]) / 10
            scores: dict = {"dice": {"mean": dice}, "cases": 3}
            if "pooling" not in overrides:
                (output / "volumes.json").write_text(json.dumps({"method": {"auc": 0.9}}))
            (output / "summary.json").write_text(json.dumps(scores))
            (output / "metrics.csv").write_text(f"case,dice\na,{dice}\n")

    monkeypatch.setattr(common.commands.crossvalidate, "run_bundle", fake)
    monkeypatch.setattr(common.commands.crossvalidate, "bundle_root", Path)
    monkeypatch.setattr(common.commands.crossvalidate, "for_configs", lambda bundle, configs, settings: settings)
    monkeypatch.setattr(common.commands.crossvalidate, "config_files", lambda bundle, configs: [])
    return calls


def run(data: Path, **options: Any) -> list[dict]:
    """The rows of the table."""
    options = {"variants": str(data / "variants.json"), "folds": 2} | options
    ablate("b", str(data), str(data / "out"), **options)
    with open(data / "out" / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_variants_keys_reach_every_one_of_its_runs_and_no_others(data, runs):
    run(data, pooling="smooth_max", max_epochs=3, train="train.json,covid.json")
    assert {(c["variant"], c["pooling"]) for c in runs} == {("plain", "max"), ("mean", "avg"), ("full", "smooth_max")}
    for name in ("plain", "mean", "full"):
        own = [c for c in runs if c["variant"] == name]
        assert [c["step"] for c in own] == 2 * ["training", "calibrate", "evaluation"]
        assert {c["max_epochs"] for c in own} == {3}
        assert own[0]["configs"] == ["train.json", "covid.json"]
        settings = json.loads((data / "out" / name / "variant.json").read_text())
        assert settings["pooling"] == own[0]["pooling"]


def test_all_variants_are_tested_on_the_same_folds(data, runs):
    run(data)
    tests = {
        c["variant"]: tuple(x["case"] for x in json.loads(Path(c["datalist"]).read_text(encoding="utf-8"))["test"])
        for c in runs
        if c["step"] == "training" and c["datalist"].endswith("fold1.json")
    }
    assert len(tests) == 3
    assert len(set(tests.values())) == 1


def test_the_table_holds_mean_and_spread_over_folds_of_the_scores_that_there_are(data, runs, capsys):
    rows = run(data)
    spread = np.std([0.0, 0.1], ddof=1)
    assert [row["variant"] for row in rows] == ["plain", "mean", "full"]
    for row, level in zip(rows, (0.2, 0.5, 0.8), strict=True):
        assert float(row["dice.mean"]) == pytest.approx(level + 0.05)
        assert float(row["dice.std"]) == pytest.approx(spread, abs=1e-4)
    assert [row["volumes.method.auc.mean"] for row in rows] == ["", "", "0.9"]
    assert not any("parts" in column for column in rows[0])
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split() for line in printed[:2]] == [
        ["plain", "0.250", "±", "0.071", "-"],
        ["mean", "0.550", "±", "0.071", "-"],
    ]


def test_columns_of_the_printed_table_are_aligned():
    score = {"mean": 0.5, "std": 0.25}
    lines = table({"a": {"x": score}, "longer name": {"dice.mean": score}}, ["x", "dice.mean"]).splitlines()
    assert lines[0].index("dice.mean") == lines[2].index("0.500") == lines[1].rindex("-")


def test_what_is_finished_is_not_run_again(data, runs):
    first = run(data, only="plain,full")
    assert [row["variant"] for row in first] == ["plain", "full"]
    runs.clear()
    again = run(data)
    assert {c["variant"] for c in runs} == {"mean"}
    assert [again[0], again[2]] == first


def test_a_variant_begun_with_other_settings_is_refused(data, runs):
    run(data, only="plain")
    (data / "variants.json").write_text(json.dumps({"plain": {"pooling": "avg"}}))
    with pytest.raises(ValueError, match=r"out/plain was begun with other settings; remove it, or"):
        run(data)
    (data / "variants.json").write_text(json.dumps({"plain": {"pooling": "max"}}))
    assert run(data)
    with pytest.raises(ValueError, match="other settings"):
        run(data, max_epochs=3)


def test_a_variant_that_fails_is_named_after_the_others_are_done(data, runs):
    (data / "variants.json").write_text(json.dumps({"bad": {"pooling": "broken"}, "good": {}}))
    with pytest.raises(RuntimeError, match="1 of 2 variants failed: bad"):
        run(data)
    with open(data / "out" / "table.csv", encoding="utf-8", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["good"]


def test_an_unknown_variant_is_answered_with_the_known_ones(data, runs):
    with pytest.raises(ValueError, match=r"no variants \['man'\]; it has \['plain', 'mean', 'full'\]"):
        run(data, only=["man", "plain"])
    assert not runs
