from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.metrics import dice, pooled_miou
from tests.bundles.conftest import load_script
from tests.pipeline import run_handler

combine = load_script("ensemble_gradcam_brats", "combine").combine
search = load_script("ensemble_gradcam_brats", "search")


@pytest.fixture
def maps() -> np.ndarray:
    """Three members' maps on a small volume, with ties: values are multiples of 0.05."""
    return np.random.default_rng(0).integers(0, 21, (3, 6, 5, 4)).astype(np.float32) / 20


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(2).random((6, 5, 4)) > 0.7


@pytest.mark.parametrize("how", ["or", "and", "min", "max"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_grid_counts_are_those_of_every_mask_built_one_by_one(maps, truth, how, members):
    levels = [0.0, 0.25, 0.5, 0.9]
    gated = np.array([True, False, True, True])
    counts = search.grid_counts(maps[:members], truth, how=how, levels=levels, gated=gated)
    assert counts["predicted"].shape == (4,) * members
    for index in np.ndindex(*counts["predicted"].shape):
        mask = (combine(maps[:members], [levels[i] for i in index], how) > 0) & gated
        assert counts["predicted"][index] == mask.sum(), index
        assert counts["hits"][index] == (mask & truth).sum(), index
    assert (counts["truth"], counts["size"]) == (truth.sum(), truth.size)


def test_members_of_one_backbone_have_names_of_their_own():
    assert search.distinct(["resnet50", "resnet34", "resnet50", "resnet50"]) == [
        "resnet50",
        "resnet34",
        "resnet50_2",
        "resnet50_3",
    ]


@pytest.mark.parametrize("how", ["mean", "product"])
def test_grid_of_soft_maps_has_one_axis(maps, truth, how):
    counts = search.grid_counts(maps, truth, how=how, levels=[0.1, 0.5])
    for k, level in enumerate([0.1, 0.5]):
        mask = combine(maps, [level], how) > 0
        assert (counts["predicted"][k], counts["hits"][k]) == (mask.sum(), (mask & truth).sum())


def test_scores_are_mean_dice_and_pooled_miou(maps, truth):
    volumes = [maps[:2], np.flip(maps[:2], 1)]
    counts = [search.grid_counts(v, truth, how="and") for v in volumes]
    found = [(combine(v, [0.3, 0.6], "and") > 0) for v in volumes]
    assert search.grid_scores(counts, "dice")[3, 6] == pytest.approx(np.mean([dice(m, truth) for m in found]))
    assert search.grid_scores(counts, "miou")[3, 6] == pytest.approx(pooled_miou(found, [truth, truth]))
    healthy = search.grid_counts(maps[:2], np.zeros_like(truth), how="and")
    assert search.grid_scores([*counts, healthy], "dice")[3, 6] == search.grid_scores(counts, "dice")[3, 6]
    with pytest.raises(ValueError, match="no case has a mask of a lesion"):
        search.grid_scores([healthy], "dice")
    with pytest.raises(ValueError, match="'dice' or 'miou'"):
        search.grid_scores(counts, "iou")


def test_ties_go_to_the_lowest_thresholds():
    scores = np.zeros((11, 11))
    scores[4, 7] = scores[2, 9] = scores[2, 3] = 0.5
    assert search.best_thresholds(scores)[0] == [0.2, 0.3]


def test_candidates_are_each_member_and_each_combination_of_each_subset():
    found = search.candidates(3)
    assert len(found) == 3 + 4 * 6
    assert {"use": [0, 2], "how": "product"} in found


def found_on(name: str, lesion: float, around: float) -> tuple[dict, dict]:
    """A case in whose map of the one member the lesion and what is around it have these values."""
    truth = np.zeros((1, 6, 5, 4), np.float32)
    truth[0, 2:4, 1:4, 1:3] = 1
    heat = np.where(truth > 0, lesion, around)
    heat[0, 0, 0] = 1.0  # each slice is divided by its largest value
    pred = np.concatenate([heat, np.zeros_like(heat), np.ones_like(heat)])
    image = MetaTensor(np.ones((2, *truth.shape[1:]), np.float32))
    return {"case": name, "image": image, "label": MetaTensor(truth)}, {"pred": torch.as_tensor(pred)}


def run_search(folder: Path, *items: tuple[dict, dict]) -> dict:
    handler = search.EnsembleSearch(folder, names=["one"], fit_cases=["a", "b"], levels=[0.2, 0.4, 0.6])
    run_handler(handler, list(items))
    return json.loads((folder / "calibrated.json").read_text())


def test_thresholds_are_fitted_on_the_named_cases_and_scored_on_the_others(tmp_path):
    found = run_search(tmp_path, found_on("a", 0.5, 0.3), found_on("c", 0.3, 0.1), found_on("b", 0.5, 0.3))
    assert found["thresholds"] == [0.4]  # 0.2 would be the best of the others
    with open(tmp_path / "search.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["training_dice"]) == pytest.approx(2 * 12 / (12 + 12 + 4), abs=1e-4)
    assert float(row["validation_dice"]) == 0.0


def test_within_the_organ_slices_beyond_it_are_not_counted(tmp_path):
    """Where a paper cuts scans, what it cuts off is neither background nor missed tumor."""
    items = [found_on(name, 0.5, 0.3) for name in "ac"]
    for batch, _ in items:
        batch["image"][1, ..., [0, 2]] = 0
    reached = []
    for within in ("scan", "organ"):
        options = {"fit_cases": ["a"], "levels": [0.4], "objective": "miou", "within": within}
        run_handler(search.EnsembleSearch(tmp_path / within, names=["one"], **options), items)
        with open(tmp_path / within / "search.csv", encoding="utf-8", newline="") as file:
            reached.append(float(next(csv.DictReader(file))["training_miou"]))
    assert reached[1] == pytest.approx(
        (6 / 8 + 52 / 54) / 2, abs=1e-4
    )  # of 60 pixels, 6 true and 2 false ones are marked
    assert reached[0] < reached[1]


@pytest.mark.parametrize("name", ["a", "c"])
def test_a_search_needs_cases_of_both_sections(tmp_path, name):
    with pytest.raises(RuntimeError, match="both the training and the validation section"):
        run_search(tmp_path, found_on(name, 0.5, 0.3))


class Watched(np.ndarray):
    """Notes the size of every array operation on it."""

    work = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        Watched.work += self.size
        return getattr(ufunc, method)(*(np.asarray(i) for i in inputs), **options)


@pytest.mark.parametrize("how", ["or", "and", "min", "max"])
def test_work_on_the_voxels_does_not_grow_with_the_number_of_tuples(monkeypatch, how):
    generator = np.random.default_rng(0)
    volume = generator.random((2, 16, 16, 5), dtype=np.float32)
    truth = generator.random((16, 16, 5)) > 0.9
    bincount = np.bincount

    def counted(index: np.ndarray, **options: int) -> np.ndarray:
        Watched.work += index.size
        return bincount(index, **options)

    monkeypatch.setattr(np, "bincount", counted)
    work = []
    for levels in ([0.0, 0.5], search.LEVELS):  # 4 and 121 tuples
        Watched.work = 0
        search.grid_counts(volume.view(Watched), truth, how=how, levels=levels)
        work.append(Watched.work)
    assert 0 < work[0] == work[1] <= 4 * volume.size


def test_of_several_candidates_that_is_chosen_which_is_best_on_the_cases_not_fitted_on(tmp_path):
    """The first member tells the lesion from what is around it on the one kind of cases, the second on the other."""
    items = []
    for name, maps in (("a", (0.5, 0.1, 0.5, 0.5)), ("c", (0.5, 0.5, 0.5, 0.1))):
        first, second = found_on(name, *maps[:2]), found_on(name, *maps[2:])
        items.append((first[0], {"pred": torch.cat([first[1]["pred"][:1], second[1]["pred"]])}))
    handler = search.EnsembleSearch(tmp_path, names=["one", "two"], fit_cases=["a"], levels=[0.2, 0.4])
    run_handler(handler, items)
    with open(tmp_path / "search.csv", encoding="utf-8", newline="") as file:
        rows = {(row["members"], row["how"]): row for row in csv.DictReader(file)}
    fitted, unseen = (
        {key: float(row[f"{section}_dice"]) for key, row in rows.items()} for section in ("training", "validation")
    )
    assert fitted["one", ""] > fitted["two", ""]
    assert unseen["two", ""] > unseen["one", ""]
    chosen = json.loads((tmp_path / "calibrated.json").read_text())
    names = "+".join(["one", "two"][i] for i in chosen["use"])
    assert unseen[names, chosen["combine"] if len(chosen["use"]) > 1 else ""] == max(unseen.values())
    assert max(unseen.values()) > min(unseen.values())
