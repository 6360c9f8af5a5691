"""Rules that build a bundle, of bundles of other channels and classes than ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import common.commands.verify_build
from common.commands.own_bundle import make_bundle
from common.commands.verify_build import WORKFLOWS, properties
from common.data import load_datalist
from common.files import read_json


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_workflows_are_built_on_phantoms_of_as_many_channels(tmp_path, monkeypatch, channels):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text(json.dumps({"channels": channels}))
    built = []

    def nothing_missing(root: Path, kind: str, configs: list[str], **given: object) -> list[str]:
        case = load_datalist(str(given["datalist"]), "training", dataset_dir=str(given["dataset_dir"]))[0]
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        patterns = [given["image_pattern"]] if isinstance(given["image_pattern"], str) else given["image_pattern"]
        built.append(([Path(image).name for image in images], [Path(pattern).name for pattern in patterns]))
        assert all(Path(image).is_file() for image in images)
        return []

    monkeypatch.setattr(common.commands.verify_build, "missing_properties", nothing_missing)
    assert list(properties(tmp_path)) == []
    names = [f"{name}.nii.gz" for name in ("flair", "t1ce", "t2", "t1")[:channels]]
    assert built == [(names, names)] * len(WORKFLOWS)


@pytest.mark.parametrize(
    ("bundle", "count"), [("gp_unet_brats", 4), ("ensemble_gradcam_brats", 4), ("insight_ct", 3), ("tonno_mosmed", 1)]
)
def test_a_bundle_of_ones_own_says_how_many_channels_come_out(tmp_path, bundle, count):
    findings = ["mass"] if bundle == "tonno_mosmed" else ["edema", "mass", "bleed"]
    cases = [{"case": f"c{cls}", "patient": f"p{cls}", "image": f"{cls}.nii.gz", "cls": cls} for cls in (0, 1)]
    content = {"name": "x", "classes": ["none", *findings], "modalities": ["flair"], "training": cases}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    options = {"over": [], "settings": {}, "datalist": tmp_path / "datalist.json", "counts": "no case"}
    own = make_bundle(bundle, tmp_path / "own", **options)
    pred = read_json(own / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == count
    assert [*pred["channel_def"].values()] == ["background", *findings]
