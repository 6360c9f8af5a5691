"""A network of stacks of slices in place of one of slices: `spatial_dims` 3."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from monai.transforms import Compose, ConcatItemsd, MaskIntensityd, RandFlipd, SelectItemsd

from common import training
from common.data import pseudo_masks
from common.engines import SliceMapInferer
from common.losses import BagLoss
from tests.bundles.conftest import load_script

backbones = load_script("gp_unet_brats", "backbones")
blocks = load_script("gp_unet_brats", "blocks")
pseudo = load_script("gp_unet_brats", "pseudo")
stacks = load_script("gp_unet_brats", "stacks")


def network(channels=1, **options):
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "organ_channel": True, "pool_at": "map", "options": {"features": (4, 8, 16)}} | options
    return backbones.gp_network("gp_unet", in_channels=channels, num_classes=3, spatial_dims=3, **settings).eval()


class TestNetwork:
    @pytest.mark.parametrize(("upsample", "count"), [("sinc", 5_136_771), ("transposed", 5_423_491)])
    def test_it_has_the_papers_widths(self, upsample, count):
        options = {"dropout": 0.5, "spatial_dims": 3, "options": {"upsample": upsample}}
        with torch.device("meta"):
            made = backbones.gp_network("gp_unet", in_channels=4, num_classes=3, **options)
        assert sum(p.numel() for p in made.parameters()) == count

    @pytest.mark.parametrize("upsample", ["sinc", "transposed", "bilinear"])
    @pytest.mark.parametrize("pool_at", ["features", "map"])
    def test_each_slice_has_its_logits_and_torchscript_gives_the_same(self, upsample, pool_at):
        made = network(2, pool_at=pool_at, options={"features": (4, 8, 16), "upsample": upsample})
        image = torch.rand(2, 3, 16, 12, 8)
        maps, logits = made.explain(image)
        assert (maps.shape, logits.shape) == ((2, 3, 16, 12, 8), (2, 3, 8))
        assert torch.equal(made(image), logits)
        torch.testing.assert_close(torch.jit.script(made)(image), logits, atol=1e-5, rtol=1e-4)

    def test_pooling_the_map_logits_of_a_slice_are_the_maxima_of_its_map_inside_the_organ(self):
        image = torch.rand(2, 2, 16, 12, 8)
        maps, logits = network().explain(image)
        inside = maps.masked_fill(image[:, 1:] <= 0.5, -torch.inf)
        torch.testing.assert_close(logits, inside.amax(dim=(2, 3)))

    def test_pooling_features_logits_of_a_slice_are_the_head_of_its_pooled_features(self):
        made, image = network(pool_at="features", organ_channel=False), torch.rand(2, 1, 16, 12, 8)
        torch.testing.assert_close(
            made(image), made.head(made.features(image).amax(dim=(2, 3), keepdim=True))[:, :, 0, 0]
        )

    def test_a_slice_is_judged_with_its_neighbors(self):
        image = torch.rand(1, 2, 16, 16, 8)
        other = image.clone()
        other[..., 4] = 0.9
        changed = (network()(image) - network()(other)).abs().amax(dim=1)[0]
        assert (changed[[3, 5]] > 0).all()

    def test_sizes_that_do_not_fit_name_the_divisor(self):
        said = r'H, W and D that divide by 4, got \[1, 1, 16, 16, 6\]: --slice_size "\[16, 16\]" --stack 8, or'
        with pytest.raises(ValueError, match=said):
            network()(torch.rand(1, 2, 16, 16, 6))
        with pytest.raises(ValueError, match="spatial_dims 3 takes batch, channels, H, W and D"):
            network()(torch.rand(1, 2, 16, 16))

    def test_networks_without_such_a_form_are_named(self):
        with pytest.raises(ValueError, match="gp_efficientnet is of slices"):
            backbones.gp_network("gp_efficientnet", in_channels=1, num_classes=2, dropout=0.0, spatial_dims=3)

    def test_sinc_upsampling_keeps_the_samples_it_started_from(self):
        image = torch.randn(1, 2, 8, 12, 4)
        torch.testing.assert_close(blocks.sinc_upsample(image)[..., ::2, ::2, ::2], image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 23])
def test_stacks_hold_all_slices_and_the_next_begins_within_the_first_half(count):
    found = stacks.stacks(count, 4)
    assert {len(places) for places in found} == {4}
    assert {place for places in found for place in places} == set(range(count))
    assert all(b[0] - a[0] <= 2 for a, b in pairwise(found))


def volume(depth: int, channels: int = 1) -> torch.Tensor:
    """Slice z holds z + 1 inside an organ that leaves a border free, and the first slice has none."""
    image = torch.arange(1.0, depth + 1).expand(channels, 8, 8, depth).clone()
    image[:, 0, 0] += 0.5
    organ = torch.zeros(1, 8, 8, depth)
    organ[:, 1:-1, :-1, 1:] = 1
    return torch.cat([image, organ])


def dataset(*labels, channels=1, **options):
    cases = [{"case": str(n), "cls": cls, "image": volume(7, channels)} for n, cls in enumerate(labels)]
    return stacks.StackDataset(cases, lambda case: case, progress=False, **({"spatial_dims": 3, "stack": 4} | options))


LABELS = [0, 0, 0, 0, 0, 1, 2]


class TestDataset:
    def test_items_are_stacks_of_slices_that_show_something_with_their_labels(self):
        items = list(dataset(LABELS))
        assert [item["image"][0, 4, 4].tolist() for item in items] == [[2, 3, 4, 5], [4, 5, 6, 7]]
        assert [item["slices"].tolist() for item in items] == [[0, 0, 0, 0], [0, 0, 1, 2]]
        assert [item["cls"] for item in items] == [0, 2]
        assert dataset(LABELS).slice_classes == [0, 0, 0, 0, 0, 0, 1, 2]
        assert [item["bag"] for item in items] == [-1, -1]
        assert torch.equal(items[1]["organ"], volume(7)[1:, ..., 3:])

    def test_stacks_of_a_volume_with_one_label_share_a_bag(self):
        data = dataset(1, 0)
        assert data.bags == [0, 0, 1, 1]
        assert [item["slices"].tolist() for item in data] == [[1] * 4] * 2 + [[0] * 4] * 2

    def test_augmentation_changes_all_slices_of_a_stack_alike(self):
        keys = ["image", "organ"]
        steps = [RandFlipd(keys, prob=0.5, spatial_axis=1), MaskIntensityd("image", mask_key="organ")]
        steps += [ConcatItemsd(keys, name="image"), SelectItemsd(["image", "cls", "bag"])]
        data = dataset(LABELS, channels=2, augment=Compose(steps).set_random_state(0))
        found = [data[1]["image"] for _ in range(8)]
        plain = volume(7, 2)[..., 3:]
        plain[:2] *= plain[2:]
        assert {bool(torch.equal(image, plain)) for image in found} == {True, False}
        assert all(torch.equal(image, plain) or torch.equal(image, plain.flip(2)) for image in found)

    def test_slices_alone_are_what_they_were(self):
        assert [item["image"].shape for item in dataset(LABELS, spatial_dims=2)] == [(1, 8, 8)] * 6


class TestTraining:
    """What a network says of stacks is of slices again."""

    def batch(self, *labels):
        items = list(dataset(*labels))
        return {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}

    def test_slices_with_labels_of_their_own_are_each_on_their_own(self):
        image, target = stacks.prepare_bags(self.batch(LABELS), torch.device("cpu"))
        assert image.shape == (2, 1, 8, 8, 4)
        assert target["cls"].tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
        assert target["bag"].tolist() == [-1] * 8
        logits = stacks.LogitsInferer()(image, lambda image: image.mean(dim=(2, 3)).repeat(1, 3, 1))
        assert [round(float(v)) for v in logits[:, 0]] == [2, 3, 4, 5, 4, 5, 6, 7]

    def test_the_slices_of_a_volume_with_one_label_are_pooled(self):
        _, target = stacks.prepare_bags(self.batch(1, 0), torch.device("cpu"))
        logits = torch.zeros(16, 2)
        logits[6, 1], logits[8:, 0] = 9.0, 9.0  # one slice of the ill one decides
        assert float(BagLoss(torch.nn.CrossEntropyLoss(), pool="max")(logits, target)) < 1e-3

    def test_a_stack_has_the_highest_evidence_of_its_slices(self):
        logits = torch.tensor([[[1.0, 5.0], [3.0, 6.0]]])
        assert stacks.LogitsInferer(of="stacks")(torch.zeros(1), lambda _: logits).tolist() == [[0.0, 2.0]]
        with pytest.raises(ValueError, match="'slices' or 'stacks', got 'bags'"):
            stacks.LogitsInferer(of="bags")

    def test_pseudo_masks_are_learned_from_slice_by_slice(self):
        inferer = stacks.StackMapInferer(spatial_dims=3, stack=4, divisor=4)
        teacher = {"teacher": network(), "inferer": inferer, "threshold": -9.0}  # everything
        teacher["refine"] = {"dilate_mm": 0.0, "intensity": 0.0}
        items = list(dataset(LABELS, targets=partial(pseudo_masks, **teacher)))
        batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
        batch["image"] = torch.cat([batch["image"], batch["organ"]], dim=1)
        image, target = pseudo.prepare_batch(batch, torch.device("cpu"))
        assert target["pseudo"].shape == target["organ"].shape == (8, 1, 8, 8)
        assert target["pseudo"].flatten(1).any(1).tolist() == [False] * 6 + [True] * 2
        output = pseudo.Explained(network())(image)
        assert [part.shape[0] for part in output] == [8, 8]
        assert torch.isfinite(pseudo.PseudoMaskLoss()(output, target))

    def test_batches_of_stacks_and_of_slices_go_to_the_device(self):
        for image in (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8, 4)):
            prepared, _ = training.prepare_batch({"image": image, "cls": torch.zeros(2)}, torch.device("cpu"))
            assert torch.equal(prepared, image)


class Neighbors(torch.nn.Module):
    """The map of class 1 is the sum over a slice and the one above, if its stack has one; its maximum is the logit."""

    num_classes = 2

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def explain(self, image):
        image = image[:, :1]
        if image.dim() == 5:
            assert image.shape[-1] == 4
            image = image + self.above * torch.cat([image[..., 1:], torch.zeros_like(image[..., :1])], dim=-1)
        maps = torch.cat([torch.zeros_like(image), image], dim=1)
        return maps, maps.amax(dim=(2, 3))


class TestInference:
    def maps(self, above, **options):
        options = {"spatial_dims": 3, "stack": 4, "batch_size": 4, "divisor": 4} | options
        return stacks.StackMapInferer(**options)(volume(7)[None], Neighbors(above))

    @pytest.mark.parametrize("options", [{}, {"batch_size": 9}, {"window": [6, 10]}, {"flip": True}])
    def test_a_network_that_does_not_look_at_neighbors_gives_what_one_of_slices_gives(self, options):
        window = {"window": options["window"]} if "window" in options else {}
        torch.testing.assert_close(
            self.maps(0.0, **options), SliceMapInferer(divisor=4, **window)(volume(7)[None], Neighbors(0.0))
        )

    def test_a_slice_has_the_mean_over_the_stacks_that_hold_it(self):
        found = self.maps(1.0)[0, 1, 4, 4]
        # Stacks hold the slices 1 to 4 and 3 to 6, of values 2 to 7; slice 4 is the last of the first one.
        assert found.tolist() == [0, 5, 7, 9, (5 + 11) / 2, 13, 7]
