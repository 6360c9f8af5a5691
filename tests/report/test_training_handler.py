from __future__ import annotations

import json

import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.report import TrainingReport, write_report
from tests.report.conftest import embedded


def train(folder, **options) -> None:
    trainer = Engine(lambda engine, batch: {"loss": batch / engine.state.epoch})
    trainer.state.device = "cpu"
    about = {"bundle_root": folder.parent / "gp_unet_brats"}
    TrainingReport(folder, progress=False, about=about, **options).attach(trainer)
    trainer.run([1.0, 3.0], max_epochs=2)


def test_without_a_page_a_training_leaves_its_log_and_its_record(tmp_path):
    train(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["training.json", "training_log.csv"]
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["bundle"], record["device"]) == ("gp_unet_brats", "cpu")
    page = embedded(write_report(tmp_path / "run").parent)
    assert dict(page["provenance"])["bundle"] == "gp_unet_brats"
    assert page["training"]["montages"] == []


def test_the_page_has_curves_and_pictures_of_validation_cases(tmp_path):
    image = MetaTensor(torch.ones(2, 12, 10, 4), affine=torch.eye(4))
    montages = {
        "cases": [{"case": "p1", "cls": 1}],
        "preprocessing": lambda case: case | {"image": image},
        "network": torch.nn.Linear(1, 1),
        "every": 1,
        "share": 1e9,
    }
    train(tmp_path / "run", montages=montages, inferer=lambda inputs, network: torch.cat([inputs, inputs], dim=1))
    page = embedded(tmp_path / "run")
    assert page["training"]["epochs"] == [1, 2]
    (case,) = page["training"]["montages"]
    assert (case["case"], case["positive"]) == ("p1", True)
    assert [each["epoch"] for each in case["pictures"]] == [1, 2]
    assert all(len(each["picture"]) > 500 for each in case["pictures"])
    assert str(tmp_path) not in (tmp_path / "run" / "report.html").read_text()
