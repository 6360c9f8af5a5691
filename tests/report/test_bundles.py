from __future__ import annotations

import json
from pathlib import Path

import pytest

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGS = sorted(BUNDLES.glob("*/configs/*inference.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_every_inference_writes_its_record_and_a_page_where_it_is_asked(path):
    config = json.loads(path.read_text())
    assert config["report"] is False
    handlers = [handler for handler in config["handlers"] if handler["_target_"] == "common.report.Report"]
    assert len(handlers) == 1
    assert handlers[0]["enabled"] == "@report"
    assert all(handlers[0][key] == f"@{key}" for key in ("output_dir", "bundle_root", "ckpt", "datalist", "section"))
    assert all(f"{key}=@{key}" in handlers[0]["chosen"] for key in ("gate", "binarize", "threshold"))


def test_the_four_bundles_and_slides_are_among_them():
    assert len(CONFIGS) == 5
