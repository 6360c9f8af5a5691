from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.cam import GradCAM
from common.encoders.maps import stage_features
from common.engines import SliceMapInferer
from tests.bundles.conftest import load_script

networks = load_script("ensemble_gradcam_brats", "networks")
EnsembleNet = networks.EnsembleNet
SMALL = [{"backbone": "resnet10", "width": 0.25}, {"backbone": "resnet10", "width": 0.125}]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EnsembleNet(SMALL).eval()


@pytest.fixture
def image() -> torch.Tensor:
    image = torch.rand(3, 2, 64, 96, generator=torch.Generator().manual_seed(1))
    image[:, 1] = 1.0
    return image


@torch.no_grad()
def test_probability_is_the_mean_of_the_members(network, image):
    members = torch.stack([m(image[:, :1]) for m in network.members], dim=1)
    torch.testing.assert_close(network.member_logits(image), members)
    torch.testing.assert_close(network(image).softmax(1), members.softmax(2).mean(1))


@torch.no_grad()
def test_maps_are_the_grad_cams_of_the_members_at_the_images_size(network, image):
    maps, logits = network.explain(image)
    assert maps.shape == (3, 2, 64, 96)
    torch.testing.assert_close(logits, network(image))
    for i, member in enumerate(network.members):
        with GradCAM(member, "body.layer4") as cam:
            expected = cam(image[:, :1], target=1)
        expected = F.interpolate(expected[:, None], size=(64, 96), mode="bilinear", align_corners=False)[:, 0]
        torch.testing.assert_close(maps[:, i], expected)
    assert maps.max() > 0


@pytest.mark.parametrize("cam", ["GradCAMpp", "LayerCAM", "HiResCAM", "XGradCAM"])
@torch.no_grad()
def test_maps_of_every_method_are_never_negative(cam, image):
    torch.manual_seed(0)
    maps, _ = EnsembleNet(SMALL[:1], cam=cam, cam_stage=1).eval().explain(image)
    assert maps.min() >= 0
    assert maps.max() > 0


@torch.no_grad()
def test_maps_of_flair_alone_leave_the_classification_to_all_channels(image):
    torch.manual_seed(0)
    network = EnsembleNet(SMALL[:1], in_channels=3, organ_channel=False, cam_channel=2).eval()
    scan = torch.rand(2, 3, 64, 64)
    other = torch.cat([torch.rand(2, 2, 64, 64), scan[:, 2:]], dim=1)
    (maps, logits), (maps_other, logits_other) = network.explain(scan), network.explain(other)
    torch.testing.assert_close(maps, maps_other)  # the other channels do not reach the maps
    torch.testing.assert_close(logits, network(scan))
    assert not torch.allclose(logits, logits_other)


def test_members_see_only_what_passes_the_frames_threshold():
    frame = torch.tensor([[[[0.1, 0.8], [0.79, 1.0]]], [[[1.0, 1.0], [0.0, 0.0]]]])
    seen = EnsembleNet(SMALL[:1], frame_threshold=0.8).image(frame.transpose(0, 1))
    torch.testing.assert_close(seen, torch.tensor([[[[0.0, 0.8], [0.0, 1.0]]]]))


@torch.no_grad()
def test_zoom_makes_finer_maps_of_the_same_size(image):
    torch.manual_seed(0)
    network = EnsembleNet(SMALL[:1], zoom=2.0).eval()
    assert network.image(image).shape == (3, 1, 128, 192)
    assert network.explain(image)[0].shape == (3, 1, 64, 96)


@torch.no_grad()
def test_the_organ_channel_is_not_seen(network, image):
    other = image.clone()
    other[:, 1] = 0.0
    torch.testing.assert_close(network(image), network(other))


def test_each_member_learns_from_its_own_error_only(image):
    torch.manual_seed(0)
    network = EnsembleNet(SMALL)
    loss = networks.MemberLoss()
    cls = torch.tensor([0, 1, 1])
    logits = networks.MemberLogits(network)(image)
    assert logits.shape == (3, 2, 2)
    alone = [F.cross_entropy(logits[:, i], cls) for i in range(2)]
    torch.testing.assert_close(loss(logits, cls), sum(alone))
    gradient = torch.autograd.grad(loss(logits, cls), network.members[0].head.weight, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(alone[0], network.members[0].head.weight)[0])


@torch.no_grad()
def test_inferer_carries_all_members_maps_and_the_class_probabilities(network):
    volume = torch.rand(1, 2, 50, 70, 5)
    volume[:, 1] = 0
    volume[:, 1, 10:40, 10:60, 1:4] = 1
    output = SliceMapInferer(batch_size=2, window=[64, 96], divisor=16)(volume, network)
    assert output.shape == (1, 4, 50, 70, 5)
    torch.testing.assert_close(output[0, 2, 0, 0], 1 - output[0, 3, 0, 0])
    assert output[0, :2, :, :, 0].abs().max() == 0  # no organ there
    window = torch.zeros(1, 2, 64, 96)
    window[:, :, 7:57, 13:83] = volume[0, :, :, :, 2]  # the organ's center at the window's
    maps, logits = network.explain(window)
    torch.testing.assert_close(output[0, :2, :, :, 2], maps[0, :, 7:57, 13:83])
    torch.testing.assert_close(output[0, 2:, 0, 0, 2], logits.softmax(1)[0])


def test_pretrained_weights_go_to_the_members_of_that_backbone(tmp_path):
    source = EnsembleNet(["resnet10"]).members[0].body
    torch.save(source.state_dict(), tmp_path / "ten.pth")
    network = EnsembleNet(["resnet10", "efficientnet_lite0"], pretrained={"resnet10": str(tmp_path / "ten.pth")})
    assert torch.equal(network.members[0].body.conv1.weight, source.conv1.weight)


def test_an_empty_ensemble_or_a_map_of_another_name_is_refused():
    with pytest.raises(ValueError, match="at least one member"):
        EnsembleNet([])
    for wrong in ({"cam": "gradcam"}, {"target": "all"}):
        with pytest.raises(ValueError, match=r"cam must be one of .*GradCAM.* and target a class or one of .*argmax"):
            EnsembleNet(SMALL[:1], **wrong)


@pytest.fixture(scope="module")
def with_heads(network):
    torch.manual_seed(1)
    return EnsembleNet(SMALL, map_width=4, start=network).eval()


@torch.no_grad()
def test_map_heads_draw_the_maps_and_leave_the_classification_as_it_was(network, with_heads, image):
    maps, logits = with_heads.explain(image)
    torch.testing.assert_close(logits, network(image))
    margins, of_members = networks.MemberLogits(with_heads)(image)
    torch.testing.assert_close(of_members, network.member_logits(image))
    torch.testing.assert_close(maps, margins.sigmoid())
    assert maps.shape == (3, 2, 64, 96)
    assert not torch.allclose(maps[:, 0], maps[:, 1])


def test_the_map_of_a_head_comes_from_every_resolution(with_heads, image):
    _, stages = stage_features(with_heads.members[0], image[:, :1])
    assert [tuple(stage.shape[1:]) for stage in stages] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    gradients = torch.autograd.grad(with_heads.map_heads[0](stages).sum(), stages)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not any(module._forward_hooks for module in with_heads.modules())


def test_mask_loss_is_the_members_sum_and_passes_over_slices_that_do_not_count(image):
    maps, logits = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 2)
    target = {"cls": torch.tensor([0, 1, 1]), "bag": torch.full((3,), -1), "counts": torch.tensor([1.0, 1.0, 0.0])}
    target |= {"pseudo": (torch.rand(3, 1, 4, 4) > 0.5).float(), "organ": torch.ones(3, 1, 4, 4)}
    both = networks.MaskLoss()((maps, logits), target)
    alone = [networks.MaskLoss()((maps[:, i : i + 1], logits[:, i : i + 1]), target) for i in range(2)]
    torch.testing.assert_close(both, sum(alone))
    gradient = torch.autograd.grad(both, maps)[0].abs().sum(dim=(1, 2, 3))
    assert (gradient > 0).tolist() == [True, True, False]
    sure = (40 * (2 * target["pseudo"] - 1)).expand(-1, 2, -1, -1)
    assert float(networks.MaskLoss(classification=0.0)((sure, logits), target)) < 1e-3
    torch.testing.assert_close(
        networks.MaskLoss(segmentation=0.0)((maps, logits), target), networks.MemberLoss()(logits, target["cls"])
    )


@pytest.mark.parametrize("heads", [False, True])
@torch.no_grad()
def test_torchscript_gives_the_same_logits(network, with_heads, image, heads):
    network = with_heads if heads else network
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=1e-4)
