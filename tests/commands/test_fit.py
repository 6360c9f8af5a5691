"""What `fit` says and decides; that it trains, chooses and writes is shown by the demo, which is made of it."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import common.commands.fit_runs
from common.commands.fit import calibration_section, described, fit, with_volumes
from common.commands.fit_checks import recipe_of
from common.commands.fit_request import check_same, check_settings
from common.commands.fit_runs import SLIDES, VOLUMES, learn, once, refining, steps, supervised, usual_rounds
from common.commands.fit_slides import summary_of_slides
from common.commands.fit_summary import summary, summary_of_classes
from common.commands.run import bundle_root
from common.data import labels_slices
from common.files import write_json
from tests.bundles.insight_ct.slides.helpers import write_slide

CLASSES = ["none", "tumor"]


def cases(*labels) -> list[dict]:
    return [{"case": f"c{i}", "patient": f"p{i % 2}", "cls": cls} for i, cls in enumerate(labels)]


@pytest.mark.parametrize(("cls", "of_slices"), [([0, 1, 1], True), (1, False), (["tumor"], False), ([], False)])
def test_one_label_a_slice_is_told_from_the_names_of_several(cls, of_slices):
    assert labels_slices({"case": "a", "cls": cls}) is of_slices


def test_a_section_is_described_by_cases_patients_and_labels():
    content = {"classes": CLASSES, "training": cases([0, 1, 1], 0, 1, 1)}
    assert described("training", content) == (
        "training 4 cases of 2 patients, volumes none 1, tumor 2, slices none 1, tumor 2"
    )


def test_training_patients_are_calibrated_on_where_validation_has_few_labels_of_a_kind_or_few_patients():
    both = 4 * [[0, 0, 1, 1]]  # of three patients there are labels enough
    four, seven = ([case | {"patient": case["case"]} for case in cases(*labels)] for labels in (both, 7 * [0]))
    assert calibration_section({"validation": four}) == "validation"
    assert calibration_section({"validation": four[:3]}) == "training+validation"
    assert calibration_section({"validation": [case | {"cls": int(k > 2)} for k, case in enumerate(seven)]}) == (
        "training+validation"
    )
    assert calibration_section({}) == "training+validation"


def test_the_summary_says_what_labels_say_and_that_masks_chose_nothing(tmp_path):
    volumes = {"auc": 0.9, "auc_interval": [0.8, 1.0], "positives_marked": 1.0, "negatives_empty": 0.75}
    volumes |= {"positives": 5, "negatives": 4}
    scores = {"gate": 0.25, "volumes": volumes | {"ml_in_negatives": {"mean": 2.0}}}
    (tmp_path / "labels.json").write_text(json.dumps(scores))
    assert summary(tmp_path, "test").splitlines() == [
        "test, from labels: volume AUC 0.900 [0.8, 1.0]",
        "at the gate 0.250: 5 of 5 positive volumes marked, 3 of 4 negative ones left empty, "
        "2.000 ml in a negative one",
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"dice": {"mean": 0.5}}))  # of an earlier version
    assert "with masks" not in summary(tmp_path, "test")
    (tmp_path / "summary.json").write_text(json.dumps({"dice_positive": {"mean": 0.5, "median": None, "count": 5.0}}))
    few = scores["volumes"] | {"auc_interval": [None, None], "note": "no interval: few"}
    both = scores | {"volumes": few, "slices": volumes, "note": "of memory"}
    (tmp_path / "labels.json").write_text(json.dumps(both))
    first = "test, from labels: volume AUC 0.900 (no interval: few), slice AUC 0.900 [0.8, 1.0]"
    assert summary(tmp_path, "test").splitlines()[0] == first
    assert summary(tmp_path, "test").splitlines()[-1] == (
        "with masks, which chose nothing: 3D Dice of 5 volumes with a lesion 0.500, median n/a"
    )


def test_the_summary_says_what_is_called_what(tmp_path):
    median = {"dice_mask": {"median": 0.5}}
    scores = {"slices": 5, "accuracy": 0.8, "confusion": [[0, 0, 0], [0, 3, 0], [0, 1, 1]]}
    scores |= {"masks": {"all": median, "high": {"dice_mask": {"median": None}}}}
    (tmp_path / "class_scores.json").write_text(json.dumps(scores))
    (tmp_path / "labels.json").write_text(json.dumps({"volumes": {"positives": 5, "positives_marked": 0.8}}))
    assert summary_of_classes(tmp_path, "test", ["none", "low", "high"]).splitlines() == [
        "test, from labels: class accuracy 0.800 of 5 slices",
        "  low is called: 3 low",
        "  high is called: 1 low, 1 high",
        "4 of 5 cases marked",
        "with masks, which chose nothing: median Dice of slices: all 0.500, high n/a",
    ]


def test_settings_that_no_config_has_or_that_are_chosen_here_are_refused():
    root = bundle_root("gp_unet_brats")
    check_settings(root, {"max_epochs": 3, "for_volumes#quantile": 0.9, "heat_quantile": 0.99})
    with pytest.raises(ValueError, match="--max_epoch: no config of gp_unet_brats has it; did you mean max_epochs"):
        check_settings(root, {"max_epoch": 3})
    with pytest.raises(ValueError, match="--combine is chosen from labels here"):
        check_settings(bundle_root("ensemble_gradcam_brats"), {"combine": "and"})
    with pytest.raises(ValueError, match="--gate is chosen from labels here"):
        check_settings(root, {"gate": 0.5})


def test_a_folder_of_another_fit_is_refused(tmp_path):
    told = {"bundle": "gp_unet_brats", "settings": {"max_epochs": 3}}
    check_same(tmp_path, told)
    check_same(tmp_path, told)
    with pytest.raises(ValueError, match="made with another settings"):
        check_same(tmp_path, told | {"settings": {}})


def test_a_folder_of_an_earlier_version_that_did_not_remember_the_images_goes_on_and_does_then(tmp_path):
    told = {"datalist_sha256": "d", "images_sha256": "i"}
    check_same(tmp_path, {"datalist_sha256": "d"})
    check_same(tmp_path, told, newer=("images_sha256",))
    with pytest.raises(ValueError, match=r"made with another set of images \(the same names, other files\); choose"):
        check_same(tmp_path, told | {"images_sha256": "of others"}, newer=("images_sha256",))


def test_a_second_training_is_usual_of_slices_halves_and_slides():
    volume, half, part, slices = ({"cls": 1} | more for more in ({}, {"half": "left"}, {"side": "left"}, {"cls": [0]}))
    assert [usual_rounds([volume, case], VOLUMES) for case in (volume, half, part, slices)] == [0, 1, 1, 1]
    assert usual_rounds([volume], SLIDES) == 1


@pytest.mark.parametrize(
    ("refine", "rounds", "count"), [(None, 1, 4), ({}, 0, 4), ({}, 1, 6), ({"pseudo_dir": 0}, 2, 10)]
)
def test_steps_are_as_many_as_there_are_runs(refine, rounds, count, tmp_path):
    (tmp_path / "configs").mkdir()
    if refine is not None:
        (tmp_path / "configs" / "train_refine.json").write_text(json.dumps(refine))
    assert steps(tmp_path, rounds) == count


def test_one_finding_in_volumes_is_drawn_where_a_bundle_has_a_network_for_that(tmp_path):
    (tmp_path / "configs").mkdir()
    settings = {"classes": ["none", "tumor"], "spacing": [1.4, 1.4, -1.0]}
    write_json(tmp_path / "configs" / "train.json", settings)
    assert refining(tmp_path, VOLUMES) == VOLUMES.refine
    (tmp_path / "configs" / "train_draw.json").touch()
    write_json(tmp_path / "configs" / "wsi.json", {})
    assert refining(tmp_path, VOLUMES) == (*VOLUMES.refine, "train_draw.json")
    assert refining(tmp_path, SLIDES) == SLIDES.refine
    named = replace(VOLUMES, refine=("train_refine.json", "train_draw.json"))
    assert refining(tmp_path, named) == named.refine  # once
    (tmp_path / "configs" / "train_supervised.json").touch()
    assert supervised(tmp_path, VOLUMES) == ()  # of another network than the one that draws
    (tmp_path / "configs" / "draw_supervised.json").touch()
    assert supervised(tmp_path, VOLUMES) == ("train_draw.json", "draw_supervised.json")
    for other in ({"classes": ["none", "tumor", "stroke"]}, {"spacing": [-1.0, -1.0, -1.0]}):
        write_json(tmp_path / "configs" / "train.json", settings | other)
        assert refining(tmp_path, VOLUMES) == VOLUMES.refine
        assert supervised(tmp_path, VOLUMES) == ("train_supervised.json",)


def weights_of(place: Path, content: str) -> Path:
    (place / "models").mkdir(parents=True, exist_ok=True)
    (place / "models" / "model.pt").write_text(content, encoding="utf-8")
    return place


def test_what_was_done_is_done_again_only_where_it_was_cut_off_or_made_with_other_weights(tmp_path, monkeypatch):
    ran = []

    def run(own, configs, *, output_dir, fails=False):
        ran.append(configs)
        (tmp_path / "labels.json").write_text("{}", encoding="utf-8")
        if fails:
            raise subprocess.CalledProcessError(-9, "killed")

    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", run)
    result, own = tmp_path / "labels.json", weights_of(tmp_path / "own", "of the first training")
    with pytest.raises(subprocess.CalledProcessError):
        once(result, "scores", own, VOLUMES, fails=True)  # its result is there, and it was cut off
    assert [once(result, "scores", own, VOLUMES, VOLUMES.evaluate) for _ in range(2)] == [True, False]
    weights_of(own, "of the second training, which was interrupted")
    assert [once(result, "scores", own, VOLUMES, VOLUMES.evaluate) for _ in range(2)] == [True, False]
    assert [once(result, "scores", own, VOLUMES, made_from="other masks") for _ in range(2)] == [True, False]
    assert ran == [["inference.json"], *2 * [["inference.json", "evaluate.json"]], ["inference.json"]]


def test_one_label_a_volume_asks_for_more_where_a_config_says_so():
    assert with_volumes(bundle_root("tonno_mosmed"), ["phantom.json"]) == ["phantom.json", "phantom_volumes.json"]
    assert with_volumes(bundle_root("gp_unet_brats"), ["phantom.json"]) == ["phantom.json"]


class TestSlides:
    def test_files_decide_and_both_kinds_at_once_are_refused(self, tmp_path):
        write_slide(tmp_path / "b.tif", (600, 600))
        slides = [{"case": "a", "image": "x/a.SVS"}, {"case": "b", "image": "b.tif"}]
        root, volume = bundle_root("insight_ct"), {"case": "c", "image": "c/ct.nii.gz"}
        volumes = [volume, {"case": "d", "image": ["t1.nii.gz", "t2.nii.gz"]}]
        assert recipe_of(root, {"training": slides}, str(tmp_path)) is SLIDES
        assert recipe_of(root, {"training": volumes}, str(tmp_path)) is VOLUMES
        with pytest.raises(ValueError, match="case 'a' is a whole slide and 'c' is none"):
            recipe_of(root, {"training": slides, "test": [volume]}, str(tmp_path))
        for slide in slides:
            with pytest.raises(ValueError, match="gp_unet_brats takes no whole slides"):
                recipe_of(bundle_root("gp_unet_brats"), {"training": [slide]}, str(tmp_path))

    @pytest.mark.parametrize("bundle", ["insight_ct", "gp_unet_brats"])
    def test_a_tiff_is_a_picture_unless_it_has_levels_and_a_damaged_one_is_what_the_others_are(self, bundle, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((256, 256), np.uint8))
        (tmp_path / "damaged.tiff").write_bytes(b"II*")
        pictures = [{"case": name, "image": name} for name in ("damaged.tiff", "a.tif", "b.png")]
        root = bundle_root(bundle)
        assert recipe_of(root, {"training": pictures}, str(tmp_path)) is VOLUMES
        write_slide(tmp_path / "a.tif", (600, 600))
        if bundle == "insight_ct":
            assert recipe_of(root, {"training": pictures[:2]}, str(tmp_path)) is SLIDES
            with pytest.raises(
                ValueError, match=r"'a\.tif' is a whole slide and 'b\.png' is none: .*TIFF without levels"
            ):
                recipe_of(root, {"training": pictures}, str(tmp_path))

    def test_naming_a_reader_of_slides_says_that_tiff_without_levels_are_slides(self, tmp_path):
        content = {"classes": CLASSES, "modalities": ["image"], "training": cases(0, 1)}
        content["validation"] = [case | {"case": f"v{case['case']}"} for case in cases(0, 1)]
        for case in (*content["training"], *content["validation"]):
            case |= {"image": f"{case['case']}.tif", "patient": case["case"]}
            tifffile.imwrite(tmp_path / case["image"], np.zeros((256, 256), np.uint8))
        assert recipe_of(bundle_root("insight_ct"), content, str(tmp_path)) is VOLUMES
        assert recipe_of(bundle_root("gp_unet_brats"), content, str(tmp_path), flat=True) is VOLUMES
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        settings = {"backend": "tifffile", "spacing": [1, 1, 1]}
        with pytest.raises(ValueError, match="--spacing: no config of insight_ct has it for slides"):
            fit("insight_ct", str(tmp_path), str(tmp_path / "out"), **settings)

    def test_settings_of_volumes_are_refused(self):
        root = bundle_root("insight_ct")
        check_settings(root, {"mpp": 2.0, "max_epochs": 2, "weight_decay": 0.1, "heat_quantile": 0.9}, SLIDES)
        with pytest.raises(ValueError, match="--mpp is of whole slides, and these images are none"):
            check_settings(root, {"max_epochs": 2, "mpp": 2.0})
        for key in ("spacing", "organ", "window"):
            with pytest.raises(ValueError, match=f"--{key}: no config of insight_ct has it for slides"):
                check_settings(root, {key: 1}, SLIDES)
        with pytest.raises(ValueError, match="is chosen from labels here; give it to the made bundle's wsi_inference"):
            check_settings(root, {"threshold": 0.5}, SLIDES)

    def test_a_section_is_described_by_slides(self):
        content = {"classes": CLASSES, "training": cases(0, 1)}
        assert described("training", content, SLIDES) == "training 2 cases of 2 patients, slides none 1, tumor 1"

    @pytest.mark.parametrize(("after", "counts"), [(0.8, "round1"), (0.7, "training")])
    def test_a_second_training_counts_unless_it_tells_labels_apart_much_worse(
        self, after, counts, tmp_path, monkeypatch
    ):
        def run(own, configs, *, output_dir, **settings):
            aucs = [0.1, after] if "wsi_refine.json" in configs else [0.82, 0.5]
            Path(output_dir).mkdir(exist_ok=True)
            if "train.json" in configs:
                (Path(output_dir) / "model.pt").touch()
                with open(Path(output_dir) / "training_log.csv", "w", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerows([["epoch", "auc"], *enumerate(aucs)])

        monkeypatch.setattr(common.commands.fit_runs, "run_bundle", run)
        best = learn(bundle_root("insight_ct"), tmp_path, 1, "validation", {}, SLIDES)
        assert best == tmp_path / counts / "model.pt"

    def test_the_summary_has_a_line_a_label(self, tmp_path):
        row = {"auc": 0.9, "auc_interval": [0.8, 1.0], "positives": 4, "negatives": 5, "positives_marked": 3}
        row |= {"negatives_marked": 1, "tissue_in_negatives": 0.0123}
        other = row | {"auc": None, "auc_interval": None, "negatives": 0, "tissue_in_negatives": None}
        scores = {"labels": {"low": row, "high": other}, "auc_macro": 0.9}
        (tmp_path / "summary.json").write_text(json.dumps(scores))
        assert summary_of_slides(tmp_path, "test").splitlines() == [
            "test, from labels: low, AUC of slides 0.900 [0.8, 1.0]; marked 3 of 4 with it and 1 of 5 without, there "
            "1.2 % of the tissue",
            "test, from labels: high, AUC of slides n/a; marked 3 of 4 with it and 1 of 0 without, there 0 % of the "
            "tissue",
            "mean AUC over labels 0.900",
        ]
