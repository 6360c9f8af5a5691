from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.bundles.conftest import load_script, read_json

compare = load_script("tonno_mosmed", "compare")
ablation = load_script("tonno_mosmed", "ablation")
sampling = load_script("tonno_mosmed", "sampling")


class Bright(torch.nn.Module):
    """One logit: how many pixels are bright. Its layer is the bright part of the slice."""

    stages = ("excess",)

    def __init__(self) -> None:
        super().__init__()
        self.excess = torch.nn.Threshold(1.4, 0.0)

    def forward(self, image):
        return self.excess(image).mean(dim=(1, 2, 3))[:, None] * 30 - 0.5


def ball_case(case: dict) -> dict:
    """Preprocessing: a ball with a bright cube somewhere, and beside it a bright voxel that is no finding."""
    axes = torch.stack(torch.meshgrid(*(torch.arange(n) - 0.5 * (n - 1) for n in (18, 18, 14)), indexing="ij"))
    organ = (axes.norm(dim=0) < 8.5).float()
    place = tuple(slice(c, c + 4) for c in case["at"])
    label = torch.zeros_like(organ)
    label[place] = 1
    image = organ * (1 + 0.8 * label)
    image[9, 3, 7] = 2.5
    affine = torch.eye(4)
    return {"image": MetaTensor(torch.stack([image, organ]), affine=affine), "label": MetaTensor(label[None], affine)}


def balls(count: int, first: int = 0) -> list[dict]:
    cls = [0] * 5 + [1] * 4 + [0] * 5
    places = [(4 + (k % 3) * 2, 7, 5) for k in range(first, first + count)]
    return [{"case": f"ball{k}", "patient": f"ball{k}", "at": at, "cls": cls} for k, at in enumerate(places)]


def test_every_method_is_scored_with_the_threshold_of_validation(tmp_path):
    inferer = compare.MethodsInferer(layers=(1,), num_slices=20, num_directions=60, size=24, progress=False)
    rows = compare.compare(
        inferer,
        Bright(),
        ball_case,
        validation=balls(2),
        test=balls(2, first=1),
        output_dir=tmp_path,
        refine={"intensity": 1.3, "opening_mm": 0.0},
        progress=False,
    )
    table = {row["method"]: row for row in rows}
    names = {"intensity", "tonno", "layercam@1", "three_views@1", "averaged_cam@1", "tomographic_cam@1"}
    assert set(table) == names
    for row in rows:
        assert row["dice"] > 0.5, row
        assert row["dice_refined"] > 0.9, row
        assert row["balanced_accuracy"] >= 0.5
    assert table["intensity"]["precision"] == pytest.approx(0.5)  # the bright voxel is a component of its own
    alone = compare.ToNNOInferer(num_slices=20, num_directions=60, size=24, progress=False)
    read = ball_case(balls(1)[0])
    image = read["image"].as_tensor()
    (expected,) = alone.volumes(image, (1.0, 1.0, 1.0), Bright())[0].values()
    torch.testing.assert_close(inferer.volumes(image, (1.0, 1.0, 1.0), Bright())[0]["tonno"], expected)
    assert (tmp_path / "table.csv").exists()
    assert set(read_json(tmp_path / "table.json")) == names


class Squared(Bright):
    """Its gradient differs from pixel to pixel, so that the kinds of maps do."""

    def forward(self, image):
        return (self.excess(image) ** 2).mean(dim=(1, 2, 3))[:, None]


def test_comparison_takes_every_kind_of_map():
    options = {"num_slices": 8, "num_directions": 10, "size": 24, "progress": False}
    image = ball_case(balls(1)[0])["image"].as_tensor()
    maps = compare.MethodsInferer(layers=(1,), cam="gradcam", **options).volumes(image, (1.0, 1.0, 1.0), Squared())[0]
    assert "layercam@1" not in maps
    for name, method in {"gradcam@1": "gradcam", "averaged_cam@1": "averaged_cam"}.items():
        alone = compare.ToNNOInferer(method=method, cam="gradcam", cam_layer=1, **options)
        (expected,) = alone.volumes(image, (1.0, 1.0, 1.0), Squared())[0].values()
        torch.testing.assert_close(maps[name], expected)


def test_thresholds_by_f1_leave_fewer_false_components_than_those_by_dice(tmp_path):
    options = {"validation": balls(2), "test": balls(1), "output_dir": tmp_path, "progress": False}
    inferer = compare.MethodsInferer(layers=(1,), num_slices=12, num_directions=20, size=24, progress=False)
    rows = {
        score: {row["method"]: row for row in compare.compare(inferer, Bright(), ball_case, score=score, **options)}
        for score in ("dice", "f1")
    }
    assert all(rows["f1"][name]["f1"] >= rows["dice"][name]["f1"] for name in rows["dice"])
    assert any(rows["f1"][name]["f1"] > rows["dice"][name]["f1"] for name in rows["dice"])
    with pytest.raises(ValueError, match="score must be one of"):
        compare.compare(inferer, Bright(), ball_case, score="auc", **options)


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
    with open(tmp_path / "logits.csv") as file:
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
