from __future__ import annotations

import csv

import numpy as np
import pytest

from tests.bundles.conftest import load_script, read_json
from tests.bundles.tonno_mosmed.balls import Bright, ball_case, balls

ablation = load_script("tonno_mosmed", "ablation")
sampling = load_script("tonno_mosmed", "sampling")


def test_ablation_has_a_row_and_a_picture_for_every_setting(tmp_path):
    grid = [(8, 10), (20, 60)]
    options = {"method": "tonno", "size": 24}
    rows = ablation.ablate(
        Bright(), ball_case, cases=balls(2), grid=grid, options=options, output_dir=tmp_path, progress=False
    )
    assert [(row["num_slices"], row["num_directions"]) for row in rows] == grid
    assert rows[1]["dice"] > rows[0]["dice"]
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_logits_of_positive_volumes_lie_higher_in_the_figure_of_a_good_network(tmp_path):
    options = {"planes": 8, "size": 24, "fixed": True, "min_slices": 4, "max_slices": None, "progress": False}
    dataset = sampling.PlaneDataset(balls(2), ball_case, **options)
    ablation.logit_figure(Bright(), dataset, output_dir=tmp_path, num_slices=20)
    with open(tmp_path / "logits.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    means = [np.mean([float(r["logit"]) for r in rows if r["label"] == label]) for label in "01"]
    assert means[1] > means[0]
    assert (tmp_path / "logits.png").read_bytes()[:4] == b"\x89PNG"


def test_planes_that_meet_the_finding_are_told_from_the_others(tmp_path):
    class Inverse(Bright):
        def forward(self, image):
            return -super().forward(image)

    settings = {"cases": balls(3), "output_dir": tmp_path, "size": 24, "min_area_cm2": 0.05}
    good = ablation.plane_scores(Bright(), ball_case, **settings)
    assert good == read_json(tmp_path / "planes.json")
    assert good["auc"] > 0.95
    assert good["auc_within"] > 0.95
    assert ablation.plane_scores(Inverse(), ball_case, **settings)["auc"] == pytest.approx(1 - good["auc"], abs=2e-4)
