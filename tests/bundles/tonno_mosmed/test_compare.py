from __future__ import annotations

import pytest
import torch

from tests.bundles.conftest import load_script, read_json
from tests.bundles.tonno_mosmed.balls import Bright, ball_case, balls

compare = load_script("tonno_mosmed", "compare")


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
