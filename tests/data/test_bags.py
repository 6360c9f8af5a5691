from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from common.data import BagSampler, SliceDataset, matched_sampler, slice_sampler


def dataset(*volumes: tuple[int, Any]) -> SliceDataset:
    """Volumes of so many slices, with their labels."""
    cases = [
        {"case": str(i), "image": torch.rand(2, 2, 2, depth) + 1, "cls": c} for i, (depth, c) in enumerate(volumes)
    ]
    return SliceDataset(cases, lambda case: case, progress=False)


def drawn(sampler: Any, size: int) -> np.ndarray:
    """One epoch, `[bags, size]`."""
    torch.manual_seed(0)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return np.array(indices).reshape(-1, size)


def test_bags_are_of_one_volume_and_positives_and_negatives_take_turns():
    data = dataset((12, 1), (9, 0), (12, 1), (16, 0))
    bags = drawn(matched_sampler(data, bag_size=4, batch_size=8), 4)
    numbers = np.array(data.bags)[bags]
    assert (numbers == numbers[:, :1]).all()
    assert (np.array(data.classes)[bags[:, 0]].reshape(-1, 2) == [1, 0]).all()
    assert len(bags) == 2 * 24 // 4  # as many draws as twice the slices of positive volumes


def test_slices_of_a_bag_lie_evenly_over_the_volume_and_all_get_their_turn():
    data = dataset((12, 1), (12, 0))
    bags = drawn(BagSampler(data, bag_size=4, num_samples=800), 4)
    z = np.array([place for _, place in data.where])[bags]
    assert set(np.diff(z, axis=1).flatten()) == {3}
    assert set(z.flatten()) == set(range(12))


def test_a_short_volume_fills_its_bag():
    bags = drawn(BagSampler(dataset((3, 1), (8, 0)), bag_size=8, num_samples=16), 8)
    assert [sorted(set(bag)) for bag in bags] == [[0, 1, 2], list(range(3, 11))]


def test_no_volume_comes_again_before_all_others_of_its_class():
    data = dataset(*[(4, label) for label in (1, 1, 1, 0, 0, 0, 0, 2)])
    numbers = np.array(data.bags)[drawn(BagSampler(data, bag_size=4, num_samples=4 * 24), 4)[:, 0]]
    assert Counter(numbers.tolist()) == {0: 2, 1: 2, 2: 2, 7: 6, 3: 3, 4: 3, 5: 3, 6: 3}  # grades in equal shares


def test_slices_with_labels_of_their_own_come_in_turns_as_long_as_two_bags():
    data = dataset((10, 1), (10, 0), (10, [0] * 5 + [1] * 5))
    turns = drawn(matched_sampler(data, bag_size=5, batch_size=10, num_samples=900), 10)
    alone = np.array([set(np.array(data.bags)[turn]).isdisjoint({0, 1}) for turn in turns])
    assert alone.mean() == pytest.approx(1 / 3, abs=0.01)  # 5 positive slices beside 10 of a positive volume
    own = turns[alone].flatten()
    assert set(own) <= set(range(20, 30))
    assert np.array(data.classes)[own].mean() == pytest.approx(0.5, abs=0.1)
    assert not any(set(np.array(data.bags)[turn]) - {0, 1} for turn in turns[~alone])


def test_a_small_data_set_is_drawn_from_as_often_as_asked():
    volumes, slices = dataset((12, 1), (12, 0)), dataset((10, [0] * 5 + [1] * 5))
    for data in (volumes, slices):
        assert [len(matched_sampler(data, at_least=n, bag_size=4, batch_size=8)) for n in (8, 800)] == [
            len(matched_sampler(data, bag_size=4, batch_size=8)),
            800,
        ]
    for imbalance in ("balanced", "none"):
        drawn_once, often = (drawn(slice_sampler(imbalance, slices, at_least=n), 1)[:, 0] for n in (0, 40))
        assert (len(drawn_once), len(often)) == (10, 40)
    assert Counter(often.tolist()) == dict.fromkeys(range(10), 4)


def test_processes_share_the_draws(monkeypatch):
    monkeypatch.setattr("common.data.bags.get_world_size", lambda: 3)
    assert len(BagSampler(dataset((8, 1), (8, 0)), bag_size=2, num_samples=48)) == 16


def test_batches_that_tear_bags_apart_and_volumes_without_negatives_are_errors():
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of bag_size, .* got 10 and 4"):
        matched_sampler(dataset((8, 1), (8, 0)), bag_size=4, batch_size=10)
    with pytest.raises(ValueError, match="none of the 2 volumes with one label is positive: add volumes with"):
        BagSampler(cast(Any, SimpleNamespace(bags=[0, 0, 1], classes=[0, 0, 0], positions=[0.0, 0.5, 1.0])))
    with pytest.raises(ValueError, match="none of the 2 volumes with one label is negative"):
        matched_sampler(dataset((8, 1), (8, 1)))


class TestDrawsOfUnequalClasses:
    data = dataset((200, [0] * 160 + [1] * 30 + [2] * 10))

    def classes_of(self, imbalance):
        return Counter(np.array(self.data.classes)[drawn(slice_sampler(imbalance, self.data), 1)[:, 0]].tolist())

    def test_balanced_draws_each_class_as_often(self):
        counts = self.classes_of("balanced")
        assert sum(counts.values()) == 200
        assert all(45 <= counts[c] <= 90 for c in (0, 1, 2))

    @pytest.mark.parametrize("imbalance", ["weighted", "focal", "none"])
    def test_the_others_see_every_slice_once(self, imbalance):
        assert self.classes_of(imbalance) == {0: 160, 1: 30, 2: 10}

    def test_matched_is_the_matched_sampler_which_volumes_with_one_label_always_get(self):
        assert drawn(slice_sampler("matched", self.data), 1).tolist() == drawn(matched_sampler(self.data), 1).tolist()
        whole = dataset((8, 1), (8, 0))
        assert isinstance(slice_sampler("none", whole, bag_size=4), BagSampler)

    def test_one_class_alone_cannot_be_balanced(self):
        with pytest.raises(ValueError, match="all 5 are of class 1"):
            slice_sampler("balanced", dataset((5, [1] * 5)))
