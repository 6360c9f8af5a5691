from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from ignite.engine import Engine, Events
from monai.transforms import Compose, Orientationd, Spacingd

from common.checkpoint import add_beside, read_beside, read_chosen
from common.features.fingerprint import describe
from common.preprocessing import CheckSeend, LoadCased, OrganMaskd, SeenWriter, read_seen
from tests.pipeline import affine_of, save

SHAPE = (20, 24, 6)  # sagittal slices
AFFINE = affine_of("PIL", (1.0, 1.0, 4.0), SHAPE)


def volume(folder: Path, name: str, *, slope: float = 1.0, offset: float = 0.0) -> dict[str, str]:
    """A case with an organ; its image lies between 20 and 200 inside, or on a line of that."""
    values = np.random.default_rng(len(name)).uniform(20, 200, SHAPE)
    organ = np.zeros(SHAPE, np.float32)
    organ[2:18, 2:22, 1:5] = 1
    image = save(folder / f"{name}.nii.gz", (slope * values + offset).astype(np.float32), AFFINE)
    mask = save(folder / f"{name}_lung.nii.gz", organ, AFFINE)
    return {"case": name, "patient": name[0], "image": image, "organ": mask}


def preprocessing(seen: dict | None, **options: object) -> Compose:
    keys = ["image", "organ"]
    return Compose(
        [
            LoadCased(channels=1),
            Orientationd(keys=keys, axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys=keys, pixdim=(2.0, 2.0, -1.0), mode=["bilinear", "nearest"]),
            OrganMaskd(keys="image", organ="none"),
            CheckSeend(keys="image", seen=seen, **{"window": [0, 255]} | options),
        ]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """`model.pt` with its `model.json`, as training on three patients leaves them."""
    folder = tmp_path_factory.mktemp("trained")
    cases = [volume(folder, name) for name in ("a1", "b2", "b34")]
    (folder / "datalist.json").write_text(json.dumps({"modalities": ["ct"]}))
    (folder / "model.json").write_text(json.dumps({"gate": 0.5, "seen": "of another training"}))
    transform = preprocessing(None)
    transform(cases[0])  # one was read for the training, the others come from a cache
    Path(cases[0]["image"]).unlink()
    data = [case | {"label": "is not opened"} for case in cases]
    options = {"datalist": folder / "datalist.json", "progress": False}
    writer = SeenWriter(folder / "model.json", data=data, preprocessing=transform, **options)
    trainer = Engine(lambda *_: None)
    writer.attach(trainer)
    trainer.run([0], max_epochs=1)
    return folder / "model.pt"


def test_training_leaves_what_it_saw_beside_its_weights_and_other_parts_of_the_file_alone(trained):
    content = json.loads(trained.with_suffix(".json").read_text())
    assert content["gate"] == 0.5
    seen = content["seen"]
    assert (seen["cases"], seen["patients"], seen["channels"], seen["window"]) == (3, 2, ["ct"], [0.0, 255.0])
    assert seen["spacing"]["median"] == pytest.approx([4.0, 1.0, 1.0])  # of the file, along left, back and up
    assert 20 <= seen["quantiles"][0]["min"][0] < seen["quantiles"][0]["max"][-1] <= 200
    assert 100 < seen["quantiles"][0]["median"][3] < 120
    assert seen["organ_ml"]["max"] == pytest.approx(2 * seen["organ_ml"]["min"])


def test_a_case_as_in_training_passes_unchanged(trained, tmp_path):
    case = volume(tmp_path, "c")
    plain = preprocessing({})(dict(case))
    checked = preprocessing(read_seen(trained))(dict(case))
    assert checked["warnings"] == ""
    np.testing.assert_array_equal(checked["image"].numpy(), plain["image"].numpy())


def test_what_certainly_does_not_fit_is_an_error_that_names_the_file_or_on_request_a_warning(trained, tmp_path):
    case = volume(tmp_path, "c", slope=5.0, offset=-1000.0)
    with pytest.raises(RuntimeError) as raised:
        preprocessing(read_seen(trained))(dict(case))
    message = str(raised.value.__cause__)
    assert message.startswith(f"{case['image']}: ")
    assert re.search(r"\d+% of the organ's voxels lie outside .* --window; --check_range false goes on$", message)
    data = preprocessing(read_seen(trained, check_range=False))(dict(case))
    assert "lie outside" in data["warnings"]


def test_a_training_whose_window_shows_nothing_of_an_image_is_refused_with_the_window_to_give(tmp_path):
    lungs = volume(tmp_path, "hu", slope=1.0, offset=-1000.0)  # -980 to -800
    with pytest.raises(RuntimeError) as error:
        preprocessing(None)(lungs)
    said = str(error.value.__cause__)
    assert said.startswith(
        f"{lungs['image']}: 100% of the organ's voxels lie outside of the window [0, 255] (5 to 95 %"
    )
    assert said.endswith(
        '--window "[-1350,150]" shows lungs in Hounsfield units. --skip_outside_window true leaves such cases out'
    )
    for window in ([-1350.0, 150.0], None):
        described = CheckSeend(keys="image", seen=None, window=window)
        read = preprocessing({})(lungs)
        assert described(read) == read
        assert described.described


def test_half_an_image_of_air_may_lie_outside_of_the_window(tmp_path):
    preprocessing(None)(volume(tmp_path, "half", slope=2.0, offset=-220.0))  # -180 to 180


def test_warnings_are_added_to_those_there_are(trained, tmp_path):
    case = volume(tmp_path, "c")
    loaded = preprocessing(None)(dict(case)) | {"warnings": "it is said to be doubtful"}
    seen = json.loads(trained.with_suffix(".json").read_text())["seen"]
    seen["organ_ml"] = {"min": 1000.0, "median": 1000.0, "max": 1000.0}
    data = CheckSeend(keys="image", seen=seen, window=[0, 255])(loaded)
    assert data["warnings"].startswith("it is said to be doubtful; organ of ")


def test_weights_without_the_file_are_used_with_a_line_that_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_seen(tmp_path / "own.pt") == {}
    assert f"{tmp_path / 'own.json'} does not say what the weights saw" in caplog.text
    (tmp_path / "own.json").write_text("{")
    with pytest.raises(ValueError, match=r"own.json: not a JSON file"):
        read_seen(tmp_path / "own.pt")


@pytest.mark.parametrize(
    ("modalities", "said"),
    [
        (["CT"], ""),
        (["image"], ""),
        (["flair"], "modality 'flair' in the place of 'ct' in training"),
        (["ct", "pet"], ""),  # the number of channels is checked with the image
    ],
)
def test_names_of_a_datalists_modalities_are_held_against_the_trainings(trained, tmp_path, modalities, said):
    (tmp_path / "own.json").write_text(json.dumps({"modalities": modalities}))
    case = volume(tmp_path, "c")
    data = preprocessing(read_seen(trained, datalist=tmp_path / "own.json"))(dict(case))
    assert data["warnings"] == said


def test_channels_in_another_order_are_an_error_or_on_request_a_warning(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"seen": {"channels": ["t1", "flair"]}}))
    (tmp_path / "own.json").write_text(json.dumps({"modalities": ["flair", "t1"]}))
    message = "modalities are flair, t1, but training had the order t1, flair"
    with pytest.raises(ValueError, match=rf"own.json: {message}; --check_range false"):
        read_seen(tmp_path / "model.pt", datalist=tmp_path / "own.json")
    assert read_seen(tmp_path / "model.pt", check_range=False, datalist=tmp_path / "own.json")["names"] == [message]


def test_a_case_whose_first_channel_is_called_as_another_is_an_error(trained, tmp_path):
    case = volume(tmp_path, "p1_PET")
    for channels in (["pet", "ct"], ["ct"]):
        assert preprocessing(read_seen(trained) | {"channels": channels})(dict(case))["warnings"] == ""
    with pytest.raises(RuntimeError) as raised:
        preprocessing(read_seen(trained) | {"channels": ["ct", "pet"]})(dict(case))
    message = "pet stands in the place of ct; training had the order ct, pet; --check_range false goes on"
    assert str(raised.value.__cause__) == f"{case['image']}: {message}"


def test_of_many_patients_some_are_described_with_all_their_cases(tmp_path):
    cases = [{"case": f"{patient}_{part}", "patient": patient} for patient in "abcdefg" for part in (1, 2)]
    writer = SeenWriter(tmp_path / "model.json", data=cases, preprocessing=None, most=3)
    assert [case["case"] for case in writer._some()] == ["a_1", "a_2", "d_1", "d_2", "g_1", "g_2"]
    writer.write()  # slides: nothing to describe
    assert "seen" not in read_beside(tmp_path / "model.json")


def test_what_the_weights_depend_on_is_kept_and_a_new_training_forgets_what_was_chosen(tmp_path):
    path = tmp_path / "model.json"
    add_beside(path, chosen={"gate": 0.3})
    writer = SeenWriter(path, data=[], preprocessing=None, trained={"spacing": [1.0, 1.0, -1.0]})
    path.with_suffix(".pt").write_bytes(b"weights")
    add_beside(path.with_suffix(".pt"), chosen_from={"labels": "slices"})
    writer.write()
    assert read_chosen(path.with_suffix(".pt"))["gate"] == 0.3
    writer.write(Engine(lambda *_: None))
    assert read_beside(path)["chosen"] == {}
    assert read_beside(path)["trained"] == {"spacing": [1.0, 1.0, -1.0]}


def run_of(path: Path, *, resumed_at: int, spacing: float = 1.5, labels: dict | None = None) -> None:
    """A training of three epochs whose checkpoint, attached after the writer, is of epoch `resumed_at`."""
    engine = Engine(lambda *_: None)
    data = [{"case": name, "cls": label} for name, label in (labels or {}).items()]
    SeenWriter(path, data=data, preprocessing=None, trained={"spacing": (spacing, 1.0)}).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", resumed_at))
    engine.run([0], max_epochs=3)


def test_a_training_that_is_resumed_depends_on_what_it_began_with(tmp_path):
    path = tmp_path / "model.json"
    run_of(path, resumed_at=0, spacing=1.5)
    run_of(path, resumed_at=2, spacing=1.5)
    with pytest.raises(ValueError, match=r"began with other settings: spacing was \[1.5, 1.0\], now \[2.0, 1.0\]"):
        run_of(path, resumed_at=2, spacing=2.0)
    assert read_beside(path)["trained"] == {"spacing": [1.5, 1.0]}
    run_of(path, resumed_at=0, spacing=2.0)  # begun anew
    assert read_beside(path)["trained"] == {"spacing": [2.0, 1.0]}


def test_a_training_that_is_resumed_with_other_cases_goes_on_and_says_which(tmp_path, caplog):
    path = tmp_path / "model.json"
    before = {"a": 0, "b": [0, 1], "c": 1}
    run_of(path, resumed_at=0, labels=before)
    run_of(path, resumed_at=2, labels=dict(reversed(before.items())))
    assert caplog.messages == []
    run_of(path, resumed_at=2, labels={"a": 0, "b": [1, 1], "d": 0, "e": 1})
    (said,) = caplog.messages
    assert said.endswith("goes on with other cases than it had: 1 gone (c); 2 new (d, e); 1 with another label (b)")
    run_of(path, resumed_at=2, labels={"a": 0, "b": [1, 1], "d": 0, "e": 1})  # once is enough
    run_of(path, resumed_at=0, labels=before)  # begun anew
    assert len(caplog.messages) == 1


def test_a_training_chooses_nothing_for_the_weights_that_it_replaces(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"of the epoch before")
    for epoch in (0, 1):
        run_of(tmp_path / "model.json", resumed_at=epoch)
    weights.write_bytes(b"of the last epoch")
    assert read_beside(weights)["chosen_from"] == {}
    with pytest.raises(ValueError, match="nothing was chosen for these weights yet"):
        read_chosen(weights)["gate"]


def test_a_finished_training_that_is_started_again_keeps_what_was_chosen(tmp_path):
    path = tmp_path / "model.json"
    run_of(path, resumed_at=0, spacing=1.5)
    add_beside(path, chosen={"gate": 0.3})
    run_of(path, resumed_at=3, spacing=1.5)
    assert read_beside(path)["chosen"] == {"gate": 0.3}


def test_features_do_not_depend_on_what_is_only_looked_at(trained):
    plain = Compose(preprocessing(None).transforms[:-1])
    assert describe(preprocessing(read_seen(trained))) == describe(preprocessing(None)) == describe(plain)


def test_training_warns_of_a_case_whose_intensities_are_unlike_the_others(tmp_path, caplog):
    cases = [volume(tmp_path, f"p{n}") for n in range(3)] + [volume(tmp_path, "x", slope=0.02, offset=-2.0)]
    SeenWriter(tmp_path / "model.json", data=cases, preprocessing=preprocessing(None, window=None)).write()
    assert [r.getMessage() for r in caplog.records if r.name == "common.preprocessing.seen_writer"] == [
        "x: negative values, which 3 other cases lack: standardized and raw intensities among each other?"
    ]
