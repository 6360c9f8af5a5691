"""The second stage that draws: its network, loss and draws of slices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from common.cam.slices import SliceLogit
from tests.bundles.conftest import load_script, read_json
from tests.running import REPOSITORY

drawing = load_script("insight_ct", "drawing")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return drawing.DrawnInsight(evidence_pixels=20).eval()


def image(count=2, size=(64, 96)):
    values = torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(1)) * 3
    organ = torch.zeros_like(values)
    organ[:, :, 8:40, 16:80] = 1
    return torch.cat([values * organ, organ], dim=1)


@torch.no_grad()
def test_the_heat_is_that_of_the_image_inside_the_organ_and_none_outside(network):
    seen = image()
    maps, logits = network.explain(seen)
    assert maps.shape == (2, 2, 64, 96)
    assert logits.shape == (2, 2)
    inside = seen[:, 1] > 0.5
    heat = network(seen[:, :1])
    assert heat.shape == (2, 1, 64, 96)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert torch.equal(maps[:, 1][inside], heat[:, 0][inside])
    assert not maps[:, 0].any()
    assert not maps[:, 1][~inside].any()


@torch.no_grad()
def test_a_slices_probability_is_the_mean_of_its_highest_pixels_inside_the_organ(network):
    seen = image()
    maps, logits = network.explain(seen)
    for heat, logit in zip(maps[:, 1], logits, strict=True):
        highest = heat.flatten().sort().values[-20:].mean()
        torch.testing.assert_close(logit.softmax(0)[1], highest)
    empty = torch.cat([seen[:1, :1], torch.zeros_like(seen[:1, :1])], dim=1)
    assert network.explain(empty)[1].softmax(1)[0, 1] < 1e-5
    of_all = drawing.DrawnInsight(evidence_pixels=10**6).eval().explain(seen)  # a slice may have fewer
    torch.testing.assert_close(of_all[1].softmax(1)[:, 1], of_all[0][:, 1].mean(dim=(1, 2)))


@torch.no_grad()
def test_compiled_it_does_the_same(network):
    compiled = torch.jit.script(network)
    seen = image()
    torch.testing.assert_close(compiled(seen[:, :1]), network(seen[:, :1]))
    for got, expected in zip(compiled.explain(seen), network.explain(seen), strict=True):
        torch.testing.assert_close(got, expected)


def test_training_and_validation_see_the_image_without_the_organ_and_the_whole(network):
    seen = image()
    with torch.no_grad():
        torch.testing.assert_close(drawing.Drawing(network)(seen).sigmoid(), network(seen[:, :1]))
        torch.testing.assert_close(drawing.Evidence(network)(seen), network.explain(seen)[1])


def test_slices_are_drawn_from_patients_in_equal_shares_and_from_both_labels_alike():
    patients = ["a", "a", "b", "c"]
    where = [(0, z) for z in range(6)] + [(1, 0)] + [(2, 0), (2, 1)] + [(3, 0)]
    classes = [1] * 6 + [0] + [1, 1] + [0]

    class Slices(SimpleNamespace):
        def __len__(self):
            return len(self.where)

    dataset = Slices(data=[{"patient": p} for p in patients], where=where, classes=classes)
    torch.manual_seed(0)
    drawn = torch.tensor(list(drawing.balanced_slices(dataset, num_samples=4000)))
    share = [(sum(drawn == i).item()) / 4000 for i in range(len(where))]
    assert sum(share[:6]) == pytest.approx(0.25, abs=0.03)  # ill: half of the draws, and of them half of each patient
    assert sum(share[7:9]) == pytest.approx(0.25, abs=0.03)
    assert (share[6], share[9]) == (pytest.approx(0.25, abs=0.03), pytest.approx(0.25, abs=0.03))


def test_training_and_inference_have_the_same_network():
    configs = REPOSITORY / "bundles/insight_ct/configs"
    inferred = {k: v for k, v in read_json(configs / "inference.json")["drawn"].items() if k != "_disabled_"}
    assert read_json(configs / "train_draw.json")["network_def"] == inferred | {"weights": "imagenet"}


def test_explanations_are_of_the_logit_that_inference_decides_by(network):
    seen = image()
    score = SliceLogit(network).at(seen[:1, 1:])
    logits = network.explain(seen[:1])[1]
    torch.testing.assert_close(score(seen[:1, :1]), logits[:, 1:] - logits[:, :1])
