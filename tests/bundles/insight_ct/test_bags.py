from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ConcatItemsd, EnsureChannelFirstd, LoadImaged

from common.encoders import Encoder
from common.features import FeatureStore
from tests.bundles.conftest import load_script

bags = load_script("insight_ct", "bags")
heads = load_script("insight_ct", "heads")

KEYS = ("image", "organ")
CLASSES = ("none", "infection")
ORGAN = [2, 3, 4, 6, 7, 8]  # of ten slices
CLS = [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


def preprocessing() -> Compose:
    return Compose(
        [
            LoadImaged(keys=KEYS, reader="NumpyReader"),
            EnsureChannelFirstd(keys=KEYS, channel_dim="no_channel"),
            ConcatItemsd(keys=KEYS, name="image"),
        ]
    )


def encoder() -> Encoder:
    """Features are the mean brightness of 4 × 4 pixels."""
    return Encoder(torch.nn.AvgPool2d(4), name="mean", channels=3, stride=4)


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def case(tmp_path) -> dict:
    """A volume whose slice z has the brightness z / 16."""
    image = np.broadcast_to(np.arange(10, dtype=np.float32) / 16, (8, 12, 10))
    organ = np.zeros_like(image)
    organ[..., ORGAN] = 1
    for key, array in zip(KEYS, (image, organ), strict=True):
        np.save(tmp_path / f"{key}.npy", array)
    paths = {key: str(tmp_path / f"{key}.npy") for key in KEYS}
    return {"case": "a", "patient": "a", "cls": CLS, **paths}


def volume_bags(case, store, **options) -> list[dict]:
    return bags.volume_bags([case], preprocessing(), encoder(), store, classes=CLASSES, progress=False, **options)


def slices_of(item) -> list[int]:
    """Which slices of the volume an item of the dataset holds, told by their brightness."""
    return (item[0][:, 0, 0, 0] * 16).round().int().tolist()


class TestVolumeBags:
    @pytest.mark.parametrize("limits", [{}, {"min_slices": 2}, {"max_slices": 1}])
    def test_a_bags_slices_are_those_of_its_label_although_slices_without_organ_are_missing(self, case, store, limits):
        found = volume_bags(case, store, **limits)
        dataset = bags.BagDataset(found, store, fixed=True)
        seen = []
        for bag, item in zip(found, dataset, strict=True):
            assert {CLS[z] for z in slices_of(item)} == set(bag["labels"])
            assert item[2].tolist() == bag["labels"]
            assert item[1].shape == (len(item[0]), 1, 2, 3)
            seen += slices_of(item)
        assert seen == ORGAN
        assert {bag["patient"] for bag in found} == {"a"}
        assert len({bag["key"] for bag in found}) == 1

    def test_short_runs_are_left_out_and_long_ones_cut(self, case, store):
        case["cls"] = [1 if z == 4 else 0 for z in range(10)]
        assert [bag["slices"] for bag in volume_bags(case, store, min_slices=2)] == [(0, 2), (3, 6)]
        assert [bag["slices"] for bag in volume_bags(case, store, max_slices=2)] == [(0, 2), (2, 3), (3, 4), (4, 6)]

    @pytest.mark.parametrize(("cls", "labels"), [(1, [1]), (0, [0]), (["infection"], [1]), ([], [0])])
    def test_a_label_of_the_whole_volume_makes_one_bag_of_it(self, case, store, cls, labels):
        (bag,) = volume_bags(case | {"cls": cls}, store)
        assert bag["labels"] == labels
        assert slices_of(bags.BagDataset([bag], store, fixed=True)[0]) == ORGAN

    def test_labels_that_do_not_fit_the_volume_are_refused(self, case, store):
        with pytest.raises(ValueError, match="'a' has 9 labels in `cls` for 10 slices"):
            volume_bags(case | {"cls": CLS[:9]}, store)
        del case["cls"]
        with pytest.raises(ValueError, match="'a' has no `cls` in the datalist"):
            volume_bags(case, store)


@pytest.fixture
def entry(store) -> str:
    """Key of eleven tiles on a grid of 2 × 3; what is inside is what is bright in the first channel."""
    tiles = (torch.rand(11, 1, 8, 12, generator=torch.Generator().manual_seed(0)) * 16).round() / 16
    inside = encoder()(tiles)[:, :1]
    store.compute("ab" + 62 * "0", tiles, encoder(), inside=inside, chunk=4)
    return "ab" + 62 * "0"


def bag(key: str, *, first: int = 3, stop: int = 9, **more) -> dict:
    return {"case": "a", "patient": "a", "key": key, "labels": [1], "slices": (first, stop), **more}


class TestBagDataset:
    def test_a_stack_lies_inside_its_bag_at_a_random_place(self, store, entry):
        torch.manual_seed(0)
        dataset = bags.BagDataset([bag(entry)], store, stack=2, flip=False)
        whole = store.open(entry)[:]
        places = set()
        for _ in range(60):
            features, inside, _ = dataset[0]
            (place,) = [z for z in range(10) if torch.equal(whole[z : z + 2], features)]
            torch.testing.assert_close(inside, features[:, :1], atol=1e-3, rtol=0)
            places.add(place)
        assert places == {3, 4, 5, 6, 7}

    def test_a_stack_longer_than_the_bag_is_the_bag(self, store, entry):
        features, *_ = bags.BagDataset([bag(entry)], store, stack=100, flip=False)[0]
        assert torch.equal(features, store.open(entry)[3:9])

    def test_flips_mirror_features_and_organ_together_along_each_axis(self, store, entry):
        torch.manual_seed(0)
        dataset = bags.BagDataset([bag(entry)], store)
        whole = store.open(entry)[3:9]
        mirrored = {axes: whole.flip(axes) for axes in ((), (2,), (3,), (2, 3))}
        seen = set()
        for _ in range(40):
            features, inside, _ = dataset[0]
            seen |= {axes for axes, expected in mirrored.items() if torch.equal(features, expected)}
            torch.testing.assert_close(inside, features[:, :1], atol=1e-3, rtol=0)
        assert seen == set(mirrored)

    def test_fixed_is_the_whole_bag_as_it_is(self, store, entry):
        dataset = bags.BagDataset([bag(entry)], store, stack=2, flip=True, fixed=True)
        for _ in range(8):
            assert torch.equal(dataset[0][0], store.open(entry)[3:9])

    def test_features_in_memory_are_those_on_the_disk(self, store, entry):
        held, read = (bags.BagDataset([bag(entry)], store, fixed=True, in_memory=m)[0] for m in (True, False))
        assert all(torch.equal(a, b) for a, b in zip(held, read, strict=True))
        assert held[0].dtype == torch.float32

    def test_labels_of_all_bags_in_their_order(self, store, entry):
        dataset = bags.BagDataset([bag(entry), bag(entry, labels=[0])], store)
        assert dataset.labels.tolist() == [[1.0], [0.0]]
        assert len(dataset) == 2

    def test_no_bag_is_an_error(self, store):
        with pytest.raises(RuntimeError, match="no bag to learn from"):
            bags.BagDataset([], store)


def shares(cases: list[dict], **options) -> list[float]:
    """Probability that each bag is drawn."""
    weights = bags.balanced_sampler(SimpleNamespace(data=cases), **options).weights
    return (weights / weights.sum()).tolist()


def part(patient: str, positive: int, side: str = "left") -> dict:
    return {"case": patient, "patient": patient, "labels": [positive], "side": side}


class TestBalancedSampler:
    def test_strata_and_patients_are_balanced(self):
        cases = [part("a", 1), part("a", 1), part("b", 1), part("a", 0), part("c", 0, "right")]
        assert shares(cases) == pytest.approx([0.125, 0.125, 0.25, 0.25, 0.25])
        assert shares(cases, stratify_by=["side"]) == pytest.approx([0.125, 0.125, 0.25, 0.5, 0.0])

    def test_any_label_makes_a_bag_positive(self):
        cases = [part("a", 0) | {"labels": labels} for labels in ([0, 1], [0, 0], [1, 0])]
        assert shares(cases) == pytest.approx([0.25, 0.5, 0.25])

    def test_an_epoch_has_twice_the_rarer_class_or_what_is_asked_for(self):
        cases = [part(p, 1) for p in "abc"] + [part(p, 0) for p in "de"]
        assert len(bags.balanced_sampler(SimpleNamespace(data=cases))) == 4
        assert len(list(bags.balanced_sampler(SimpleNamespace(data=cases), num_samples=9))) == 9


def batch() -> list:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 6, 2, 3, generator=generator) for n in (6, 4)]
    return [(features[0], torch.ones(6, 1, 2, 3), torch.tensor([1.0])), (features[1], None, torch.tensor([0.0]))]


def test_a_batch_keeps_its_bags_and_stacks_their_labels():
    given = bags.as_list(batch())
    moved, labels = bags.prepare_batch(given, torch.device("cpu"))
    assert labels.tolist() == [[1.0], [0.0]]
    assert [len(features) for features, *_ in moved] == [6, 4]
    assert moved[1][1] is None
    assert all(torch.equal(a[0], b[0]) for a, b in zip(moved, given, strict=True))


def test_inferer_gives_each_bags_probability_and_the_penalty_of_its_labels():
    torch.manual_seed(0)
    head = heads.CLAM_SB(6, 1, width=12, hidden=6, k=2).eval()
    given = batch()
    probability, penalty = bags.BagInferer()(given, head)
    assert probability.shape == (2, 1)
    for n, one in enumerate(given):
        _, expected, expected_penalty = head(*one)
        torch.testing.assert_close(probability[n], expected)
        torch.testing.assert_close(penalty[n], expected_penalty)
    assert (penalty > 0).all()  # without labels CLAM has none
    torch.testing.assert_close(bags.BagInferer(probability_only=True)(given, head), probability)
