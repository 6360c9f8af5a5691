"""`explanations.json` of all bundles, on slices of a size that no network takes as it is."""

from __future__ import annotations

import csv

import pytest
import torch

from common.cam import PaddedSlices, SliceLogit, default_layer, grad_cam
from common.datasets import write_phantom
from common.encoders import encoder
from common.engines import SliceMapInferer
from tests.bundles.conftest import load_script, run_bundle

backbones = load_script("gp_unet_brats", "backbones")
ensemble = load_script("ensemble_gradcam_brats", "networks")
insight = load_script("insight_ct", "networks")
# What the shipped weights are for is of no matter here; few planes make ToNNO fast, and what is explained is its logit
# of the slice's plane, also where inference reads the probability off the drawn map.
BUNDLES = {
    "gp_unet_brats": {},
    "ensemble_gradcam_brats": {},
    "tonno_mosmed": {"num_slices": 4, "num_directions": 4, "probability": "slices"},
    "insight_ct": {"organ": "brain", "image_pattern": "*/flair.nii.gz", "window": [0.0, 400.0]},
}
TINY = {
    "gp_unet": {"features": (4, 8, 16)},
    "gp_shuffle_unet": {"width": 4},
    "gp_recon_resnet": {"width": 4, "blocks": 2},
    "gp_efficientnet": {},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One case of 42 × 45 pixels with a mask, and no datalist."""
    folder = tmp_path_factory.mktemp("data")
    write_phantom(folder, cases=1, shape=(42, 45, 6), healthy_fraction=0.0)
    return folder


@pytest.mark.parametrize("bundle", BUNDLES)
def test_one_command_explains_what_inference_decided(bundle, data, tmp_path):
    options = {"dataset_dir": data, "datalist": None, "gate_smooth_mm": 0.0, **BUNDLES[bundle]}
    mask = {"label_pattern": "*/mask.nii.gz", "explained_slices": 2, "output_dir": tmp_path / "explained"}
    mask["patch"] = 24  # occlusion is a forward for each patch
    run_bundle(bundle, ["inference.json", "explanations.json"], **options, **mask)
    with open(tmp_path / "explained" / "explanations.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    run_bundle(bundle, ["inference.json"], **options, output_dir=tmp_path / "inferred")
    with open(tmp_path / "inferred" / "predictions.csv", encoding="utf-8") as file:
        (prediction,) = csv.DictReader(file)
    # The most probable slice of a volume is what it is suspected for.
    assert float(rows[0]["probability"]) == pytest.approx(1 - float(prediction["probability_none"]), abs=1e-3)


@pytest.mark.parametrize("backbone", TINY)
def test_every_network_of_the_gp_family_names_a_layer_and_is_explained_in_any_size(backbone):
    options = {"in_channels": 1, "num_classes": 3, "dropout": 0.0, "organ_channel": True, "options": TINY[backbone]}
    network = backbones.gp_network(backbone, **options).eval()
    volume = torch.rand(2, 37, 43, 3)
    layer = f"network.{default_layer(network)}"
    views = PaddedSlices(SliceMapInferer(divisor=16))(volume, 1)
    logit = SliceLogit(network).at(volume[None, 1:, ..., 1], shown=2, views=views)
    heat = logit.mean_map(lambda part, image: grad_cam(part, image, layer), volume[None, :1, ..., 1])
    assert heat.shape == (37, 43)


@pytest.mark.parametrize(
    ("members", "layer"),
    [
        (["resnet10", "efficientnet_lite0"], "members.0.body.layer4"),  # paper.json's are ResNets
        (["efficientnet_lite0"], "members.0.body.encoder._blocks.4"),
    ],
)
def test_every_ensemble_names_a_layer(members, layer):
    network = ensemble.EnsembleNet(members)
    assert default_layer(network) == layer
    assert network.get_submodule(layer)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"stride": 8, "levels": [4, 8]}, "encoder.body.encoder._blocks.2"),
        ({"stride": 16, "levels": [4, 8, 16]}, "encoder.body.encoder._blocks.4"),
        ({"stride": 8, "levels": [8], "modalities": 2}, "head.adapt"),
    ],
)
def test_insight_names_a_layer_whatever_its_encoder(options, layer):
    body = encoder("efficientnet_lite0", weights=None, **options)
    network = insight.Insight(body, insight.InsightHead(body.channels, 2, width=8)).eval()
    assert default_layer(network) == layer
    image = torch.rand(1, options.get("modalities", 1), 32, 32)
    logit = SliceLogit(network).at(torch.ones(1, 1, 32, 32), shown=2)
    assert grad_cam(logit, image, f"network.{layer}").shape == (32, 32)
