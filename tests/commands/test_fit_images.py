"""`fit` and images that cannot be read: said before anything is trained, and no reason for another folder."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

import common.commands.fit
from common.commands.fit import fit
from common.commands.fit_checks import check_images

SECTIONS = ("training", "validation", "test")


@pytest.fixture
def data(tmp_path) -> Path:
    """A datalist of six volumes with one label each, two in a section; `mask.nii.gz` is no image at all."""
    content: dict = {"name": "x", "classes": ["none", "tumor"], "modalities": ["flair"]}
    for number, section in enumerate(SECTIONS):
        cases = [f"{section}{cls}" for cls in (0, 1)]
        for cls, case in enumerate(cases):
            image(tmp_path / f"{case}.nii.gz", np.random.default_rng([number, cls]).random((16, 16, 8)))
        content[section] = [
            {"case": case, "patient": case, "image": f"{case}.nii.gz", "cls": cls, "label": "mask.nii.gz"}
            for cls, case in enumerate(cases)
        ]
    (tmp_path / "mask.nii.gz").write_bytes(b"no image")
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    return tmp_path


def image(path: Path, values: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([-3.0, -3.0, 5.0, 1.0])), path)


class TrainingBegins(Exception):
    """In the place of hours."""


@pytest.fixture
def trainings(monkeypatch) -> list[Path]:
    """Folders of trainings, each of which ends at once."""
    begun: list[Path] = []

    def learn(own: Path, home: Path, *_, **__) -> Path:
        begun.append(home)
        raise TrainingBegins

    monkeypatch.setattr(common.commands.fit, "learn", learn)
    return begun


def fitted(data: Path, output: str = "out", **settings) -> None:
    fit("gp_unet_brats", str(data), str(data / output), **settings)


def test_one_training_of_labels_of_volumes_is_told_with_what_else_could_be(data, trainings, capsys):
    with pytest.raises(TrainingBegins):
        fitted(data)
    assert "one training, as a label stands for a volume; of stacks all of whose" in capsys.readouterr().out
    with pytest.raises(TrainingBegins):
        fitted(data, rounds=1, output="again")
    assert "one training" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "nan", "zero"])
def test_a_test_image_that_cannot_be_scored_is_named_before_anything_is_trained(data, trainings, damage):
    path = data / "test1.nii.gz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:4000])
    else:
        image(path, np.full((16, 16, 8), {"nan": np.nan, "zero": 0.0}[damage]))
    with pytest.raises(ValueError, match=r"1 of 2 cases of the test section cannot .*: test1: .*test1\.nii\.gz"):
        fitted(data)
    assert trainings == []


def test_what_was_mended_before_an_epoch_had_ended_goes_on_in_the_same_folder(data, trainings):
    broken = data / "test1.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:4000])
    with pytest.raises(ValueError, match="cannot be scored"):
        fitted(data)
    broken.write_bytes(whole)
    for settings in ({}, {"max_epochs": 3}):
        with pytest.raises(TrainingBegins):
            fitted(data, **settings)
    (data / "out" / "training").mkdir()
    (data / "out" / "training" / "checkpoint.pt").touch()
    with pytest.raises(TrainingBegins):
        fitted(data, max_epochs=3)
    with pytest.raises(ValueError, match="made with another settings; choose another folder"):
        fitted(data)


@pytest.mark.parametrize(
    ("made", "another"),
    [
        ("start/model.pt", True),
        ("start/calibrated.json", False),
        ("training/finished", False),
        ("round2/model.pt", False),
    ],
)
def test_what_was_learned_or_chosen_from_other_labels_is_not_taken_for_done(data, trainings, made, another):
    with pytest.raises(TrainingBegins):
        fitted(data)
    (data / "out" / made).parent.mkdir()
    (data / "out" / made).touch()
    with pytest.raises(
        TrainingBegins if another else ValueError, match=None if another else "made with another settings"
    ):
        fitted(data, max_epochs=3)


def test_a_folder_in_which_another_fit_is_at_work_is_not_taken_from_it(data, trainings):
    with pytest.raises(TrainingBegins):
        fitted(data)
    remembered = (data / "out" / "fit.json").read_text()
    with FileLock(data / "out" / ".fit.lock"), pytest.raises(RuntimeError, match="another fit is at work"):
        fitted(data, max_epochs=3)
    assert (data / "out" / "fit.json").read_text() == remembered


def test_organs_are_read_and_masks_of_findings_are_not(data):
    listed = data / "datalist.json"
    check_images(listed, "test", str(data), channels=1)
    content = json.loads(listed.read_text())
    content["test"][0]["organ"] = "mask.nii.gz"
    listed.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"test0: .*mask\.nii\.gz"):
        check_images(listed, "test", str(data), channels=1)


def test_images_with_another_number_of_channels_are_named(data):
    with pytest.raises(ValueError, match=r"2 of 2 cases .* expected 2 channel\(s\), got 1"):
        check_images(data / "datalist.json", "test", str(data), channels=2)
