from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.checkpoint import load_weights, save_weights
from common.encoders import EfficientNetLite
from tests.bundles.insight_ct.toy import networks, small

MARK, OTHER = "ab" * 32, "cd" * 32


class Encoder(nn.Module):
    """What `Insight` asks of an encoder."""

    def __init__(self, fingerprint=MARK, channels=6):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel_size=4, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.channels, self.fingerprint = channels, fingerprint

    def forward(self, image):
        return self.norm(self.conv(image))


class LiteEncoder(nn.Module):
    """EfficientNet-Lite with random weights and its last feature map."""

    def __init__(self):
        super().__init__()
        self.net = EfficientNetLite(None)
        self.channels, self.fingerprint = 112, MARK

    def forward(self, image):
        return self.net(image.expand(-1, 3, -1, -1))[-1]


def test_insight_is_the_heads_map_of_the_encoders_features():
    net, image = networks.Insight(Encoder(), small()), torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(net(image), net.head.heatmap(net.encoder(image)))


def test_encoder_stays_frozen_and_in_evaluation_mode():
    net = networks.Insight(Encoder(), small()).train()
    before = copy.deepcopy(net.encoder.state_dict())
    net(torch.rand(3, 1, 28, 28)).sum().backward()
    assert net.head.training
    assert not net.encoder.training
    assert all(not p.requires_grad and p.grad is None for p in net.encoder.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.encoder.state_dict().items())  # running statistics too
    assert net.head.adapt[0].weight.grad.abs().sum() > 0


def test_state_dict_holds_the_head_only_and_loads_strictly(tmp_path):
    net = networks.Insight(Encoder(), small())
    assert set(net.state_dict()) == {f"head.{k}" for k in net.head.state_dict()} | {"encoder_fingerprint"}
    save_weights(net, tmp_path / "model.pt")
    other = networks.Insight(Encoder(), small(seed=3))
    own_encoder = copy.deepcopy(other.encoder.state_dict())
    load_weights(other, tmp_path / "model.pt")
    torch.testing.assert_close(other.head.state_dict(), net.head.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(other.encoder.state_dict(), own_encoder, atol=0, rtol=0)


def test_loading_leaves_the_given_state_as_it_is_and_still_misses_what_is_missing():
    net = networks.Insight(Encoder(), small())
    state = net.state_dict()
    keys = list(state)
    net.load_state_dict(state)
    assert list(state) == keys
    for key in ("head.adapt.0.bias", "encoder_fingerprint"):
        with pytest.raises(RuntimeError, match=key):
            net.load_state_dict({k: v for k, v in state.items() if k != key})
    with pytest.raises(RuntimeError, match="stranger"):
        net.load_state_dict(state | {"stranger": torch.zeros(1)})


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrap", [lambda net: net, AveragedModel], ids=["plain", "averaged"])
def test_weights_of_another_encoder_are_refused(strict, wrap):
    wrapped = [wrap(networks.Insight(Encoder(mark), small())) for mark in (MARK, OTHER)]
    with pytest.raises(ValueError, match=r"another encoder \(fingerprint cdcdcdcdcdcdcdcd…, this one is abababab"):
        wrapped[0].load_state_dict(wrapped[1].state_dict(), strict=strict)


def test_copies_and_averages_work_and_leave_the_encoder_out():
    net = networks.Insight(Encoder(), small())
    average = AveragedModel(net)
    average.update_parameters(net)
    assert not any("encoder." in key for key in average.state_dict())
    average.load_state_dict(average.state_dict())
    image = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(average(image), net(image))
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.head.adapt[0].weight.zero_()
    assert "encoder.conv.weight" not in copied.state_dict()
    assert net.head.adapt[0].weight.abs().sum() > 0


def test_torchscript_compiles_it_with_efficientnet_and_agrees(tmp_path):
    net = networks.Insight(LiteEncoder(), networks.InsightHead(112, width=16)).eval()
    image = torch.rand(2, 1, 32, 32)
    torch.jit.script(net).save(tmp_path / "net.ts")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.ts")(image), net(image))


def test_a_head_for_another_encoder_is_refused():
    with pytest.raises(ValueError, match=r"the encoder gives 6 channels and the head expects 8"):
        networks.Insight(Encoder(), networks.InsightHead(8))
