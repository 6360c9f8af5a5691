from __future__ import annotations

import pytest
import torch

from common.encoders import Classifier
from common.losses import MaskLoss
from tests.bundles.conftest import load_script
from tests.bundles.tonno_mosmed.conftest import SPACING
from tests.bundles.tonno_mosmed.test_inferers import Pooled, inferer, meta

networks = load_script("tonno_mosmed", "networks")
sampling = load_script("tonno_mosmed", "sampling")


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier("resnet10", num_classes=1, width=0.25, norm="group", map_width=4).eval()


class Drawing(Pooled):
    """Draws the pooled slice, as logits: its probability is 0.5 in air and more where the slice is bright."""

    def with_map(self, image):
        return self.pool(image), self(image)


def test_drawn_maps_are_probabilities_beside_the_same_logits(network):
    planes = torch.rand(3, 1, 64, 64)
    drawn = networks.DrawnMap(network)
    (maps,) = drawn(planes)
    assert maps.shape == (3, 16, 16)
    assert 0 < maps.min() < maps.max() < 1
    torch.testing.assert_close(drawn.logits, network(planes))
    trained, logits = networks.PlanesWithMaps(network)(planes)
    assert trained.shape == planes.shape
    torch.testing.assert_close(logits, drawn.logits)


def test_loss_is_small_for_the_pseudo_mask_and_the_label_and_looks_inside_the_organ_alone():
    pseudo = (torch.rand(2, 1, 8, 8) > 0.5).float()
    planes = torch.ones(2, 1, 8, 8)
    planes[..., :2] = 0
    batch = {"image": planes[None], "cls": torch.tensor([[1.0, 0.0]]), "pseudo": pseudo[None]}
    image, target = sampling.prepare_masks(batch, torch.device("cpu"))
    torch.testing.assert_close(image, planes)
    maps = (40 * (2 * pseudo - 1)).requires_grad_()
    right, wrong = torch.tensor([[20.0], [-20.0]]), torch.tensor([[-20.0], [20.0]])
    loss = MaskLoss(torch.nn.BCEWithLogitsLoss())
    assert float(loss((maps, right), target)) < 1e-3
    assert float(loss((maps, wrong), target)) == pytest.approx(20, abs=0.1)
    assert float(MaskLoss(torch.nn.BCEWithLogitsLoss(), classification=0.0)((-maps, wrong), target)) > 20
    (gradient,) = torch.autograd.grad(loss((0.1 * maps, right), target), maps)
    assert (gradient[..., :2] == 0).all()
    assert (gradient[..., 2:] != 0).all()


def test_averaged_drawn_maps_lie_where_the_planes_show_it(phantom):
    """The drawing is the pooled slice; so is the LayerCAM of that network, up to the sigmoid."""
    options = {"method": "averaged_cam", "num_directions": 40, "cam_layer": 1}
    drawn = inferer(cam="drawn", **options)(meta(phantom), Drawing())[0, 1]
    explained = inferer(**options)(meta(phantom), Drawing())[0, 1]
    inside = phantom[1] > 0
    assert (drawn[~inside] == 0).all()
    together = torch.stack([drawn[inside].logit(), explained[inside]])
    assert float(torch.corrcoef(together)[0, 1]) > 0.99


def test_a_slice_is_as_probable_as_the_highest_square_centimeter_of_its_map(phantom):
    out = inferer(method="averaged_cam", cam="drawn", num_directions=8, probability="map")(meta(phantom), Drawing())[0]
    count = round(100 / (SPACING[0] * SPACING[1]))
    highest = [float(heat.flatten().sort(descending=True).values[:count].mean()) for heat in out[1].unbind(-1)]
    torch.testing.assert_close(out[3, 0, 0], torch.tensor(highest))
    torch.testing.assert_close(out[2] + out[3], torch.ones_like(out[2]))
    tiny = torch.tensor([0.2, 0.4]).reshape(1, 2, 1)
    torch.testing.assert_close(networks.highest_cm2(tiny, (1.0, 1.0, 5.0)), torch.tensor([0.3]))


@pytest.mark.parametrize("options", [{"method": "averaged_cam"}, {"method": "tonno", "cam": "drawn"}])
def test_a_probability_is_read_off_drawn_maps_alone(options):
    with pytest.raises(ValueError, match="averaged_cam with cam 'drawn'"):
        inferer(probability="map", **options)
