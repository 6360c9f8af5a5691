from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.toy import networks

scaling, heads = load_script("insight_ct", "scaling"), load_script("insight_ct", "heads")


class FakeEntry:
    """Three tiles of cells that are of another scale in each channel; half of each tile is outside, and wild."""

    def __init__(self, seed: int) -> None:
        cells = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.features = cells * torch.tensor([100.0, 0.1])[:, None, None] + torch.tensor([7.0, -30.0])[:, None, None]
        self.inside = torch.ones(3, 1, 4, 4)
        self.inside[..., 2:] = 0
        self.features[..., 2:] = 1e4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.features[index]


class FakeBags:
    """Two bags of an entry each."""

    entries = (FakeEntry(0), FakeEntry(1))

    def __len__(self) -> int:
        return 2

    def window(self, bag: int) -> tuple[int, int]:
        return 0, 3


def fitted(head: torch.nn.Module) -> torch.nn.Module:
    """The head, after the training has begun."""
    trainer = Engine(lambda engine, batch: None)
    scaling.FitScale(head, FakeBags()).attach(trainer)
    trainer.run([0], max_epochs=1)
    return head


@pytest.mark.parametrize("name", ["insight", "abmil"])
def test_cells_inside_have_mean_0_and_spread_1_in_every_channel_once_training_has_begun(name):
    head = fitted(heads.make_head(name, in_channels=2, num_labels=1, standardize=True))
    cells = torch.cat([entry.features[..., :2] for entry in FakeBags().entries])
    scaled = head.scale(cells).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(scaled.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_heat_does_not_depend_on_the_scale_of_the_features():
    torch.manual_seed(0)
    head = heads.make_head("insight", in_channels=2, num_labels=1, width=8, standardize=True)
    raw = FakeBags().entries[0].features[..., :2]
    plain = head.heatmap((raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), keepdim=True, correction=0))
    head.scale.fit(raw.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(head.heatmap(raw), plain, atol=1e-4, rtol=1e-4)


def test_a_constant_channel_stays_finite():
    scale = scaling.FeatureScale(2)
    scale.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert scale(torch.full((1, 2, 1, 1), 5.0)).flatten().tolist() == [3.0, 0.0]


def test_without_the_option_weights_are_those_of_before():
    head = networks.InsightHead(4, width=4)
    assert not any(key.startswith("scale") for key in head.state_dict())
    fitted(head)
