from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.conftest import load_script, read_json
from tests.bundles.tonno_mosmed.balls import Bright, ball_case, balls
from tests.running import REPOSITORY

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
        assert row["balanced_accuracy_patients"] is None  # all are ill
    assert table["intensity"]["precision"] == pytest.approx(0.5)  # the bright voxel is a component of its own
    alone = compare.ToNNOInferer(num_slices=20, num_directions=60, size=24, progress=False)
    read = ball_case(balls(1)[0])
    image = read["image"].as_tensor()
    (expected,) = alone.volumes(image, (1.0, 1.0, 1.0), Bright())[0].values()
    torch.testing.assert_close(inferer.volumes(image, (1.0, 1.0, 1.0), Bright())[0]["tonno"], expected)
    assert (tmp_path / "table.csv").exists()
    assert read_json(tmp_path / "calibrated.json")["threshold"] == pytest.approx(table["tonno"]["threshold"], rel=1e-3)
    assert "cam" not in read_json(tmp_path / "calibrated.json")
    assert set(read_json(tmp_path / "table.json")) == names


class Squared(Bright):
    """Its gradient differs from pixel to pixel, so that the kinds of maps do."""

    def forward(self, image):
        return (self.excess(image) ** 2).mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("cam", ["gradcam", "scorecam"])
def test_comparison_takes_every_kind_of_map(cam):
    options = {"num_slices": 8, "num_directions": 10, "size": 24, "progress": False}
    image = ball_case(balls(1)[0])["image"].as_tensor()
    maps = compare.MethodsInferer(layers=(1,), cam=cam, **options).volumes(image, (1.0, 1.0, 1.0), Squared())[0]
    assert "layercam@1" not in maps
    for name, method in {f"{cam}@1": cam, "averaged_cam@1": "averaged_cam"}.items():
        alone = compare.ToNNOInferer(method=method, cam=cam, cam_layer=1, **options)
        (expected,) = alone.volumes(image, (1.0, 1.0, 1.0), Squared())[0].values()
        torch.testing.assert_close(maps[name], expected)


def test_thresholds_by_f1_leave_fewer_false_components_than_those_by_dice(tmp_path):
    options = {"validation": balls(2), "test": balls(1), "output_dir": tmp_path, "progress": False}
    options |= {"method": "averaged_cam", "cam_layer": 1}
    inferer = compare.MethodsInferer(layers=(1,), num_slices=12, num_directions=20, size=24, progress=False)
    rows = {
        score: {row["method"]: row for row in compare.compare(inferer, Bright(), ball_case, score=score, **options)}
        for score in ("dice", "f1")
    }
    assert all(rows["f1"][name]["f1"] >= rows["dice"][name]["f1"] for name in rows["dice"])
    assert any(rows["f1"][name]["f1"] > rows["dice"][name]["f1"] for name in rows["dice"])
    assert read_json(tmp_path / "calibrated.json")["cam"] == "layercam"  # of these maps the threshold is
    with pytest.raises(ValueError, match="score must be one of"):
        compare.compare(inferer, Bright(), ball_case, score="auc", **options)


def test_thresholds_are_chosen_behind_the_filter_of_components_that_scores(tmp_path):
    """The bright voxel beside the cube: without the filter only a threshold above it would be free of it."""
    options = {"validation": balls(2), "test": balls(1), "output_dir": tmp_path, "progress": False}
    inferer = compare.MethodsInferer(layers=(1,), num_slices=4, num_directions=4, size=12, progress=False)
    rows = {ml: compare.compare(inferer, Bright(), ball_case, min_component_ml=ml, **options)[0] for ml in (0.0, 0.002)}
    assert [row["method"] for row in rows.values()] == ["intensity"] * 2
    assert rows[0.002]["validation_dice"] == rows[0.002]["dice"] == 1 > rows[0.0]["validation_dice"]


def test_patients_are_told_apart_by_all_of_their_volumes_and_need_no_mask():
    halves = [("a", 1, True), ("a", 0, False), ("b", 0, True), ("c", 0, False), ("d", 1, False)]
    items = [{"case": {"case": f"{p}{k}", "patient": p, "cls": cls}} for k, (p, cls, _) in enumerate(halves)]
    masks = [np.full((2, 2, 3), marked) for _, _, marked in halves]
    found = compare._accuracies(items, masks, None)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["balanced_accuracy_patients"] == pytest.approx((1 / 2 + 1 / 2) / 2)  # a, but not d; c, but not b
    assert compare._accuracies(items[:1], masks[:1], None)["balanced_accuracy_patients"] is None


def test_healthy_volumes_have_no_dice_and_are_judged_by_what_is_marked_in_them():
    organ = np.ones((10, 10, 4), dtype=bool)
    item = {"organ": organ, "image": np.ones(organ.shape), "spacing": (10.0, 10.0, 10.0)}
    lesion = np.zeros_like(organ)
    lesion[:2, :2] = True
    ill = item | {"case": {"case": "a", "cls": [1] * 4}, "truth": lesion}
    healthy = item | {"case": {"case": "b", "cls": 0}, "truth": np.zeros_like(organ)}
    unknown = item | {"case": {"case": "c", "cls": 0}, "truth": None}
    nothing, everything = np.zeros_like(organ), organ
    assert compare._scores(ill, nothing, None)["dice"] == 0
    assert "negatives_empty" not in compare._scores(ill, nothing, None)
    for negative in (healthy, unknown):
        scores = compare._scores(negative, nothing, {"intensity": 1.3})
        assert not {"dice", "dice_refined"} & scores.keys()
        assert (scores["negatives_empty"], scores["ml_in_negatives"]) == (1, 0)
        scores = compare._scores(negative, everything, None)
        assert (scores["negatives_empty"], scores["ml_in_negatives"]) == (0, pytest.approx(400))


def test_table_says_of_how_many_cases_dice_is(tmp_path):
    """Of two test cases one is healthy: a mask that finds the other has a Dice of 1, not the mean with an empty one."""

    def preprocessing(case):
        read = ball_case(case)
        if case.get("healthy"):
            read["image"][0] = read["image"][1]
            read["label"][:] = 0
        return read

    healthy = balls(1, first=1)[0] | {"healthy": True, "cls": [0] * 14}
    inferer = compare.MethodsInferer(layers=(1,), num_slices=4, num_directions=4, size=12, progress=False)
    options = {"validation": balls(1), "test": [balls(1)[0], healthy], "output_dir": tmp_path, "progress": False}
    row = compare.compare(inferer, Bright(), preprocessing, min_component_ml=0.002, **options)[0]
    assert (row["method"], row["with_lesion"], row["dice"], row["negatives_empty"]) == ("intensity", 1, 1, 1)
    assert read_json(tmp_path / "table.json")["intensity"]["dice"]["count"] == 1


def test_stacks_of_the_balanced_accuracy_are_as_long_as_max_slices_says():
    mask = np.zeros((2, 2, 8), dtype=bool)
    mask[..., 4] = True
    item = {"case": {"case": "a", "cls": [0, 0, 0, 0, 1, 1, 1, 1]}}
    for longest, expected in ((None, 1.0), (4, 1.0), (2, (1 + 1 / 2) / 2)):
        assert compare._accuracies([item], [mask], longest)["balanced_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(("last", "longest"), [(None, 8), ("phantom.json", 6), ("paper.json", None)])
def test_the_configs_say_how_long_stacks_are(last, longest):
    names = ["inference.json", "evaluate.json", "compare.json", *([last] if last else [])]
    parser = ConfigParser()
    parser.read_config([REPOSITORY / "bundles" / "tonno_mosmed" / "configs" / name for name in names])
    assert parser.get_parsed_content("comparison::max_slices") == longest


def test_without_a_lesion_to_choose_thresholds_with_there_is_no_comparison(tmp_path):
    inferer = compare.MethodsInferer(layers=(1,), num_slices=4, num_directions=4, size=12, progress=False)
    options = {"test": balls(1), "output_dir": tmp_path, "progress": False}
    unmasked = {key: value for key, value in balls(1)[0].items() if key != "label"}
    with pytest.raises(ValueError, match="no validation case has a mask to choose"):
        compare.compare(inferer, Bright(), ball_case, validation=[unmasked], **options)

    def healthy(case):
        read = ball_case(case)
        return read | {"label": read["label"] * 0}

    with pytest.raises(ValueError, match="no validation case has a mask of a lesion"):
        compare.compare(inferer, Bright(), healthy, validation=balls(1), **options)


def test_intervals_draw_patients_with_all_of_their_scans():
    scored = [{"dice": 0.2, "f1": 0.5}, {"dice": 0.2}, {"dice": 0.2}, {"dice": 0.8}, {"dice": 0.8}, {"f1": 0.5}]
    found = compare._means(scored, list("aaabbc"))
    assert (found["dice"]["count"], found["f1"]["count"]) == (5, 2)
    assert found["dice"]["mean"] == pytest.approx(0.44)
    assert (found["dice"]["low"], found["dice"]["high"]) == pytest.approx((0.2, 0.8))  # either may be drawn twice


def test_of_thresholds_that_score_alike_the_lowest_is_taken():
    truth = np.zeros((6, 6, 2), dtype=bool)
    truth[:2] = True
    item = {"organ": np.ones_like(truth), "truth": truth, "spacing": (1.0, 1.0, 1.0)}
    item["maps"] = {"tonno": truth.astype(np.float32)}
    assert compare._best_threshold([item], "tonno", "dice", 0.0) == (0.0, 1.0)
