from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.bundles.conftest import load_script

networks = load_script("gp_unet_brats", "networks")
backbones = load_script("gp_unet_brats", "backbones")
blocks = load_script("gp_unet_brats", "blocks")
# Each network of the family at the smallest size, and what H and W have to divide by.
TINY = {
    "gp_unet": ({"features": (4, 8, 16)}, 4),
    "gp_shuffle_unet": ({"width": 4}, 8),
    "gp_recon_resnet": ({"width": 4, "blocks": 2}, 4),
    "gp_efficientnet": ({}, 16),
}


def small(**options):
    torch.manual_seed(0)
    options = {"features": (4, 8, 16), "pool_at": "map", "organ_channel": True} | options
    return networks.GPUNet(1, 3, **options).eval()


def tiny(backbone, channels=1, **options):
    torch.manual_seed(0)
    options = {"pool_at": "map", "organ_channel": True, "dropout": 0.0, "options": TINY[backbone][0]} | options
    return backbones.gp_network(backbone, in_channels=channels, num_classes=3, **options).eval()


@pytest.mark.parametrize(
    ("backbone", "options", "count"),
    [
        ("gp_unet", {}, 1_740_675),
        ("gp_unet", {"upsample": "transposed"}, 1_863_555),
        ("gp_shuffle_unet", {}, 26_371_587),
        ("gp_recon_resnet", {}, 17_272_918),
        ("gp_recon_resnet", {"upsample": "sinc"}, 17_272_918),
    ],
)
def test_paper_networks_have_the_authors_number_of_parameters(backbone, options, count):
    with torch.device("meta"):
        network = backbones.gp_network(backbone, in_channels=4, num_classes=3, dropout=0.5, options=options)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_shipped_network_has_the_number_of_parameters_that_pages_say():
    network = backbones.gp_network("gp_efficientnet", in_channels=1, num_classes=2, dropout=0.0)
    assert sum(p.numel() for p in network.parameters()) == 707_106


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("pool_at", ["features", "map"])
def test_every_network_gives_maps_of_the_image_and_compiles_to_torchscript(backbone, pool_at):
    network, image = tiny(backbone, 2, pool_at=pool_at), torch.rand(1, 3, 32, 48)
    maps, logits = network.explain(image)
    assert maps.shape == (1, 3, 32, 48)
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(torch.jit.script(network)(image), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("backbone", "divisor"), [(name, divisor) for name, (_, divisor) in TINY.items()])
def test_sizes_that_do_not_fit_name_the_divisor(backbone, divisor):
    network = tiny(backbone)
    network(torch.rand(1, 2, 16, 16 + divisor))
    said = rf"divide by {divisor}, got \[1, 1, 16, {16 + divisor // 2}\]: --slice_size \"\[16, {16 + divisor}\]\", or"
    with pytest.raises(ValueError, match=said):
        network(torch.rand(1, 2, 16, 16 + divisor // 2))


@pytest.mark.parametrize("backbone", TINY)
def test_every_parameter_learns(backbone):
    network = tiny(backbone).train()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()  # else the deepest maps, of one pixel each, are all zero
    network(torch.rand(2, 2, 32, 32)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_waves_of_the_last_level_reach_the_decoder():
    network, image = tiny("gp_shuffle_unet"), torch.rand(1, 2, 32, 32)
    before = network(image)
    with torch.no_grad():
        network.down3.waves.waves[0].bias += 1.0  # the first wave goes nowhere but to the decoder
    assert not torch.equal(network(image), before)


def test_dropout_of_recon_resnet_lies_inside_its_blocks():
    network = tiny("gp_recon_resnet", dropout=0.3)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout2d)] == [0.3, 0.3]


def test_unknown_backbones_and_options_are_named():
    with pytest.raises(ValueError, match=r"gp_unet, gp_shuffle_unet, .*got 'unet'"):
        backbones.gp_network("unet", in_channels=1, num_classes=2, dropout=0.0)
    with pytest.raises(ValueError, match=r"gp_shuffle_unet has no option features; it has width, input_mean"):
        tiny("gp_shuffle_unet", options={"features": (4, 8, 16)})
    with pytest.raises(ValueError, match="upsample must be"):
        tiny("gp_recon_resnet", options={"upsample": "nearest"})


def test_sinc_upsampling_is_exact_for_band_limited_images():
    angle = 2 * torch.pi * torch.arange(16) / 16
    fine = 2 * torch.pi * torch.arange(32) / 32
    image = torch.cos(3 * angle)[:, None] * torch.sin(5 * angle)[None] + 0.5
    expected = torch.cos(3 * fine)[:, None] * torch.sin(5 * fine)[None] + 0.5
    torch.testing.assert_close(blocks.sinc_upsample(image[None, None])[0, 0], expected, atol=1e-5, rtol=0)


def test_sinc_upsampling_keeps_the_samples_it_started_from():
    image = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(blocks.sinc_upsample(image)[..., ::2, ::2], image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["sinc", "bilinear"])
def test_mixing_channels_before_interpolation_equals_mixing_after(mode):
    layer = blocks.Upsample(5, 3, mode)
    x = torch.randn(2, 5, 8, 8)
    up = blocks.sinc_upsample(x) if mode == "sinc" else F.interpolate(x, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(layer(x), layer.conv(up), atol=1e-5, rtol=1e-4)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="upsample must be"):
        blocks.Upsample(2, 2, "nearest")
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


def test_another_number_of_channels_is_refused_with_the_inputs_shape():
    with pytest.raises(ValueError, match=r"1 image channel.*\[1, 3, 16, 16\]"):
        small()(torch.rand(1, 4, 16, 16))


class TestEvidenceWhereTheImageIsBright:
    """Class 1 is looked for where it is bright, class 2 anywhere."""

    LEVELS = (None, 1.5, None)

    def image(self):
        image = torch.ones(2, 2, 16, 16)
        image[0, 0, 4:10, 4:10] = 2.0
        return image

    def test_a_class_has_evidence_nowhere_else(self):
        maps, logits = small(evidence_above=self.LEVELS, pool="max").explain(self.image())
        bright = torch.zeros(16, 16, dtype=torch.bool)
        bright[5:9, 5:9] = True  # well inside
        assert bool((maps[0, 1] > -10)[bright].all())
        assert int((maps[0, 1] > -10).sum()) <= 36
        assert torch.equal(maps[1, 1], torch.full((16, 16), -10.0))
        assert logits[1, 1] == -10
        assert (maps[:, 2] > -10).all()

    def test_logits_are_pooled_there(self):
        maps, logits = small(evidence_above=self.LEVELS, pool="avg").explain(self.image())
        torch.testing.assert_close(logits[0, 1], maps[0, 1][maps[0, 1] > -10].mean())
        torch.testing.assert_close(logits[:, 2], maps[:, 2].mean(dim=(1, 2)))

    def test_weights_and_torchscript_do_not_notice(self):
        network = small(evidence_above=self.LEVELS)
        network.load_state_dict(small().state_dict())
        scripted = torch.jit.script(network)
        torch.testing.assert_close(scripted.explain(self.image()), network.explain(self.image()))

    def test_one_number_a_class(self):
        with pytest.raises(ValueError, match="one number a class"):
            small(evidence_above=[1.0])
        with pytest.raises(ValueError, match="pool_at 'map'"):
            small(evidence_above=self.LEVELS, pool_at="features")
        assert tiny("gp_unet", options=TINY["gp_unet"][0] | {"evidence_above": self.LEVELS}).evidence_above.numel() == 3


def test_a_class_whose_bright_regions_lie_outside_the_organ_has_no_evidence():
    network = small(evidence_above=[None, 1.5, None])
    image = torch.ones(1, 2, 16, 16)
    image[:, 1] = 0
    image[:, 1, 8:] = 1  # the organ
    image[:, 0, :6] = 3.0  # bright, and not in it
    logits = network(image)[0]
    assert logits[1] == networks.NO_EVIDENCE
    assert (logits[[0, 2]] != networks.NO_EVIDENCE).all()


def test_brightness_at_the_border_is_that_of_the_pixels_there():
    bright = load_script("gp_unet_brats", "evidence").bright_regions(torch.full((1, 1, 6, 7), 2.0), torch.tensor([1.5]))
    assert bright.all()


@pytest.mark.parametrize("backbone", TINY)
def test_pooled_features_are_those_of_the_organ(backbone):
    """Without any there is nothing to pool, and logits are the head's own."""
    network, image = tiny(backbone, pool_at="features"), torch.rand(1, 2, 32, 32)
    torch.nn.init.constant_(network.head.bias, 0.25)
    image[:, 1] = 0
    torch.testing.assert_close(network(image), torch.full((1, 3), 0.25))
    image[:, 1] = 1
    assert not torch.allclose(network(image), torch.full((1, 3), 0.25))
