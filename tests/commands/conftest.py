"""Data for a cross-validation, and runs that leave at once what real ones would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import common.commands.crossvalidate
from common.commands import export


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """What a text imports is remembered: a bundle's zip, and each rule about imports, read all of `common` anew."""

    def remembered(imports):
        return cache(lambda *texts: (*imports(*texts),))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_absolute_imports", "_outer_imports", "_relative_imports"):
            patch.setattr(export, name, remembered(getattr(export, name)))
        yield


@pytest.fixture
def data(tmp_path) -> Path:
    """A datalist of nine patients, two cases each."""
    cases = [
        {"case": f"p{i}_{j}", "patient": f"p{i}", "image": f"p{i}_{j}.nii.gz", "cls": [0, 1], "label": f"m{i}.nii.gz"}
        for i in range(9)
        for j in range(2)
    ]
    for case in cases:
        for key in ("image", "label"):
            (tmp_path / case[key]).touch()
    (tmp_path / "datalist.json").write_text(
        json.dumps({"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"], "training": cases})
    )
    return tmp_path


@pytest.fixture
def runs(monkeypatch) -> list[dict]:
    """Calls of `run_bundle`, each of which leaves what the real run would; fold k scores k / 10."""
    calls: list[dict] = []

    def fake(bundle: str, configs: list[str], **overrides: object) -> None:
        calls.append({"bundle": bundle, "configs": [Path(c).name for c in configs], **overrides})
        output = Path(str(overrides["output_dir"]))
        output.mkdir(parents=True, exist_ok=True)
        if configs[0] == "train.json":
            (output / "model.pt").write_bytes(b"weights")
        elif configs[-1] == "choose.json":
            (output / "calibrated.json").write_text("{}")
        else:
            assert not (output / "class_scores.json").exists()  # of other configs, which these may not write again
            tested = json.loads(Path(str(overrides["datalist"])).read_text(encoding="utf-8"))["test"]
            (output / "labels.json").write_text(json.dumps({"volumes": {"auc": 0.8}}))
            k = next(int(part[4:]) for part in output.parts if part.startswith("fold"))
            if not any("label" in case for case in tested):
                return
            (output / "summary.json").write_text(json.dumps({"dice": {"mean": k / 10}, "name": "x", "cases": 6}))
            (output / "metrics.csv").write_text(f"case,dice\na,{k}\nb,{k}\n")
            auc = 0.5 + k / 10 if output.name == "parts" else k / 10
            (output / "volumes.json").write_text(json.dumps({"method": {"auc": auc}}))
            (output / "class_scores.json").write_text(json.dumps({"masks": {"all": {"median": k}}, "note": "x"}))

    monkeypatch.setattr(common.commands.crossvalidate, "run_bundle", fake)
    monkeypatch.setattr(common.commands.crossvalidate, "bundle_root", Path)
    monkeypatch.setattr(common.commands.crossvalidate, "for_configs", lambda bundle, configs, settings: settings)
    monkeypatch.setattr(
        common.commands.crossvalidate,
        "config_files",
        lambda bundle, configs: [path for path in map(Path, configs) if path.is_file()],
    )
    return calls


@pytest.fixture
def scans(data) -> str:
    """The whole scans of the nine patients."""
    cases = [{"case": f"p{i}", "patient": f"p{i}", "image": f"p{i}.nii.gz", "cls": 1} for i in range(9)]
    cases = [case | {"label": "mask.nii.gz"} for case in cases]
    for name in ("mask.nii.gz", *(case["image"] for case in cases)):
        (data / name).touch()
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"]}
    (data / "scans.json").write_text(json.dumps(content | {"training": cases[:5], "test": cases[5:]}))
    return str(data / "scans.json")
