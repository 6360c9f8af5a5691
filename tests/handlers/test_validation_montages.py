from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from common.handlers import ValidationMontages
from common.handlers.validation_montages import evidence, some_of_each, spread_over

CASES = [
    {"case": name, "cls": cls, "label": "is not opened", "image": name}
    for name, cls in (("a", [0, 1, 0]), ("b", [0, 0, 0]), ("c", 1), ("d", 0), ("e", ["tumor"]), ("f", []))
]


def preprocessing(case: dict) -> dict:
    assert "label" not in case
    image = torch.zeros(2, 20, 16, 5)
    image[:, 4:16, 4:12, 1:5] = 1
    return case | {"image": MetaTensor(image, affine=torch.eye(4))}


class Network(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.modes: list[bool] = []


def inferer(inputs: torch.Tensor, network: Network) -> torch.Tensor:
    network.modes.append(network.training)
    torch.rand(3)  # whatever it draws, training goes on as without it
    return torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :1], inputs], dim=1)


def train(folder, *, epochs: int = 5, **options) -> tuple[list[str], Network, torch.Tensor]:
    network = Network()
    torch.manual_seed(0)
    trainer = Engine(lambda *_: None)
    shared = {"preprocessing": preprocessing, "network": network, "inferer": inferer, "columns": 3, "height": 20}
    ValidationMontages(folder, CASES, **shared | options).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return sorted(path.name for path in folder.glob("montages/*.png")), network, torch.rand(1)


def test_cases_are_drawn_every_few_epochs_and_at_the_end(tmp_path):
    names, network, drawn = train(tmp_path, every=2, count=3, share=1e9)
    assert names == [f"{case}_epoch_{epoch:04d}.png" for case in "abe" for epoch in (2, 4, 5)]
    assert network.training
    assert not any(network.modes)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert json.loads((tmp_path / "montages" / "labels.json").read_text()) == {"a": True, "b": False, "e": True}
    picture = np.asarray(Image.open(tmp_path / "montages" / names[0]))
    assert (picture[:20, :48] > 0).any()  # the scan
    assert (picture[20:, :48] != picture[:20, :48]).any()  # heat over it


def test_what_would_take_too_much_of_the_time_is_left_out(tmp_path):
    assert [name[8:-4] for name in train(tmp_path, every=1, count=1, share=0.0)[0]] == ["0001", "0005"]


def test_a_new_training_removes_the_pictures_of_another_one(tmp_path):
    (tmp_path / "montages").mkdir()
    (tmp_path / "montages" / "z_epoch_0009.png").touch()
    (tmp_path / "montages" / ".123.z_epoch_0009.png").touch()  # left by a killed write
    assert not any(name.startswith("z") for name in train(tmp_path, epochs=1, count=1)[0])
    assert not list((tmp_path / "montages").glob("*z_epoch_*"))


def test_a_picture_that_fails_ends_no_training(tmp_path, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("no maps")

    with caplog.at_level(logging.WARNING):
        names, network, _ = train(tmp_path, every=1, inferer=broken)
    assert names == []
    assert network.training
    assert [record.message for record in caplog.records if "pictures" in record.message] == [
        "no pictures of validation cases any more: RuntimeError: no maps"
    ]


@pytest.mark.parametrize(("count", "names"), [(1, "a"), (2, "ae"), (3, "aeb"), (6, "acebdf"), (9, "acebdf")])
def test_a_third_of_the_cases_is_negative(count, names):
    assert "".join(case["case"] for case in some_of_each(CASES, count)) == names


def test_without_positives_or_negatives_the_others_are_shown():
    assert [case["case"] for case in some_of_each(CASES[:1], 3)] == ["a"]
    assert [case["case"] for case in some_of_each([CASES[1], CASES[3]], 2)] == ["b", "d"]


def test_slices_are_spread_over_the_organ():
    organ = np.zeros((2, 2, 30), bool)
    organ[0, 0, 5:26] = True
    assert spread_over(organ, 3) == [6, 15, 24]
    assert spread_over(organ[..., 7:8], 6) == [0]


def test_evidence_is_what_the_strongest_class_has_over_the_negative_one():
    output = torch.tensor([1.0, 3.0, 2.5, 0.0, 0.0, 0.0]).reshape(6, 1, 1, 1)
    assert evidence(output).item() == 2.0
