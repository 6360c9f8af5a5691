"""What is explained of an axial slice is the plane that inference takes of it."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.cam import SliceLogit, default_layer, grad_cam
from common.encoders import Classifier
from tests.bundles.conftest import load_script
from tests.bundles.tonno_mosmed.conftest import SHAPE, SPACING

explained = load_script("tonno_mosmed", "explained")
inferers = load_script("tonno_mosmed", "inferers")
OPTIONS = {
    "radius": {"geometry": "organ", "radius": 30.0, "size": 48},
    "organ": {"geometry": "organ", "radius": None, "size": 40},
    "paper": {"geometry": "paper", "size": 48},
    "stack": {"geometry": "organ", "radius": 5.0, "size": 32, "stack": 8},
}


@pytest.fixture(scope="module")
def network():
    """Logits that differ from slice to slice and hang on where a plane's pixels lie."""
    torch.manual_seed(0)
    network = Classifier("resnet10", num_classes=1, width=0.25).eval()
    network.head.weight.data *= 20
    return network


def inferer(**options):
    return inferers.ToNNOInferer(method="layercam", cam_layer=2, probability="slices", progress=False, **options)


@pytest.fixture
def volume(phantom):
    return MetaTensor(phantom, affine=torch.diag(torch.tensor([*SPACING, 1.0])))


def logit(network, volume, z, planes):
    organ = volume.as_tensor()[None, 1:, ..., z]
    return SliceLogit(network, organ_channel=False).at(organ, shown=1, views=planes(volume, z))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_explained_probability_is_that_of_inference(network, volume, options):
    with_options = inferer(**options)
    probability = with_options(volume[None], network)[0, 3, 0, 0]
    slices = torch.nonzero(volume[1].as_tensor().flatten(0, 1).amax(0)).flatten().tolist()
    planes = explained.AxialPlanes(with_options)
    found = [float(logit(network, volume, z, planes)(volume.as_tensor()[None, :1, ..., z]).sigmoid()) for z in slices]
    assert max(found) - min(found) > 0.05  # else nothing is shown
    # Where a slice lies in two stacks, inference takes the mean of probabilities and not of logits.
    assert found == pytest.approx(probability[slices].tolist(), abs=0.02 if "stack" in options else 1e-4)


@pytest.mark.parametrize("name", ["radius", "organ", "paper"])
def test_maps_come_back_to_the_slice(volume, name):
    (view,) = explained.AxialPlanes(inferer(**OPTIONS[name] | {"size": 160}))(volume, 9)
    image = volume.as_tensor()[None, :1, ..., 9]
    plane = view.to_network(image)
    assert plane.shape == (1, 1, 160, 160)
    back = view.to_slice(plane[0, 0])
    assert back.shape == SHAPE[:2]
    inside = (volume[1].as_tensor()[..., 9] > 0.5) & (image[0, 0] > 0)
    assert float((back - image[0, 0])[inside].abs().mean()) < 0.05  # twice interpolated
    assert float((back.flip(0) - image[0, 0])[inside].abs().mean()) > 0.1


def test_what_lies_outside_the_organ_is_not_seen(network, volume):
    score = logit(network, volume, 9, explained.AxialPlanes(inferer(size=48)))
    image, organ = volume.as_tensor()[None, :1, ..., 9], volume.as_tensor()[None, 1:, ..., 9] > 0.5
    assert torch.equal(score(image), score(torch.where(organ, image, 7.0)))


def test_grad_cam_of_the_networks_own_layer_has_the_size_of_the_slice(network, volume):
    assert default_layer(network) == "body.layer4"
    score = logit(network, volume, 9, explained.AxialPlanes(inferer(size=48)))
    heat = score.mean_map(lambda part, seen: grad_cam(part, seen, "network.body.layer3"), volume[None, :1, ..., 9])
    assert heat.shape == SHAPE[:2]
    assert float(heat.max()) > 0


def test_a_slice_beyond_the_organ_is_refused(volume):
    with pytest.raises(ValueError, match="slice 0 lies beyond the organ"):
        explained.AxialPlanes(inferer(size=48))(volume, 0)
