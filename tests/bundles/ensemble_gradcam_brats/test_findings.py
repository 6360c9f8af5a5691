"""Several findings: of which one a map is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from common.data import pseudo_masks
from common.engines import SliceMapInferer
from tests.bundles.conftest import load_script
from tests.bundles.test_configs import parsed

networks = load_script("ensemble_gradcam_brats", "networks")
combine = load_script("ensemble_gradcam_brats", "combine")
EnsembleNet = networks.EnsembleNet
SMALL = [{"backbone": "resnet10", "width": 0.25}, {"backbone": "resnet10", "width": 0.125}]
RAW = {"dilate_mm": 0.0, "intensity": 0.0, "smooth_mm": 0.0, "opening_mm": 0.0, "largest": False}


@pytest.fixture
def image() -> torch.Tensor:
    image = torch.rand(3, 2, 64, 96, generator=torch.Generator().manual_seed(1))
    image[:, 1] = 1.0
    return image


@pytest.fixture
def network(image) -> EnsembleNet:
    """Of three findings; the first is that of the first slice …, and class 0 is more probable everywhere."""
    torch.manual_seed(1)
    network = EnsembleNet(SMALL, num_classes=4, target="predicted").eval()
    with torch.no_grad():
        for member in network.members:
            features: list[torch.Tensor] = []
            hook = member.head.register_forward_pre_hook(lambda _, inputs, into=features: into.append(inputs[0]))
            member(network.image(image))
            hook.remove()
            mean = features[0].mean(0)
            member.head.weight[1:] = 20 * F.normalize(features[0] - mean, dim=1)
            member.head.bias[1:] = -member.head.weight[1:] @ mean
            member.head.bias[0] = 50.0
    return network


@torch.no_grad()
def test_each_slice_shows_the_one_that_its_mask_is_named_after(network, image):
    maps, logits = network.explain(image)
    torch.testing.assert_close(logits, network(image))
    assert logits.argmax(1).tolist() == [0, 0, 0]
    for i in range(3):
        torch.testing.assert_close(maps[i], network.explaining(i + 1).explain(image[i : i + 1])[0][0])
    assert network.target == "predicted"
    assert not torch.equal(maps, network.explaining(1).explain(image)[0])


@torch.no_grad()
def test_a_class_for_each_image_may_be_told(network, image):
    maps, logits = network.explaining(torch.tensor([3, 1, 2])).explain(image)
    torch.testing.assert_close(logits, network(image))
    for i, k in enumerate((3, 1, 2)):
        torch.testing.assert_close(maps[i], network.explaining(k).explain(image[i : i + 1])[0][0])


def test_a_pseudo_mask_is_where_the_map_of_the_labels_finding_is_whatever_the_network_predicts(network, image):
    volume = MetaTensor(image.movedim(0, -1), affine=torch.eye(4))
    inferer = SliceMapInferer(window=[64, 96], divisor=16)
    combined = combine.CombineMapsd(classes=4, combine="mean", thresholds=(0.3,))
    options = {"inferer": inferer, "combine": combined, "refine": RAW}
    of = {}
    for k in (1, 2, 3):
        pred = inferer(volume[None], network.explaining(k))[0]
        of[k] = combined({"image": volume, "pred": pred})["pred"][1].numpy() > 0
    asked = []
    network.explaining = lambda k, known=network.explaining: (asked.append(k), known(k))[1]
    for labels in ([3, 0, 2], [1, 2, 3], [2, 2, 0], 3):
        asked.clear()
        made = pseudo_masks({"case": "a", "cls": labels}, volume, teacher=network, sure=(0, 0), **options)
        mask = made["pseudo"][0].numpy()
        for z, k in enumerate([labels] * 3 if isinstance(labels, int) else labels):
            assert np.array_equal(mask[..., z], of[k][..., z] if k else np.zeros((64, 96), dtype=bool))
        assert asked == sorted({*np.atleast_1d(labels)} - {0})  # and no map is made that is not looked at
    assert all((of[1] != of[k]).any(axis=(0, 1)).sum() > 1 for k in (2, 3))  # so that one could be taken for another


@torch.no_grad()
def test_of_several_views_the_probability_of_all_decides_which_one_is_explained(network, image):
    other = image.roll(1, dims=0)
    for views, means in (([image, other, other], other), ([image, image, other], image)):
        decided = network.decided(views)
        logits = torch.stack([network(view) for view in views]).mean(0)
        assert (
            decided.target.tolist()
            == (1 + logits[:, 1:].argmax(1)).tolist()
            == (1 + network(means)[:, 1:].argmax(1)).tolist()
        )
        torch.testing.assert_close(decided.explain(image)[0], network.explaining(decided.target).explain(image)[0])
    assert network.explaining(2).decided([image]).target == 2


@torch.no_grad()
def test_maps_of_an_image_and_its_mirror_are_of_one_finding(network, image):
    volume = image.movedim(0, -1)[None]
    mirrored = volume.flip(2)
    own, other = (1 + network(v[0].movedim(-1, 0))[:, 1:].argmax(1) for v in (volume, mirrored))
    assert not torch.equal(own, other)  # each view alone would be explained by another
    options = {"window": [64, 96], "divisor": 16}
    output = SliceMapInferer(flip=True, **options)(volume, network)
    decided = 1 + output[0, 3:, 0, 0].argmax(0)  # the finding that the mask is named after
    for z, k in enumerate(decided.tolist()):
        one, two = (SliceMapInferer(**options)(v, network.explaining(k))[0, :2] for v in (volume, mirrored))
        torch.testing.assert_close(output[0, :2, ..., z], ((one + two.flip(1)) / 2)[..., z])


def test_maps_of_heads_are_of_any_finding_and_made_once(network):
    with_heads = EnsembleNet(SMALL, num_classes=4, map_width=4, start=network, target="predicted")
    assert with_heads.explaining(2) is with_heads is with_heads.decided([])
    calls = []

    def inferer(image, network):
        calls.append(network)
        return torch.rand(1, 8, *image.shape[2:])

    volume = MetaTensor(torch.ones(2, 4, 4, 3), affine=torch.eye(4))
    make = partial(pseudo_masks, teacher=with_heads, inferer=inferer, refine=RAW)
    make({"case": "a", "cls": [1, 2, 3]}, volume)
    assert calls == [with_heads]


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize(("classes", "target"), [(["none", "a"], 1), (["none", "a", "b"], "predicted")])
def test_of_several_findings_no_fixed_one_is_explained_unless_it_is_asked_for(config, classes, target):
    parser = parsed("ensemble_gradcam_brats", config)
    parser["classes"] = classes
    assert parser.get_parsed_content("target") == target
    assert parser["network_def"]["target"] == "@target"


@torch.no_grad()
def test_the_finding_that_most_is_said_for_is_the_only_one_where_there_is_one(image):
    torch.manual_seed(0)
    network = EnsembleNet(SMALL, target="predicted").eval()
    maps, _ = network.explain(image)
    network.target = 1
    torch.testing.assert_close(maps, network.explain(image)[0])
