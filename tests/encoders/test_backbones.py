from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from common.encoders import Classifier
from common.encoders.backbones import LITES, RESNETS, group_norm_from_batch, load_body
from common.encoders.efficientnet import IMAGENET_MEAN, IMAGENET_STD

# Parameters of the body as torchvision publishes them, less the 1000-class head's.
BODY_PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160}


@pytest.mark.parametrize("backbone", [*RESNETS[:2], *LITES])
def test_logits_and_stages_have_the_stated_shapes(backbone):
    network = Classifier(backbone, in_channels=1, num_classes=3).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in network.stages:
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
    with torch.no_grad():
        assert network(torch.rand(2, 1, 64, 96)).shape == (2, 3)
    strides = (4, 8, 16, 32) if backbone in RESNETS else (4, 8, 16)
    assert [tuple(seen[n][2:]) for n in network.stages] == [(64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_resnets_have_torchvisions_size_and_key_names(backbone):
    body = Classifier(backbone).body
    assert sum(p.numel() for p in body.parameters()) == BODY_PARAMETERS[backbone]
    keys = set(body.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.conv2.weight"} <= keys
    assert "layer2.0.downsample.0.bias" not in keys


@pytest.mark.parametrize("backbone", ["resnet10", "efficientnet_lite0"])
def test_a_grey_image_is_seen_as_three_equal_channels_in_imagenets_range(backbone):
    gray, color = Classifier(backbone).eval(), Classifier(backbone, in_channels=3).eval()
    color.load_state_dict(gray.state_dict())
    image = torch.rand(1, 1, 64, 64)
    seen = {}
    gray.body.register_forward_hook(lambda _, inputs, __: seen.update(image=inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(gray(image), color(image.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(seen["image"], (image * 0.4 - IMAGENET_MEAN).expand(-1, 3, -1, -1) / IMAGENET_STD)


def test_width_scales_a_resnets_channels():
    narrow = Classifier("resnet10", width=0.5)
    assert narrow.head.in_features == 256


@pytest.mark.parametrize("backbone", ["resnet10", "efficientnet_lite1"])
def test_torchscript_gives_the_same_logits(backbone):
    network, image = Classifier(backbone).eval(), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=1e-4)


def learned(network: Classifier) -> Classifier:
    """The network as if its weights came from a checkpoint."""
    network.load_state_dict(network.state_dict())
    return network


def test_frozen_norms_are_not_trained_around_without_weights():
    network = Classifier("resnet10", norm="frozen_batch").eval()  # inference, for which a checkpoint follows
    with pytest.raises(ValueError, match=r"resnet10 has random ones: give a local file with --pretrained FILE"):
        network.train()
    assert learned(network).train().training


def statistics(network: nn.Module) -> list[torch.Tensor]:
    return [m.running_mean.clone() for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("backbone", "norm", "moves"),
    [
        ("resnet10", None, True),
        ("resnet10", "batch", True),
        ("resnet10", "frozen_batch", False),
        ("efficientnet_lite0", None, False),
        ("efficientnet_lite0", "batch", True),
        ("efficientnet_lite0", "frozen_batch", False),
    ],
)
def test_batch_statistics_move_in_training_unless_frozen(backbone, norm, moves):
    network = learned(Classifier(backbone, norm=norm)).train()
    before = statistics(network)
    network(torch.rand(4, 1, 64, 64))
    changed = any(not torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))
    assert changed is moves


def test_frozen_batch_norm_keeps_its_affine_parameters_and_trains_the_rest():
    network = learned(Classifier("resnet10", norm="frozen_batch")).train()
    network(torch.rand(2, 1, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():
        is_norm = isinstance(network.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
        assert (parameter.grad is None) is is_norm, name


def test_group_norm_replaces_every_batch_norm_and_keeps_its_affine_parameters():
    body = nn.Sequential(nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48), nn.Sequential(nn.BatchNorm2d(48)))
    nn.init.uniform_(body[1].weight)
    weight = body[1].weight.detach().clone()
    group_norm_from_batch(body)
    norms = [m for m in body.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 2
    assert norms[0].num_groups == 16  # the largest divisor of 48 that 32 shares
    torch.testing.assert_close(norms[0].weight.detach(), weight)
    with_activation = nn.BatchNorm2d(4)
    with_activation.act = nn.ReLU()
    body = nn.Sequential(with_activation)
    group_norm_from_batch(body)
    assert [type(module) for module in body[0]] == [nn.GroupNorm, nn.ReLU]
    network = Classifier("resnet10", norm="group")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("backbone", ["resnet10", "efficientnet_lite0"])
@pytest.mark.parametrize("norm", ["frozen_batch", "batch", "group"])
def test_a_network_says_the_same_with_and_without_gradients_whatever_its_norm(backbone, norm):
    network = Classifier(backbone, norm=norm).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        shown = network(image)
    torch.testing.assert_close(shown, network(image).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "module"])
def test_a_local_file_with_torchvisions_names_fills_the_body(wrapped, tmp_path):
    source = Classifier("resnet10").body
    nn.init.uniform_(source.bn1.running_mean)
    state = source.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    if wrapped == "module":  # as self-supervised training leaves it
        state = {f"module.{k}": v for k, v in state.items()} | {"module.projection_head.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state} if wrapped == "state_dict" else state, tmp_path / "weights.pth")
    body = Classifier("resnet10", pretrained=tmp_path / "weights.pth").body
    for name, value in source.state_dict().items():
        assert torch.equal(body.state_dict()[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet10", "efficientnet_lite0"])
def test_pretrained_filters_are_adapted_to_two_channels(backbone, tmp_path):
    state = Classifier(backbone, in_channels=3).body.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    network = Classifier(backbone, in_channels=2).eval()
    load_body(network.body, tmp_path / "weights.pth")
    first = "conv1.weight" if backbone == "resnet10" else "encoder._conv_stem.weight"
    torch.testing.assert_close(network.body.state_dict()[first], state[first][:, :2] * 1.5)
    assert network(torch.rand(1, 2, 32, 32)).shape == (1, 2)


def test_weights_of_another_architecture_are_refused_with_their_keys(tmp_path):
    torch.save(Classifier("resnet10").body.state_dict(), tmp_path / "ten.pth")
    with pytest.raises(ValueError, match=r"ten.pth does not fit: \d+ of \d+ entries.*layer1.1.conv1.weight"):
        load_body(Classifier("resnet18").body, tmp_path / "ten.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent.pth"):
        Classifier("resnet10", pretrained=tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg"}, "unknown backbone 'vgg': use one of"),
        ({"backbone": "resnet10", "norm": "instance"}, "norm must be"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**options)


def test_a_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"expected 1 image channel\(s\), got an input of \[1, 2, 64, 64\]"):
        Classifier("resnet10")(torch.rand(1, 2, 64, 64))


def test_without_timm_its_models_are_refused_with_the_reason():
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed here")
    with pytest.raises(ImportError, match=r"'timm/resnet10t.c3_in1k' needs timm"):
        Classifier("timm/resnet10t.c3_in1k")


@pytest.mark.parametrize("backbone", ["resnet10", "efficientnet_lite0"])
def test_a_map_is_drawn_on_the_finest_stage_and_changes_no_logit(backbone):
    torch.manual_seed(0)
    network = Classifier(backbone, map_width=4).eval()
    image = torch.rand(2, 1, 64, 96)
    maps, logits = network.with_map(image)
    assert maps.shape == (2, 1, 16, 24)
    torch.testing.assert_close(logits, network(image))
    assert not any(module._forward_hooks for module in network.modules())
    torch.testing.assert_close(torch.jit.script(network)(image), logits)
    plain = Classifier(backbone).eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "map_head" not in key})
    torch.testing.assert_close(plain(image), logits)
    with pytest.raises(ValueError, match="map_width 0"):
        plain.with_map(image)
