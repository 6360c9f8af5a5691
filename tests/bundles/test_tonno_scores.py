from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.filters import threshold_otsu

from common.transforms import MapsToMaskd

from .conftest import load_script, read_json

compare = load_script("tonno_mosmed", "compare")
masks = load_script("tonno_mosmed", "masks")
scores = load_script("tonno_mosmed", "scores")
ablation = load_script("tonno_mosmed", "ablation")
sampling = load_script("tonno_mosmed", "sampling")


def heat_case(heat: np.ndarray) -> dict:
    """A case as the inferer leaves it: two maps, two probabilities, the organ everywhere but in the first row."""
    pred = torch.zeros(4, *heat.shape)
    pred[1] = torch.as_tensor(heat)
    pred[3] = 1.0
    organ = torch.ones(1, *heat.shape)
    organ[:, 0] = 0
    return {"image": torch.cat([torch.ones_like(organ), organ]), "pred": pred}


@pytest.fixture
def heat() -> np.ndarray:
    rng = np.random.default_rng(0)
    heat = rng.normal(size=(12, 12, 8)) * 0.1
    heat[3:7, 3:7, 2:5] += 2.0  # 48 voxels
    heat[10, 10, 6] += 3.0  # one voxel
    return heat.astype(np.float32)


def test_fixed_thresholds_are_those_of_common(heat):
    ours = masks.VolumeMasksd(threshold=1.0)(heat_case(heat))
    theirs = MapsToMaskd(threshold=1.0)(heat_case(heat))
    assert torch.equal(ours["pred"], theirs["pred"])
    assert int(ours["pred"].sum()) == 49


def test_otsu_is_that_of_the_heat_inside_the_organ():
    heat = np.random.default_rng(0).gamma(2.0, size=(12, 12, 8)).astype(np.float32)
    case = heat_case(heat)
    case["image"][-1, :8] = 0  # outside, where heat counts as the least inside
    result = masks.VolumeMasksd(binarize="otsu")(case)
    expected = threshold_otsu(heat[8:], nbins=256)
    assert float(result["threshold"]) == pytest.approx(expected, rel=0.01)
    assert int(result["pred"].sum()) == int((heat[8:] > float(result["threshold"])).sum())


def test_quantile_marks_its_share_of_the_organ(heat):
    result = masks.VolumeMasksd(binarize="quantile", quantile=0.9)(heat_case(heat))
    assert int(result["pred"].sum()) == pytest.approx(0.1 * heat[1:].size, abs=1)
    assert int(result["pred"][:, 0].sum()) == 0


def test_components_below_the_least_size_are_dropped(heat):
    mask = masks.VolumeMasksd(threshold=1.0, min_component_ml=0.002)(heat_case(heat))["pred"]
    assert int(mask.sum()) == 48
    assert masks.least_voxels(0.5, (1.5, 1.5, 5.0)) == 45


def test_a_quantile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="mask_quantile must lie"):
        masks.VolumeMasksd(binarize="quantile", quantile=2.0)


def engine(batch: dict, output: dict) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(batch=[batch], output=[output]))


def cube(*ranges) -> torch.Tensor:
    mask = torch.zeros(1, 10, 10, 10)
    for start, stop in ranges:
        mask[0, start:stop, start:stop, start:stop] = 1
    return mask


def test_volume_scores_are_those_counted_by_hand(tmp_path):
    handler = scores.VolumeScores(tmp_path)
    handler._start(None)
    # Two lesions, one found, one component too many: tp 1, fp 1, fn 1.
    found = {"pred": cube((0, 2), (8, 10)), "baseline_threshold": cube()}
    handler._score(engine({"case": "a", "label": cube((0, 2), (4, 6))}, found))
    # A healthy volume, wrongly called positive, and one without mask that is rightly called negative.
    handler._score(engine({"case": "b", "label": cube()}, {"pred": cube((1, 2)), "baseline_threshold": cube()}))
    handler._score(engine({"case": "c", "volume_cls": 0}, {"pred": cube(), "baseline_threshold": cube()}))
    # A box: half of what was predicted.
    box = {"case": "d", "volume_cls": 1, "box": torch.tensor([0, 0, 0, 4, 4, 2])}
    handler._score(engine(box, {"pred": cube((0, 4)), "baseline_threshold": cube()}))
    handler._finish(None)
    summary = read_json(tmp_path / "volumes.json")
    assert summary["method"]["f1"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert summary["method"]["dice"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert summary["method"]["max_iou"]["mean"] == pytest.approx(0.5)
    assert summary["method"]["balanced_accuracy"] == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert summary["threshold"]["balanced_accuracy"] == pytest.approx(0.5)
    assert summary["threshold"]["max_iou"]["mean"] == 0.0
    with open(tmp_path / "volumes.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [c for c in "abcd" for _ in range(2)]


def test_volume_label_reaches_the_scores_and_slice_labels_do_not():
    data = [{"case": "a", "cls": 1}, {"case": "b", "cls": [0, 1]}]
    dataset = scores.VolumeDataset(data, lambda case: case)
    assert dataset[0]["volume_cls"] == 1
    assert "volume_cls" not in dataset[1]


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
