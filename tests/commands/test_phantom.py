from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import common.commands.phantom
from common.commands.phantom import phantom


def written(folder: Path) -> dict:
    return json.loads((folder / "datalist.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    phantom(str(folder), cases=10)
    return folder


def test_half_of_the_cases_train_and_a_fifth_validates(folder):
    sizes = {section: len(written(folder)[section]) for section in ("training", "validation", "test")}
    assert sizes == {"training": 5, "validation": 2, "test": 3}


def test_labels_of_slices_are_those_of_the_masks(folder):
    content = written(folder)
    cases = [case for section in ("training", "validation", "test") for case in content[section]]
    for case in cases:
        mask = np.asarray(nib.as_closest_canonical(nib.load(folder / case["case"] / "mask.nii.gz")).dataobj)
        assert (folder / case["image"]).is_file()
        assert case["cls"] == (mask > 0).any(axis=(0, 1)).astype(int).tolist()
    assert {label for case in cases for label in case["cls"]} == {0, 1}


def test_the_seed_decides_on_volumes_and_split_and_the_folder_is_printed(folder, tmp_path, capsys):
    for name, seed in (("same", 0), ("other", 1)):
        phantom(str(tmp_path / name), cases=10, seed=seed)
    assert capsys.readouterr().out.split() == [str(tmp_path / "same"), str(tmp_path / "other")]
    assert written(tmp_path / "same") == written(folder)
    tested = [{case["case"] for case in written(place)["test"]} for place in (folder, tmp_path / "other")]
    assert tested[0] != tested[1]
    first, same, other = (
        np.asarray(nib.load(place / "phantom_000" / "flair.nii.gz").dataobj)
        for place in (folder, tmp_path / "same", tmp_path / "other")
    )
    np.testing.assert_array_equal(first, same)
    assert first.shape != other.shape or (first != other).any()


def test_each_section_holds_a_lesion_where_most_heads_are_healthy(tmp_path):
    phantom(str(tmp_path), cases=12, healthy_fraction=0.4)
    datalist = written(tmp_path)
    for section in ("training", "validation", "test"):
        assert any(1 in case["cls"] for case in datalist[section]), section


def test_fewer_cases_than_sections_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="--cases: at least 3, one for each section, got 2"):
        phantom(str(tmp_path / "data"), cases=2)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("seed", "stratified"), [(0, [False]), (6, [False, True])])
def test_the_split_is_drawn_anew_only_where_a_section_would_hold_no_lesion(tmp_path, monkeypatch, seed, stratified):
    drawn, make = [], common.commands.phantom.make_datalist

    def counted(*cases, stratify: bool, **options):
        drawn.append(stratify)
        return make(*cases, stratify=stratify, **options)

    monkeypatch.setattr(common.commands.phantom, "make_datalist", counted)
    phantom(str(tmp_path), cases=8, seed=seed, healthy_fraction=0.5)
    assert drawn == stratified
