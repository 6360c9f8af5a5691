from __future__ import annotations

import json

import pytest

from common.commands.describe import describe
from common.datasets import write_phantom


def test_the_training_section_is_described_beside_the_weights(tmp_path, capsys):
    write_phantom(tmp_path, cases=3, seed=0)
    datalist = {"classes": ["none", "tumor"], "modalities": ["flair"], "validation": [], "test": []}
    cases = [{"case": name, "patient": name, "image": f"phantom_00{name}/flair.nii.gz", "cls": 0} for name in "01"]
    (tmp_path / "datalist.json").write_text(json.dumps(datalist | {"training": cases}))
    describe("gp_unet_brats", str(tmp_path), output=str(tmp_path / "model.json"))
    seen = json.loads((tmp_path / "model.json").read_text())["seen"]
    assert (seen["cases"], seen["channels"], seen["window"]) == (2, ["flair"], None)
    assert f"{tmp_path / 'model.json'}: 2 cases of 2 patients" in capsys.readouterr().out
    content = json.loads((tmp_path / "model.json").read_text())
    content["trained"]["stack"] = 8  # weights of another training
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"another training: stack was 8, now 16. Give the --configs of theirs"):
        describe("gp_unet_brats", str(tmp_path), output=str(tmp_path / "model.json"))
    assert json.loads((tmp_path / "model.json").read_text()) == content


def test_a_training_that_does_not_say_what_it_saw_is_refused(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.json").write_text(json.dumps({"train": {"handlers": [{"_target_": "X"}]}}))
    with pytest.raises(SystemExit, match=r"has no common\.preprocessing\.SeenWriter"):
        describe(str(tmp_path), str(tmp_path))
