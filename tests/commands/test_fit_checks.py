"""What `fit` refuses before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import common.commands.fit
from common.commands.fit import calibration_section, fit
from common.commands.fit_checks import (
    bundles_that,
    check_classes,
    check_data,
    check_findings,
    data_digests,
    doubt_about_patients,
    takes_classes_alone,
    takes_several_labels,
    takes_slides,
)
from common.commands.fit_minutes import cases_of
from common.commands.fit_runs import SLIDES, VOLUMES
from common.commands.run import bundle_root
from common.files import read_json
from tests.commands.test_fit import CLASSES, cases
from tests.pipeline import save


@pytest.fixture
def content(tmp_path) -> dict:
    listed = cases(0, 1)
    other = [{**case, "case": f"v{case['case']}"} for case in listed]
    for case in (*listed, *other):
        (tmp_path / f"{case['case']}.nii.gz").touch()
        case |= {"image": f"{case['case']}.nii.gz", "patient": case["case"]}
    return {"name": "x", "classes": CLASSES, "modalities": ["flair"], "training": listed, "validation": other}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([[0, 1], [1, 1], [1, 1]], "2 of 3 training patients have no slice that is labeled no"),
        ([[0, 1], [0, 1], [1, 1]], "1 of 3 training patients have no slice that is labeled no"),
        ([[0, 1], [0, 1], [0, 1], [1, 1]], ""),  # a few
        ([[0, 1], [0, 0], [0, 0]], ""),  # healthy ones have no yes, as they should
        ([[1], [0], [1], [1]], ""),  # single slices
        ([1, 0, 1, 1], ""),  # whole volumes
    ],
)
def test_patients_who_are_ill_in_every_slice_are_told_of(labels, told):
    patients = [{"case": str(i), "patient": str(i), "cls": cls} for i, cls in enumerate(labels)]
    assert doubt_about_patients(patients)[: len(told) or None] == told


def test_data_that_cannot_be_trained_on_are_refused_before_anything_is(tmp_path, content):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    root = bundle_root("gp_unet_brats")
    check_data(path, content, str(tmp_path), root)
    with pytest.raises(ValueError, match="validation section has 0 positive and 0 negative labels"):
        check_data(path, content | {"validation": []}, str(tmp_path), root)
    with pytest.raises(ValueError, match="training section has 1 positive and 0 negative labels"):
        check_data(path, content | {"training": content["training"][1:]}, str(tmp_path), root)
    (tmp_path / "c1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"c1\.nii\.gz"):
        check_data(path, content, str(tmp_path), root)


def test_images_are_known_again_in_another_folder_and_told_from_others_of_the_same_names(tmp_path, content):
    path, moved = tmp_path / "datalist.json", tmp_path / "moved"
    content["training"][1]["label"] = "mask.nii.gz"
    path.write_text(json.dumps(content))
    values = np.random.default_rng(0).random((40, 40, 20)).astype(np.float32)
    values[:10] = values[30:] = 0  # of a size, alike where they begin and end, and not compressed
    files = ["mask.nii.gz", *(case["image"] for case in cases_of(content))]
    for name in files:
        (tmp_path / name).write_bytes(values.tobytes())
    before = data_digests(path, tmp_path)
    shutil.copytree(tmp_path, moved)
    assert data_digests(moved / "datalist.json", moved) == before
    for name, changes in (("vc1.nii.gz", {"images_sha256"}), ("mask.nii.gz", {"images_sha256", "masks_sha256"})):
        (moved / name).write_bytes(values[::-1].copy().tobytes())
        after = data_digests(moved / "datalist.json", moved)
        assert {key for key in before if before[key] != after[key]} == changes


def test_a_fit_of_other_images_is_refused_in_the_folder_of_a_finished_one(tmp_path, content, monkeypatch):
    (tmp_path / "datalist.json").write_text(json.dumps(content))

    def stop(*_, **__):
        raise InterruptedError("all that is checked before anything is written")

    monkeypatch.setattr(common.commands.fit, "with_shown_cases", stop)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            fit("gp_unet_brats", str(tmp_path), str(tmp_path / "out"))
    (tmp_path / "c1.nii.gz").write_bytes(b"another image")
    with pytest.raises(InterruptedError):  # nothing was trained
        fit("gp_unet_brats", str(tmp_path), str(tmp_path / "out"))
    (tmp_path / "out" / "training").mkdir()
    (tmp_path / "out" / "training" / "checkpoint.pt").touch()
    (tmp_path / "c1.nii.gz").write_bytes(b"a third image")
    with pytest.raises(ValueError, match=r"made with another set of images"):
        fit("gp_unet_brats", str(tmp_path), str(tmp_path / "out"))


def test_after_a_change_of_masks_all_is_scored_and_drawn_anew_and_nothing_is_refused(tmp_path, content, monkeypatch):
    content["training"][1]["label"] = "mask.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    best, made_from = tmp_path / "best.pt", []
    for file in (best, best.with_suffix(".json"), tmp_path / "mask.nii.gz"):
        file.touch()
    returned = {"make_bundle": tmp_path / "own", "merged": {}, "learn": best, "steps": 1}
    returned |= {"read_grids": SimpleNamespace(in_words=str)}
    returned |= dict.fromkeys(("minutes", "_keep", "write_report", "summary"))
    for name, result in returned.items():
        monkeypatch.setattr(common.commands.fit, name, lambda *_, result=result, **__: result)
    monkeypatch.setattr(common.commands.fit, "once", lambda *_, **told: made_from.append(told["made_from"]))
    for drawn in (b"", b"", b"anew"):
        (tmp_path / "mask.nii.gz").write_bytes(drawn)
        fit("gp_unet_brats", str(tmp_path), str(tmp_path / "out"))
    first, *others = made_from
    assert [one == first for one in others] == [True, True, True, False, False]


def test_several_labels_at_once_are_refused_with_the_bundle_that_takes_them(tmp_path, content):
    content["classes"] = ["none", "edema", "mass"]
    for section in ("training", "validation"):
        content[section] = [
            {**case, "cls": cls} for case, cls in zip(content[section], ([], ["edema", "mass"]), strict=True)
        ]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    check_data(path, content, str(tmp_path), bundle_root("insight_ct"))
    for name in ("gp_unet_brats", "ensemble_gradcam_brats", "tonno_mosmed"):
        with pytest.raises(ValueError, match=r"several labels at once .* one class; these take them: insight_ct"):
            check_data(path, content, str(tmp_path), bundle_root(name))


def test_several_findings_for_a_network_of_one_logit_are_refused_before_anything_is_written(tmp_path, content):
    content["classes"] = ["none", "edema", "mass"]
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"--classes: none, edema, mass, but the network of this bundle has one logit"):
        fit("tonno_mosmed", str(tmp_path), str(tmp_path / "out"), configs="mosmed.json")
    assert not (tmp_path / "out").exists()
    check_findings(bundle_root("tonno_mosmed"), ["none", "any"], VOLUMES)
    for name, recipe in (("gp_unet_brats", VOLUMES), ("ensemble_gradcam_brats", VOLUMES), ("insight_ct", SLIDES)):
        check_findings(bundle_root(name), content["classes"], recipe)


def test_a_config_that_brings_another_network_is_asked_in_place_of_the_bundles_own(tmp_path):
    (tmp_path / "configs").mkdir()
    for name, logits in (("train", 1), ("own", 3)):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps({"network_def": {"num_classes": logits}}))
    with pytest.raises(ValueError, match="has one logit"):
        check_findings(tmp_path, ["none", "a", "b"], VOLUMES)
    check_findings(tmp_path, ["none", "a", "b"], VOLUMES, ["own.json"])


def test_what_a_bundle_can_is_told_by_its_own_files_and_not_by_its_name(tmp_path, content):
    content["classes"] = ["none", "edema", "mass"]
    for section in ("training", "validation"):
        for case, cls in zip(content[section], ([], ["edema"]), strict=True):
            case["cls"] = cls
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    root = tmp_path / "another"
    (root / "configs").mkdir(parents=True)
    for able in (True, False):
        (root / "configs" / "metadata.json").write_text(json.dumps({"multi_label": able}))
        if able:
            check_data(path, content, str(tmp_path), root)
        else:
            with pytest.raises(ValueError, match="and another gives each slice one class; these take them: insight_ct"):
                check_data(path, content, str(tmp_path), root)


def test_bundles_that_can_are_found():
    assert bundles_that(takes_several_labels) == bundles_that(takes_slides) == ["insight_ct"]
    assert bundles_that(takes_classes_alone) == ["gp_unet_brats"]


@pytest.mark.parametrize("bundle", bundles_that(lambda root: True))
def test_a_bundle_says_whether_its_labels_may_hold_together_as_its_code_does(bundle):
    metadata = read_json(bundle_root(bundle) / "configs" / "metadata.json")
    training = (bundle_root(bundle) / "scripts" / "bags.py",)
    encodes = any("multi_hot(cls, classes)" in path.read_text() for path in training if path.is_file())
    assert metadata["multi_label"] is encodes


class TestClassesWithoutNegatives:
    @pytest.fixture
    def slices(self, tmp_path, content) -> Path:
        """A datalist of single slices, of two classes each section."""
        content["classes"] = ["none", "low", "high"]
        for section in ("training", "validation"):
            content[section] = [{**case, "cls": 1 + number} for number, case in enumerate(content[section])]
            for case in content[section]:
                save(tmp_path / case["image"], np.zeros((4, 5, 1), np.float32))
        path = tmp_path / "datalist.json"
        path.write_text(json.dumps(content))
        return path

    def test_bundles_that_tell_them_apart_take_them_and_others_name_one(self, slices, content):
        check_data(slices, content, str(slices.parent), bundle_root("gp_unet_brats"))
        for name in ("ensemble_gradcam_brats", "insight_ct", "tonno_mosmed"):
            with pytest.raises(ValueError, match=f"nothing is there, and {name} learns .*another: gp_unet_brats"):
                check_data(slices, content, str(slices.parent), bundle_root(name))

    def test_one_class_alone_and_sections_without_a_case_are_refused_as_ever(self, slices, content):
        root, folder = bundle_root("gp_unet_brats"), str(slices.parent)
        alike = {section: [{**case, "cls": 1} for case in content[section]] for section in ("training", "validation")}
        with pytest.raises(ValueError, match="training section has 2 positive and 0 negative labels; it needs both"):
            check_data(slices, content | alike, folder, root)
        with pytest.raises(ValueError, match="validation section has 0 positive and 0 negative labels"):
            check_data(slices, content | {"validation": []}, folder, root)

    def test_one_label_for_several_slices_is_refused(self, slices, content):
        save(slices.parent / content["training"][1]["image"], np.zeros((4, 5, 3), np.float32))
        with pytest.raises(ValueError, match="case 'c1' has one label for 3 slices"):
            check_data(slices, content, str(slices.parent), bundle_root("gp_unet_brats"))
        content["training"][1]["cls"] = [1, 2, 1]
        check_data(slices, content, str(slices.parent), bundle_root("gp_unet_brats"))

    def test_that_is_seen_in_the_last_of_many_cases_and_labels_of_slices_need_no_header(self, slices, content):
        many = [{**content["training"][n % 2], "case": f"m{n}", "patient": f"m{n}", "cls": [1]} for n in range(30)]
        for case in many[:-1]:
            case["image"] = "c0.nii.gz"
        save(slices.parent / "last.nii.gz", np.zeros((4, 5, 2), np.float32))
        many[-1] |= {"image": "last.nii.gz", "cls": 2}
        told = content | {"training": many}
        with pytest.raises(ValueError, match="case 'm29' has one label for 2 slices"):
            check_classes(slices, cases_of(told), str(slices.parent), bundle_root("gp_unet_brats"))
        (slices.parent / "c0.nii.gz").write_bytes(b"no image")
        many[-1]["cls"] = [2, 2]
        check_classes(slices, many, str(slices.parent), bundle_root("gp_unet_brats"))

    def test_a_second_training_is_refused_and_validation_alone_is_looked_at(self, slices, content, tmp_path):
        with pytest.raises(ValueError, match="--rounds: a second training learns where nothing is from negatives"):
            fit("gp_unet_brats", str(slices.parent), str(tmp_path / "out"), rounds=1)
        assert not (tmp_path / "out").exists()
        assert calibration_section(content) == "validation"
