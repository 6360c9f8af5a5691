from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet10
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.cam import CAM, GradCAM, ScoreCAM, SmoothGradCAMpp, upsample_maps
from tests.cam.networks import Wrapped, pooled, random_images, small_network


def checkpointed(reentrant: bool | None) -> Wrapped:
    """A network whose `block` runs inside `torch.utils.checkpoint` (None: does not)."""

    def function(network, x):
        features = network.early(x)
        if reentrant is None:
            return network.head(pooled(network.block(features)))
        return network.head(pooled(checkpoint(network.block, features, use_reentrant=reentrant)))

    torch.manual_seed(0)
    network = Wrapped(function)
    network.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    return network


class TestErrors:
    def test_unknown_layers_get_near_names(self):
        network = resnet10(spatial_dims=2, n_input_channels=1)
        with pytest.raises(ValueError, match=r"ResNet has no layer 'layer_4'.*'layer4'"):
            GradCAM(network, "layer_4")
        with pytest.raises(ValueError, match=r"did you mean one of \['conv1', 'bn1'"):
            GradCAM(network, "##")
        with pytest.raises(ValueError, match="the Conv2d given as layer is no part of this ResNet"):
            GradCAM(network, nn.Conv2d(1, 1, 1))
        with pytest.raises(ValueError, match="at least one layer"):
            GradCAM(network, [])

    @pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
    def test_a_layer_that_does_not_run(self, method):
        network = Wrapped(lambda n, x: n.head(pooled(n.early(x))))
        with pytest.raises(ValueError, match=r"does not run layer\(s\) \['other'\]"):
            method(network, ["early", "other"])(random_images(), 1)

    @pytest.mark.parametrize(
        "function",
        [
            lambda n, x: n.head(pooled(n.early(x))) + 0 * n.other(x).sum().item(),
            lambda n, x: n.head(pooled(n.early(x) + n.other(x).detach())),
        ],
    )
    def test_a_layer_beside_the_path_to_the_logits(self, function):
        for layers in ("other", ["early", "other"]):
            with pytest.raises(ValueError, match="the logits do not depend on layer 'other'"):
                GradCAM(Wrapped(function), layers)(random_images(), 1)

    @pytest.mark.parametrize(
        ("reentrant", "layer"), [(True, "early"), (True, "block"), (True, "block.0"), (False, "block.0")]
    )
    def test_a_checkpoint_that_keeps_the_gradient_from_a_layer(self, reentrant, layer):
        network = checkpointed(reentrant)
        with pytest.raises(ValueError, match=r"torch\.utils\.checkpoint.*switch it off.*or use ScoreCAM") as error:
            GradCAM(network, layer)(random_images(), 1)
        assert f"'{layer}'" in str(error.value)
        maps = [ScoreCAM(one, layer)(random_images(), 1) for one in (network, checkpointed(None))]
        torch.testing.assert_close(*maps)

    @pytest.mark.parametrize("layer", ["early", "block"])
    def test_a_checkpoint_that_keeps_no_gradient_back_changes_nothing(self, layer):
        maps = [GradCAM(checkpointed(reentrant), layer)(random_images(), 1) for reentrant in (False, None)]
        torch.testing.assert_close(*maps)

    def test_a_layer_that_runs_without_gradients(self):
        def function(network, x):
            with torch.no_grad():
                return network.head(pooled(network.early(x)))

        with pytest.raises(ValueError, match=r"layer 'early' runs inside torch\.no_grad\(\)"):
            GradCAM(Wrapped(function), "early")(random_images(), 1)

    @pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
    def test_layers_of_compiled_modules_are_refused_with_what_to_give_instead(self, method):
        images = random_images()
        for whole in (
            torch.jit.trace(small_network(), images),
            torch.jit.freeze(torch.jit.trace(small_network(), images)),
        ):
            with pytest.raises(ValueError, match=r"the network is traced.*\(torch\.jit\).*give the module from before"):
                method(whole, "late")
        network = Wrapped(lambda n, x: n.head(pooled(n.part(n.early(x)))))
        for compiled, layer, compiler in (
            (torch.jit.script, "part", "torch.jit"),
            (torch.jit.script, "part.1", "torch.jit"),
            (torch.compile, "part._orig_mod.1", "torch.compile"),
        ):
            network.part = compiled(nn.Sequential(nn.Identity(), nn.ReLU()))
            with pytest.raises(ValueError, match=f"layer '{layer}' is part of a module compiled by {compiler}"):
                method(network, layer)
        network = small_network()
        network.compile()
        with pytest.raises(ValueError, match=r"layer 'late' is part of a module compiled by torch\.compile"):
            method(network, "late")

    def test_of_a_compiled_network_the_original_is_explained(self):
        network = small_network()
        maps = GradCAM(torch.compile(network), "late")(random_images(), 1)
        torch.testing.assert_close(maps, GradCAM(network, "late")(random_images(), 1))

    def test_a_layer_that_runs_twice(self):
        network = Wrapped(lambda n, x: n.head(pooled(n.relu(n.relu(n.early(x)) - 0.1))))
        with pytest.raises(ValueError, match="layer 'relu' runs more than once"):
            GradCAM(network, "relu")(random_images(), 1)

    def test_a_layer_without_a_map(self):
        network = small_network()
        with pytest.raises(ValueError, match=r"layer 'head' must return \[3, C, \*spatial\].*got \[3, 3\]"):
            GradCAM(network, "head")(random_images(), 1)
        pair = nn.AdaptiveMaxPool2d(1, return_indices=True)
        network = Wrapped(lambda n, x: n.head(n.relu(x)[0].flatten(1)))
        network.relu = pair
        with pytest.raises(ValueError, match=r"layer 'relu' must return.*got tuple"):
            GradCAM(network, "relu")(random_images(), 1)

    def test_a_network_that_returns_no_logits(self):
        for function, got in ((lambda n, x: (n.early(x), 1), "tuple"), (lambda n, x: n.early(x), r"\[3, 4, 8, 6\]")):
            with pytest.raises(ValueError, match=rf"one tensor of logits \[3, K\]; got {got}"):
                GradCAM(Wrapped(function), "early")(random_images(), 1)

    def test_images_without_batch_axis(self):
        with pytest.raises(ValueError, match=r"images must be.*got shape \[2, 10, 8\]"):
            GradCAM(small_network(), "late")(random_images()[0], 1)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (3, r"0…2 for 3 logit\(s\); got 3"),
            (-1, "got -1"),
            ([0, 1, 5], r"got \[0, 1, 5\]"),
            ([0, 1], r"shape \[3\]; got \[2\]"),
            (1.0, "integers"),
            (torch.tensor([True, False, True]), "integers"),
            ("max", "'max'"),
        ],
    )
    @pytest.mark.parametrize("method", [GradCAM, ScoreCAM, SmoothGradCAMpp, CAM])
    def test_targets_that_do_not_exist(self, method, target, message):
        with pytest.raises(ValueError, match=message):
            method(small_network(), "late")(random_images(), target)

    def test_cam_needs_the_average_of_the_layer_at_a_linear_head(self):
        images = random_images()
        with pytest.raises(ValueError, match="'head' does not see the average of layer 'norm'; use GradCAM"):
            CAM(small_network(), "norm")(images, 1)
        network = small_network()
        network.pool = nn.AdaptiveMaxPool2d(1)
        with pytest.raises(ValueError, match="does not see the average"):
            CAM(network, "late")(images, 1)
        with pytest.raises(ValueError, match="no linear layer"):
            CAM(small_network(head=False), "late")
        network = small_network()
        network.head = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        with pytest.raises(ValueError, match=r"'head.0' has 4 outputs for 3 logits"):
            CAM(network, "late", head="head.0")(images, 1)

    def test_options_out_of_range(self):
        with pytest.raises(ValueError, match="chunk"):
            ScoreCAM(small_network(), "late", chunk=0)
        with pytest.raises(ValueError, match="samples"):
            SmoothGradCAMpp(small_network(), "late", samples=0)
        with pytest.raises(ValueError, match="other number of axes"):
            upsample_maps(torch.zeros(1, 4, 4), (8, 8, 8))
