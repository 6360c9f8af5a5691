from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn

from common.engines import SliceMapInferer


class SmallNet(nn.Module):
    """Two 3×3 convolutions, class maps and their maxima inside the organ; notes every batch that it sees."""

    num_classes = 3

    def __init__(self, channels: int = 1, organ_channel: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.organ_channel = organ_channel
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, self.num_classes, 3, padding=1)
        )
        self.seen: list[tuple[int, ...]] = []

    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(tuple(image.shape))
        organ = image[:, -1:] > 0.5 if self.organ_channel else torch.ones_like(image[:, :1], dtype=torch.bool)
        maps = self.layers(image[:, :-1] if self.organ_channel else image)
        return maps, maps.masked_fill(~organ, -torch.inf).amax(dim=(2, 3))


@pytest.fixture
def volume() -> Tensor:
    """`[1, 2, 37, 43, 7]`: an organ that moves from slice to slice, absent from slices 0 and 4."""
    torch.manual_seed(1)
    organ = torch.zeros(37, 43, 7)
    for z in (1, 2, 3, 5, 6):
        organ[11 + z : 20 + z, 13 : 25 + z, z] = 1
    return torch.stack([torch.rand(37, 43, 7), organ])[None]


@torch.no_grad()
def one_by_one(volume: Tensor, network: SmallNet) -> tuple[Tensor, Tensor]:
    """Maps `[C, H, W, D]` and probabilities `[C, D]` of whole slices, each by itself."""
    results = [network.explain(volume[0, ..., z][None]) for z in range(volume.shape[-1])]
    return torch.stack([m[0] for m, _ in results], -1), torch.stack([p[0].softmax(0) for _, p in results], -1)


@torch.no_grad()
def infer(volume: Tensor, network: Any, **options: Any) -> Tensor:
    return SliceMapInferer(**options)(volume, network)


def test_equals_the_network_slice_by_slice_where_the_crop_reaches(volume):
    maps, probability = one_by_one(volume, SmallNet())
    out = infer(volume, SmallNet(), margin=8)[0]
    # The organ's extent is 12…25 and 13…30; beyond two pixels from the crop's border the borders cannot be felt.
    inside = (slice(None), slice(6, 32), slice(7, 37), [1, 2, 3, 5, 6])
    torch.testing.assert_close(out[:3][inside], maps[inside], atol=1e-5, rtol=0)
    expected = probability[:, None, None].expand(3, 37, 43, 7)[..., [1, 2, 3, 5, 6]]
    torch.testing.assert_close(out[3:][..., [1, 2, 3, 5, 6]], expected, atol=1e-5, rtol=0)


def test_batch_size_does_not_matter(volume):
    expected = infer(volume, SmallNet(), batch_size=1)
    for batch_size in (2, 3, 100):
        torch.testing.assert_close(infer(volume, SmallNet(), batch_size=batch_size), expected, atol=1e-5, rtol=0)


def test_only_slices_with_organ_are_computed_cropped_to_it(volume):
    network = SmallNet()
    infer(volume, network, batch_size=2, margin=3, divisor=4)
    assert [shape[0] for shape in network.seen] == [2, 2, 1]
    assert {shape[2:] for shape in network.seen} == {(20, 24)}  # 14 + 6 and 18 + 6 pixels


def test_slices_without_organ_are_certainly_class_0_and_have_no_evidence(volume):
    out = infer(volume, SmallNet())[0][..., [0, 4]]
    assert (out[:3] == 0).all()
    assert (out[3] == 1).all()
    assert (out[4:] == 0).all()


def test_a_slice_of_one_value_shows_nothing_even_where_everything_is_organ(volume):
    volume[:, 1] = 1
    volume[..., 2] = volume[:, :, :1, :1, 2]
    out = infer(volume, SmallNet())[0]
    assert (out[:3, ..., 2] == 0).all()
    assert (out[3, ..., 2] == 1).all()
    assert (out[3] == 1).flatten(0, 1).all(dim=0).sum() == 1


def test_a_volume_without_organ_needs_no_network(volume):
    volume[:, 1] = 0
    network = SmallNet()
    out = infer(volume, network)
    assert out.shape == (1, 6, 37, 43, 7)
    assert network.seen == []
    assert (out[:, 3] == 1).all()


def test_probabilities_sum_to_one_and_are_constant_over_a_slice(volume):
    probability = infer(volume, SmallNet())[0, 3:]
    torch.testing.assert_close(probability.sum(0), torch.ones(37, 43, 7))
    assert (probability == probability[:, :1, :1]).all()


@pytest.mark.parametrize("divisor", [4, 16])
def test_flip_makes_it_symmetric(volume, divisor):
    out = infer(volume, SmallNet(), flip=True, divisor=divisor)
    mirrored = infer(volume.flip(2), SmallNet(), flip=True, divisor=divisor)
    torch.testing.assert_close(mirrored, out.flip(2), atol=1e-5, rtol=0)
    assert not torch.allclose(infer(volume, SmallNet()).flip(2), infer(volume.flip(2), SmallNet()), atol=1e-3)


def test_flip_is_the_mean_of_both_views(volume):
    network = SmallNet()
    out = infer(volume, network, flip=True, margin=99, divisor=1)[0, :3]
    maps, mirrored = one_by_one(volume, network)[0], one_by_one(volume.flip(2), network)[0]
    with_organ = [1, 2, 3, 5, 6]
    expected = (maps + mirrored.flip(1))[..., with_organ] / 2
    torch.testing.assert_close(out[..., with_organ], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("divisor", [1, 4, 16])
def test_odd_sizes_are_padded_with_zeros_and_cut_back(volume, divisor):
    network = SmallNet(channels=2, organ_channel=False)
    out = infer(volume, network, organ_channel=False, divisor=divisor)[0]
    assert {(h % divisor, w % divisor) for _, _, h, w in network.seen} == {(0, 0)}
    padded = F.pad(volume.permute(0, 4, 1, 2, 3)[0], [0, -43 % divisor, 0, -37 % divisor])
    with torch.no_grad():
        maps, logits = network.explain(padded)
    torch.testing.assert_close(out[:3], maps[..., :37, :43].permute(1, 2, 3, 0), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[3:, 0, 0], logits.softmax(1).T, atol=1e-5, rtol=0)


def test_without_organ_channel_every_slice_is_computed_whole(volume):
    network = SmallNet(channels=2, organ_channel=False)
    maps, probability = one_by_one(volume, network)
    out = infer(volume, network, organ_channel=False, divisor=1)[0]
    torch.testing.assert_close(out[:3], maps, atol=1e-5, rtol=0)
    torch.testing.assert_close(out[3:, 5, 5], probability, atol=1e-5, rtol=0)


def test_volumes_of_a_batch_do_not_meet(volume):
    other = volume.flip(3) * 0.5
    other[:, 1] *= 2
    both = infer(torch.cat([volume, other]), SmallNet())
    torch.testing.assert_close(both[:1], infer(volume, SmallNet()))
    torch.testing.assert_close(both[1:], infer(other, SmallNet()))


def test_meta_tensors_and_wrapped_networks_are_taken(volume):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = SmallNet()

    torch.testing.assert_close(infer(MetaTensor(volume), Wrapped()), infer(volume, SmallNet()))


def test_where_there_is_no_organ_the_image_is_seen_as_it_is():
    assert SliceMapInferer().pads(torch.zeros(9, 7, dtype=torch.bool)) == [0, 0, 0, 0]
