from __future__ import annotations

import json
from typing import Any

import pytest

import common.commands.features
from common.commands.features import features


@pytest.fixture
def call(monkeypatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def run_bundle(bundle: str, configs: list[str], **overrides: Any) -> None:
        seen.update(bundle=bundle, configs=configs, overrides=overrides)

    monkeypatch.setattr(common.commands.features, "run_bundle", run_bundle)
    return seen


def test_without_a_datalist_the_patterns_find_the_cases(call, tmp_path):
    features("insight_ct", str(tmp_path), device="cpu")
    assert call["bundle"] == "insight_ct"
    assert call["configs"] == ["inference.json", "features.json"]
    assert call["overrides"] == {"dataset_dir": str(tmp_path), "device": "cpu"}


def test_a_datalist_in_the_folder_is_taken_with_all_its_sections(call, tmp_path):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": [{}], "validation": [], "test": [{}]}))
    features("insight_ct", str(tmp_path), configs="inference.json,covid.json", cases=("a", "b"))
    assert call["configs"] == ["inference.json", "covid.json", "features.json"]
    expected = {"datalist": str(path), "section": "training+test", "subset": ["a", "b"]}
    assert call["overrides"] == {"dataset_dir": str(tmp_path), **expected}
    features("insight_ct", str(tmp_path), section="test", store=str(tmp_path / "s"), cases="a")
    expected = {"datalist": str(path), "section": "test", "subset": ["a"], "store_dir": str(tmp_path / "s")}
    assert call["overrides"] == {"dataset_dir": str(tmp_path), **expected}


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(call, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        features("insight_ct", str(tmp_path / "nowhere"))
    assert call == {}
