"""`fit --skip_outside_window`: which cases are left, of which bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.commands.fit_request import check_settings
from common.commands.fit_runs import SLIDES
from common.commands.fit_windows import shown_datalist
from common.commands.run import bundle_root
from common.files import read_json
from tests.pipeline import save


@pytest.fixture
def listed(tmp_path):
    """Two cases a section; the second of each is in other units than the window."""
    content = {"name": "x", "classes": ["none", "tumor"], "modalities": ["ct"], "seed": 0}
    for section in ("training", "validation"):
        content[section] = []
        for k, offset in enumerate((0.0, -1000.0)):
            name = f"{section}{k}"
            values = np.random.default_rng(k).uniform(20, 200, (20, 24, 6)) + offset
            save(tmp_path / f"{name}.nii.gz", values.astype(np.float32))
            content[section].append({"case": name, "patient": name, "image": f"{name}.nii.gz", "cls": 1 - k})
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def test_cases_of_all_sections_are_left_out_and_once_written_the_datalist_stays(listed, tmp_path, capsys):
    options = {"dataset_dir": str(tmp_path), "over": [], "settings": {"organ": "none"}}
    target = shown_datalist(bundle_root("insight_ct"), listed, tmp_path / "out.json", **options)
    content, before = read_json(target), read_json(listed)
    for section in ("training", "validation"):
        assert content[section] == before[section][:1]
    said = "2 case(s) left out, of which the window shows nothing: training1, validation1"
    assert said in capsys.readouterr().out
    (tmp_path / "training0.nii.gz").unlink()  # what is there is not read again
    assert shown_datalist(bundle_root("insight_ct"), listed, target, **options) == target
    assert said in capsys.readouterr().out


def test_the_window_asked_for_counts_and_a_bundle_without_one_keeps_all(listed, tmp_path):
    wide = {"organ": "none", "window": [-1350, 250]}
    kept = {"dataset_dir": str(tmp_path), "over": []}
    target = shown_datalist(bundle_root("insight_ct"), listed, tmp_path / "out.json", **kept, settings=wide)
    assert read_json(target) == read_json(listed)
    for name in ("tonno_mosmed", "gp_unet_brats"):
        assert shown_datalist(bundle_root(name), listed, tmp_path / name, **kept, settings={}) == listed
    mosmed = {**kept, "over": ["mosmed.json"], "settings": {"organ": "none"}}
    target = shown_datalist(bundle_root("tonno_mosmed"), listed, tmp_path / "tonno.json", **mosmed)
    assert read_json(target) == read_json(listed)  # -1000 to 400 shows both


def test_a_bundle_without_a_window_and_slides_have_no_such_switch():
    check_settings(bundle_root("insight_ct"), {"skip_outside_window": True})
    check_settings(bundle_root("tonno_mosmed"), {"skip_outside_window": True})
    with pytest.raises(ValueError, match="no config of gp_unet_brats has it"):
        check_settings(bundle_root("gp_unet_brats"), {"skip_outside_window": True})
    with pytest.raises(ValueError, match="no config of insight_ct has it for slides"):
        check_settings(bundle_root("insight_ct"), {"skip_outside_window": True}, SLIDES)
