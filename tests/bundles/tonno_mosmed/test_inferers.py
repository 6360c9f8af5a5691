from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

import common.cam as cam
from common.radon import oblique_slices, planes_through
from tests.bundles.conftest import load_script
from tests.bundles.tonno_mosmed.conftest import SHAPE, SPACING

inferers = load_script("tonno_mosmed", "inferers")
geometry = load_script("tonno_mosmed", "geometry")


class Sum(nn.Module):
    """The "network" that sums a slice, times the area of a pixel: its reconstruction is the volume."""

    def __init__(self, area: float, air: float = 0.0) -> None:
        super().__init__()
        self.area = area
        self.air = air

    def forward(self, image):
        empty = (image == 0).flatten(1).all(1)
        return (image.sum(dim=(1, 2, 3)) * self.area + self.air * empty)[:, None]


class Pooled(nn.Module):
    """Average pooling, a layer to explain, and the sum: its LayerCAM is the pooled slice."""

    stages = ("pool", "again")

    def __init__(self, cell: int = 4) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(cell)
        self.again = nn.AvgPool2d(2)
        self.seen = 0

    def forward(self, image):
        self.seen += len(image)
        return 4 * self.again(self.pool(image)).sum(dim=(1, 2, 3))[:, None]


def meta(image: torch.Tensor) -> MetaTensor:
    return MetaTensor(image[None], affine=torch.diag(torch.tensor([*SPACING, 1.0])))


def inferer(**options):
    settings = {"num_slices": 40, "num_directions": 400, "size": 48, "progress": False}
    return inferers.ToNNOInferer(**(settings | options))


@pytest.mark.parametrize("options", [{"method": "tonno"}, {"method": "averaged_cam"}, {"views": "three"}])
def test_planes_at_angles_through_a_picture_are_refused(options):
    picture = torch.ones(1, 2, 20, 20, 1)
    with pytest.raises(ValueError, match=r"a picture, or a volume of one slice; .*gp_unet_brats"):
        inferer(**{"method": "layercam"} | options)(picture, Pooled())
    assert inferer(method="layercam")(picture, Pooled()).shape == (1, 4, 20, 20, 1)  # its own plane alone


def test_an_organ_that_no_plane_meets_holds_nothing():
    image = torch.zeros(1, 2, 6, 6, 4)
    image[:, :, 2:4, 2:4, 1:2] = 1.0
    options = {"method": "tonno", "probability": "volume", "num_directions": 20, "radius": 113.0}
    shown = inferer(**options)(image, Sum(1.0))
    assert shown[0, 3, 0, 0].tolist() == [0.0] * 4


def pixel_area(phantom, size=48) -> float:
    return (2 * geometry.crop_to_organ(phantom, SPACING).radius / (size - 1)) ** 2


def agreement(heat, phantom) -> tuple[float, float]:
    """Correlation and slope of the heat against the volume inside the organ."""
    inside = phantom[1] > 0
    x, y = phantom[0][inside], heat[inside]
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]), float((x @ y) / (x @ x))


@pytest.mark.parametrize("layout", ["latitude", "fibonacci"])
def test_a_network_that_sums_gives_the_volume_back_in_its_own_scale(phantom, layout):
    output = inferer(layout=layout, num_slices=32, num_directions=200)(meta(phantom), Sum(pixel_area(phantom)))[0]
    correlation, slope = agreement(output[1], phantom)
    assert correlation > 0.97
    assert slope == pytest.approx(1.0, abs=0.06)


def test_output_is_two_maps_and_two_probabilities_and_no_heat_outside_the_organ(phantom):
    network = Sum(0.01)
    tool = inferer(num_slices=12, num_directions=20, quantile=1.0)
    output = tool(meta(phantom), network)
    assert output.shape == (1, 4, *SHAPE)
    assert (output[:, 0] == 0).all()
    assert (output[0, 1][phantom[1] == 0] == 0).all()
    body = geometry.crop_to_organ(phantom, SPACING)
    profiles, hits_organ = tool.profiles(body, network)
    torch.testing.assert_close(output[0, 3], profiles[hits_organ].max().sigmoid().expand(SHAPE))
    torch.testing.assert_close(output[0, 2] + output[0, 3], torch.ones(SHAPE))


def test_each_slice_has_the_probability_of_the_plane_through_it_where_that_is_asked_for(phantom):
    tool = inferer(num_slices=12, num_directions=20, probability="slices")
    _, probability = tool.volumes(phantom, SPACING, Sum(1e-3))
    body = geometry.crop_to_organ(phantom, SPACING)
    pixel = (2 * body.radius / 47) ** 2
    integrals = phantom[0].sum(dim=(0, 1)) * SPACING[0] * SPACING[1] / pixel * 1e-3
    seen = phantom[1].any(dim=0).any(dim=0)
    torch.testing.assert_close(probability[1][seen], integrals.sigmoid()[seen], atol=5e-3, rtol=0)
    assert (probability[1][~seen] == 0).all()
    torch.testing.assert_close(probability.sum(0), torch.ones(SHAPE[-1]))


@pytest.mark.parametrize("layout", ["latitude", "fibonacci"])
def test_planes_of_air_are_not_computed_and_count_as_what_the_network_says_of_air(phantom, layout):
    network = Pooled()
    body = geometry.crop_to_organ(phantom, SPACING, radius=40.0)
    tool = inferer(layout=layout, num_slices=16, num_directions=24)
    hits_organ = planes_through(body.inside, tool.planes.normals, count=16, **body.extent)
    assert 0.2 < hits_organ.float().mean() < 0.6
    for air in (0.0, -3.0):
        network = Sum(0.01, air)
        profiles, computed = tool.profiles(body, network)
        images = oblique_slices(body.volume, tool.planes.normals, count=16, size=48, **body.extent)
        everything = network(images.flatten(0, 1)).reshape(hits_organ.shape)
        torch.testing.assert_close(profiles, everything, atol=2e-3, rtol=1e-3)
        assert torch.equal(computed, hits_organ)
    counted = Pooled()
    tool.profiles(body, counted)
    assert counted.seen == int(hits_organ.sum()) + 1


def test_maps_of_air_are_not_computed_either(phantom):
    body = geometry.crop_to_organ(phantom, SPACING, radius=40.0)
    tool = inferer(method="averaged_cam", num_slices=16, num_directions=24)
    whole = inferer(method="averaged_cam", num_slices=16, num_directions=24)
    whole.planes.hits_organ = lambda body: torch.ones(len(tool.planes.normals), 18, dtype=torch.bool)
    (skipping,), profiles, hits_organ = tool.map_volumes(body, Pooled(), (1,), kinds=("averaged", "tomographic"))
    (full,), all_profiles, _ = whole.map_volumes(body, Pooled(), (1,), kinds=("averaged", "tomographic"))
    assert hits_organ.float().mean() < 0.6
    torch.testing.assert_close(profiles, all_profiles, atol=1e-3, rtol=1e-4)
    for kind in full:
        torch.testing.assert_close(skipping[kind], full[kind], atol=1e-5, rtol=1e-4)


def test_tomographic_maps_of_coarse_layers_are_nearer_to_the_volume_than_averaged_ones(phantom):
    network = Pooled(cell=12)
    scores = {}
    for method in ("averaged_cam", "tomographic_cam"):
        tool = inferer(method=method, num_slices=32, num_directions=150, radius=26.0)
        scores[method] = agreement(tool(meta(phantom), network)[0, 1], phantom)[0]
    assert scores["tomographic_cam"] > scores["averaged_cam"] + 0.05


@pytest.mark.parametrize(
    ("method", "name"), [("layercam", "LayerCAM"), ("gradcam", "GradCAM"), ("gradcampp", "GradCAMpp")]
)
def test_single_view_maps_are_those_of_common_cam(method, name):
    """Slices as large as the volume: every voxel is a pixel, and the map is upsampled slice by slice."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(4, 1))
    network.stages = ("1",)
    image = torch.rand(1, 16, 16, 3) + 0.1
    body = geometry.crop_to_organ(image, (1.0, 1.0, 1.0), organ_channel=False)
    body = geometry.Body(body.volume, body.inside, body.spacing, 7.5, body.box)
    (heat,), logits = inferer(method=method, size=16).single_views(body, network, (1,), axes=(2,))
    slices = image.permute(3, 0, 1, 2)
    expected = getattr(cam, name)(network, "1")(slices, target=1)
    torch.testing.assert_close(heat.permute(2, 0, 1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, network(slices)[:, 0])


def test_three_views_are_the_mean_of_the_views_along_each_axis(phantom):
    body = geometry.crop_to_organ(phantom, SPACING)
    heat = inferer(method="layercam", views="three").heatmaps(body, Pooled())[0]["layercam"]
    parts = []
    for axis in range(3):
        order = [a for a in range(3) if a != axis] + [axis]
        turned = phantom.permute(0, *(a + 1 for a in order))
        other = geometry.crop_to_organ(turned, [SPACING[a] for a in order])
        axial = inferer(method="layercam").heatmaps(other, Pooled())[0]["layercam"]
        parts.append(axial.permute(*[order.index(a) for a in range(3)]))
    inner = F.max_pool3d(1.0 - body.inside.float()[None, None], 5, 1, 2)[0, 0] == 0
    torch.testing.assert_close(heat[inner], torch.stack(parts).mean(0)[inner], atol=1e-4, rtol=1e-3)


def test_layers_together_equal_layers_alone(phantom):
    body = geometry.crop_to_organ(phantom, SPACING)
    tool = inferer(method="averaged_cam", num_slices=8, num_directions=10)
    both, _, _ = tool.map_volumes(body, Pooled(), (1, 2), kinds=("averaged", "tomographic"))
    for layer, volume in zip((1, 2), both, strict=True):
        (alone,), _, _ = tool.map_volumes(body, Pooled(), (layer,), kinds=("tomographic",))
        torch.testing.assert_close(volume["tomographic"], alone["tomographic"])


def test_stacks_are_volumes_of_their_own_and_overlaps_are_means(phantom):
    network = Sum(0.02)
    tool = inferer(stack=8, num_slices=12, num_directions=20)
    maps, probability = tool.volumes(phantom, SPACING, network)
    alone = inferer(num_slices=12, num_directions=20)
    heats, chances = torch.zeros(SHAPE), torch.zeros(2, SHAPE[-1])
    count = torch.zeros(SHAPE[-1])
    for start in (0, 4, 8, 12):
        part = slice(start, start + 8)
        stack_maps, stack_chances = alone.volumes(phantom[..., part], SPACING, network)
        heats[..., part] += stack_maps["tonno"]
        chances[:, part] += stack_chances
        count[part] += 1
    torch.testing.assert_close(maps["tonno"], heats / count)
    torch.testing.assert_close(probability, chances / count)


def test_a_volume_without_organ_is_certainly_negative():
    output = inferer(num_slices=8, num_directions=4)(torch.zeros(1, 2, 6, 6, 6), Sum(1.0))[0]
    assert (output[1] == 0).all()
    assert (output[2] == 1).all()


def test_bfloat16_gives_nearly_the_same(phantom):
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(8, 1))
    options = {"num_slices": 12, "num_directions": 20}
    body = geometry.crop_to_organ(phantom, SPACING)
    full, _ = inferer(**options).profiles(body, network)
    half, _ = inferer(precision="bfloat16", **options).profiles(body, network)
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "scam"}, "method must be one of"),
        ({"views": "all"}, "views must be one of"),
        ({"geometry": "cube"}, "geometry must be one of"),
        ({"precision": "half"}, "precision must be one of"),
        ({"cam": "tonno"}, "cam must be one of"),
        ({"cam_layer": 0}, "cam_layer counts from 1"),
        ({"stack": -1}, "stack must be a number of slices"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        inferer(**options)


def test_a_layer_or_head_that_does_not_fit_is_explained(phantom):
    with pytest.raises(ValueError, match="cam_layer 3 does not exist: Pooled has 2 stages"):
        inferer(method="layercam", cam_layer=3)(meta(phantom), Pooled())
    two = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="one logit for each slice"):
        inferer(num_slices=4, num_directions=4)(meta(phantom), two)


def test_a_wrapped_network_is_unwrapped(phantom):
    wrapped = SimpleNamespace(module=Sum(0.01))
    tool = inferer(num_slices=8, num_directions=6)
    assert torch.equal(tool(meta(phantom), wrapped), tool(meta(phantom), wrapped.module))
