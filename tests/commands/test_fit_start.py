"""`fit --start_ckpt`: weights that there are, in place of a first training."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import common.commands.fit_runs
from common.commands.fit_request import requested
from common.commands.fit_runs import VOLUMES, learn
from common.commands.fit_start import draws, settings_of_start
from common.commands.run import BUNDLES, bundle_root
from common.data import SECTIONS
from common.files import read_json, write_json

DATA = {"classes": ["none", "tumor"], "modalities": ["flair"]}
TRAINED = {"classes": ["none", "lesion"], "channels": 1, "spacing": [2.0, 2.0, -1.0], "map_width": 32, "by_slice": True}
DREW = {"labels": "slices", "masks": "none", "teacher": {"sha256": "0"}}


def weights(folder: Path, *, content: str = "theirs", trained: dict | None = None, **beside) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.pt").write_text(content)
    write_json(folder / "theirs.json", {"trained": TRAINED if trained is None else trained, **beside})
    return folder / "theirs.pt"


@pytest.fixture
def own(tmp_path) -> Path:
    """A made bundle that learns twice."""
    configs = {"train": {}, "train_refine": {"natural_threshold": 0.5, "start_ckpt": None}}
    for name, keys in (configs | {"calibrate_labels": {"natural_threshold": None}, "inference": {}}).items():
        write_json(tmp_path / "own" / "configs" / f"{name}.json", keys)
    return tmp_path / "own"


@pytest.fixture
def runs(monkeypatch) -> list[dict]:
    """Calls of `run_bundle`, each of which leaves weights and thresholds."""
    calls: list[dict] = []

    def run(own, configs, *, output_dir, **settings):
        calls.append({"configs": configs, "place": Path(output_dir).name, **settings})
        name = "model.pt" if configs[0] == "train.json" else "calibrated.json"
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / name).write_text(f"of {Path(output_dir).name}")
        (Path(output_dir) / "model.json").touch()

    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", run)
    monkeypatch.setattr(common.commands.fit_runs, "for_configs", lambda own, configs, settings: settings)
    return calls


def test_thresholds_are_chosen_for_them_and_the_training_on_masks_begins_with_them(own, runs, tmp_path):
    start = weights(tmp_path, trained_on=DREW, chosen={"gate": 0.9}, chosen_from={"masks": "none"}, seen={"x": 1})
    best = learn(own, tmp_path / "out", 2, "validation", {}, VOLUMES, start=start)
    assert [(call["place"], call["configs"][-1]) for call in runs] == [
        ("start", "calibrate_labels.json"),
        *(("round1", name) for name in ("train_refine.json", "calibrate_labels.json")),
        *(("round2", name) for name in ("train_refine.json", "calibrate_labels.json")),
    ]
    copy = tmp_path / "out" / "start" / "model.pt"
    assert copy.read_text() == "theirs"
    assert read_json(copy.with_suffix(".json")) == {"trained": TRAINED, "trained_on": DREW, "seen": {"x": 1}}
    begun_with = [Path(call["start_ckpt"]).parent.name for call in runs if "start_ckpt" in call]
    assert begun_with == ["start", "round1"]
    assert runs[1]["teacher_ckpt"] == str(copy)
    assert {call.get("natural_threshold") for call in runs if "section" in call} == {0.5}  # their maps were drawn, too
    assert best.parent.name == "round2"
    runs.clear()
    learn(own, tmp_path / "out", 2, "validation", {}, VOLUMES, start=start)
    assert not runs


@pytest.mark.parametrize(("fails", "counts"), [("round2", "round1"), ("round1", "training"), ("training", "")])
def test_a_second_training_that_fails_does_not_count_and_a_first_one_ends_all(
    own, runs, tmp_path, monkeypatch, capsys, fails, counts
):
    run = common.commands.fit_runs.run_bundle

    def failing(own, configs, *, output_dir, **settings):
        if Path(output_dir).name == fails:
            raise subprocess.CalledProcessError(1, "run")
        run(own, configs, output_dir=output_dir, **settings)

    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", failing)
    with nullcontext() if counts else pytest.raises(subprocess.CalledProcessError):
        assert learn(own, tmp_path / "out", 2, "validation", {}, VOLUMES).parent.name == counts
        assert f"round {fails[-1]} failed, see above; the training before it counts" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pt", "model.json"])
def test_weights_that_are_gone_are_named_and_what_was_chosen_for_a_new_copy_is_chosen_anew(own, runs, tmp_path, name):
    out, start = tmp_path / "out", weights(tmp_path)
    learn(own, out, 0, "validation", {}, VOLUMES, start=start)
    (out / "start" / name).unlink()
    runs.clear()
    learn(own, out, 0, "validation", {}, VOLUMES, start=start)
    assert ([call["place"] for call in runs], (out / "start" / name).is_file()) == (["start"], True)
    learn(own, out, 0, "validation", {}, VOLUMES)
    (out / "training" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"training/{name} is gone, .* remove `finished` and `checkpoint.pt`"):
        learn(own, out, 0, "validation", {}, VOLUMES)
    (out / "training" / "finished").unlink()
    runs.clear()
    learn(own, out, 0, "validation", {}, VOLUMES)
    assert [call["configs"][-1] for call in runs] == ["train.json", "calibrate_labels.json"]


def test_a_bundle_without_a_second_training_ends_with_the_first(own, runs, tmp_path, capsys):
    (own / "configs" / "train_refine.json").unlink()
    assert learn(own, tmp_path / "out", 2, "validation", {}, VOLUMES).parent.name == "training"
    assert "own has no second training" in capsys.readouterr().out


def test_maps_of_a_first_training_have_no_natural_threshold(own, runs, tmp_path):
    start = weights(tmp_path, trained_on={"labels": "slices", "masks": "none"})
    best = learn(own, tmp_path / "out", 0, "validation", {}, VOLUMES, start=start)
    assert best == tmp_path / "out" / "start" / "model.pt"
    assert [call.get("natural_threshold") for call in runs] == [None]


def test_what_they_depend_on_is_taken_from_them_but_for_what_is_the_datas_or_of_the_second_training(tmp_path):
    root = bundle_root("gp_unet_brats")
    settings = settings_of_start(weights(tmp_path), root, {"max_epochs": 3, "spacing": [2.0, 2.0, -1.0]}, DATA)
    assert settings == {"channels": 1, "spacing": [2.0, 2.0, -1.0], "max_epochs": 3}


@pytest.mark.parametrize(
    ("trained", "settings", "data", "error"),
    [
        ({}, {}, {}, r"theirs\.json does not say how theirs\.pt was trained"),
        (
            TRAINED,
            {"spacing": [1.0, 1.0, -1.0]},
            {},
            r"spacing is \[1\.0, 1\.0, -1\.0\], but theirs\.pt was trained with",
        ),
        (TRAINED | {"encoder_name": "resnet50"}, {}, {}, "is not of gp_unet_brats, which has no encoder_name"),
        (TRAINED, {}, {"modalities": ["t1", "t2"]}, "has 1 channels, the data 2"),
        (TRAINED, {}, {"classes": ["none", "a", "b"]}, r"has 2 classes, the data 3: \['none', 'a', 'b'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, trained, settings, data, error):
    with pytest.raises(ValueError, match=f"--start_ckpt: .*{error}"):
        settings_of_start(weights(tmp_path, trained=trained), bundle_root("gp_unet_brats"), settings, DATA | data)
    with pytest.raises(FileNotFoundError, match="there is no"):
        settings_of_start(tmp_path / "gone.pt", bundle_root("gp_unet_brats"), settings, DATA)


def test_channels_in_another_order_are_refused_and_others_named(tmp_path, caplog):
    start = weights(tmp_path, trained=TRAINED | {"channels": 2}, seen={"channels": ["FLAIR", "t1"]})
    root = bundle_root("gp_unet_brats")
    settings_of_start(start, root, {}, DATA | {"modalities": ["flair", "t1"]})
    assert not caplog.messages
    settings_of_start(start, root, {}, DATA | {"modalities": ["flair", "t1ce"]})
    (said,) = caplog.messages
    assert said == f"{start} learned from FLAIR, t1, the data are flair, t1ce"
    with pytest.raises(ValueError, match="t1 stands in the place of FLAIR"):
        settings_of_start(start, root, {}, DATA | {"modalities": ["t1", "flair"]})


@pytest.mark.parametrize(
    ("bundle", "ending", "labels"), [("insight_ct", "svs", [0, 1]), ("gp_unet_brats", "png", [1, 2])]
)
def test_slides_and_classes_without_negatives_begin_with_no_weights(tmp_path, bundle, ending, labels):
    content: dict[str, Any] = {"name": "x", "classes": ["none", "a", "b"][: max(labels) + 1], "modalities": ["x"]}
    for section in SECTIONS[:2]:
        names = [f"{section}{label}" for label in labels]
        content[section] = [
            {"case": name, "patient": name, "image": f"{name}.{ending}", "cls": label}
            for name, label in zip(names, labels, strict=True)
        ]
        for name in names:
            Image.new("L", (8, 8)).save(tmp_path / f"{name}.{ending}", format="PNG")
    write_json(tmp_path / "datalist.json", content)
    how: dict[str, Any] = {"datalist": None, "configs": "", "rounds": None, "settings": {}}
    with pytest.raises(ValueError, match="--start_ckpt: of volumes with negatives alone"):
        requested(bundle, str(tmp_path), str(tmp_path / "out"), start_ckpt=str(weights(tmp_path)), **how)
    requested(bundle, str(tmp_path), str(tmp_path / "out"), start_ckpt=None, **how)


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir() if (path / "models").is_dir()))
def test_shipped_weights_are_refused_by_every_other_bundle(bundle):
    ckpt = bundle_root(bundle) / "models" / "model.pt"
    trained, seen = (read_json(ckpt.with_suffix(".json"))[key] for key in ("trained", "seen"))
    data = {"classes": trained["classes"], "modalities": seen["channels"]}
    settings_of_start(ckpt, bundle_root(bundle), {}, data)
    for other in {"gp_unet_brats", "ensemble_gradcam_brats", "tonno_mosmed", "insight_ct"} - {bundle}:
        with pytest.raises(ValueError, match=f"is not of {other}, which has no "):
            settings_of_start(ckpt, bundle_root(other), {}, data)


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir() if (path / "models").is_dir()))
def test_shipped_weights_fit_the_training_on_masks_of_their_bundle(bundle):
    root = bundle_root(bundle)
    ckpt = root / "models" / "model.pt"
    trained = read_json(ckpt.with_suffix(".json"))["trained"]
    data = {"classes": trained["classes"], "modalities": ["image"] * trained["channels"]}
    settings = settings_of_start(ckpt, root, {}, data)
    assert settings["spacing"] == trained["spacing"]
    assert draws(ckpt)
