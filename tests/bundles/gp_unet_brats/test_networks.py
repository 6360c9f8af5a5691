from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.bundles.conftest import load_script

networks = load_script("gp_unet_brats", "networks")


def small(**options):
    torch.manual_seed(0)
    options = {"features": (4, 8, 16), "pool_at": "map", "organ_channel": True} | options
    return networks.GPUNet(1, 3, **options).eval()


@pytest.mark.parametrize(("upsample", "count"), [("sinc", 1_740_675), ("transposed", 1_863_555)])
def test_paper_network_has_the_authors_number_of_parameters(upsample, count):
    network = networks.GPUNet(in_channels=4, num_classes=3, upsample=upsample)
    assert sum(p.numel() for p in network.parameters()) == count


def test_sinc_upsampling_is_exact_for_band_limited_images():
    angle = 2 * torch.pi * torch.arange(16) / 16
    fine = 2 * torch.pi * torch.arange(32) / 32
    image = torch.cos(3 * angle)[:, None] * torch.sin(5 * angle)[None] + 0.5
    expected = torch.cos(3 * fine)[:, None] * torch.sin(5 * fine)[None] + 0.5
    torch.testing.assert_close(networks.sinc_upsample(image[None, None])[0, 0], expected, atol=1e-5, rtol=0)


def test_sinc_upsampling_keeps_the_samples_it_started_from():
    image = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(networks.sinc_upsample(image)[..., ::2, ::2], image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["sinc", "bilinear"])
def test_mixing_channels_before_interpolation_equals_mixing_after(mode):
    layer = networks.Upsample(5, 3, mode)
    x = torch.randn(2, 5, 8, 8)
    up = networks.sinc_upsample(x) if mode == "sinc" else F.interpolate(x, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(layer(x), layer.conv(up), atol=1e-5, rtol=1e-4)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="upsample must be"):
        networks.Upsample(2, 2, "nearest")
    with pytest.raises(ValueError, match="pool_at must be"):
        small(pool_at="logits")


def test_pooling_features_logits_are_the_head_of_the_pooled_features():
    network = small(pool_at="features", organ_channel=False, pool="max")
    image = torch.rand(2, 1, 16, 16)
    features = network.features(image)
    pooled = features.amax(dim=(2, 3))
    expected = pooled @ network.head.weight.flatten(1).T + network.head.bias
    torch.testing.assert_close(network(image), expected)


def test_where_one_channel_decides_the_heatmap_at_its_maximum_is_the_logit():
    network = small(pool_at="features", organ_channel=False, pool="max")
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.weight[1, 2] = 1.5
    image = torch.rand(1, 1, 16, 16)
    maps, logits = network.explain(image)
    at = network.features(image)[0, 2].argmax()
    torch.testing.assert_close(maps[0, 1].flatten()[at], logits[0, 1])


def test_pooling_the_map_logits_are_the_maxima_of_the_map_inside_the_organ():
    network = small()
    image = torch.rand(2, 2, 16, 16)
    maps, logits = network.explain(image)
    inside = maps.masked_fill(image[:, 1:] <= 0.5, -torch.inf)
    torch.testing.assert_close(logits, inside.amax(dim=(2, 3)))
    assert (maps[:, 0] == 0).all()


def test_forward_is_the_logits_of_explain():
    network, image = small(), torch.rand(2, 2, 16, 16)
    assert torch.equal(network(image), network.explain(image)[1])


def test_evidence_outside_the_organ_cannot_change_the_logits():
    network = small(upsample="bilinear")  # sinc interpolation reaches everywhere
    image = torch.rand(1, 2, 64, 64)
    image[:, 1] = 0
    image[:, 1, :4, :4] = 1
    other = image.clone()
    other[:, 0, 63, 63] = 100.0  # farther from the organ than the receptive field reaches
    maps, logits = network.explain(image)
    other_maps, other_logits = network.explain(other)
    assert not torch.equal(maps, other_maps)
    torch.testing.assert_close(logits, other_logits)


@pytest.mark.parametrize(("pool_at", "channels"), [("features", 1), ("map", 1), ("map", 2)])
def test_efficientnet_map_has_the_size_of_the_image(pool_at, channels):
    network = networks.GPEfficientNet(channels, 2, pool_at=pool_at, organ_channel=True).eval()
    maps, logits = network.explain(torch.rand(1, channels + 1, 32, 48))
    assert maps.shape == (1, 2, 32, 48)
    assert logits.shape == (1, 2)
    assert torch.isfinite(logits).all()


def test_wrong_input_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"1 image channel.*\[1, 3, 16, 16\]"):
        small()(torch.rand(1, 4, 16, 16))
    with pytest.raises(ValueError, match=r"divide by 4.*\[1, 1, 18, 16\]"):
        small()(torch.rand(1, 2, 18, 16))
    with pytest.raises(ValueError, match="divide by 16"):
        networks.GPEfficientNet(1, 2, organ_channel=True)(torch.rand(1, 2, 24, 32))


@pytest.mark.parametrize("name", ["GPUNet", "GPEfficientNet"])
@pytest.mark.parametrize("pool_at", ["features", "map"])
def test_networks_compile_to_torchscript(name, pool_at):
    network = getattr(networks, name)(1, 2, pool_at=pool_at, organ_channel=True).eval()
    image = torch.rand(1, 2, 32, 32)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=1e-4)
