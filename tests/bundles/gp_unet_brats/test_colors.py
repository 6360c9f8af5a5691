"""Images in color: labels in, `fit` with three channels, scores, masks and heatmaps in the images' formats out."""

from __future__ import annotations

from pathlib import Path

import pytest

import common.commands.fit_runs
from common.commands.fit import fit
from common.files import read_json
from tests.bundles.colors import check_results, write_colors
from tests.bundles.conftest import run_bundle

BUNDLE = "gp_unet_brats"
SMALL = {"channels": 3, "backbone": "gp_unet", "network_options": {"features": [4, 8, 16]}, "organ": "none"}
SMALL |= {
    "spacing": [-1.0, -1.0, -1.0],
    "slice_size": [48, 48],
    "max_epochs": 3,
    "batch_size": 4,
    "min_slices_per_epoch": 0,
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """Folder of what `fit` leaves; its runs are forked."""
    home = tmp_path_factory.mktemp("colors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.commands.fit_runs, "run_bundle", run_bundle)
        fit(BUNDLE, str(write_colors(home / "data")), str(home / "out"), rounds=0, **SMALL)
    return home / "out"


def test_one_image_of_three_channels_is_described_by_channel(fitted):
    seen = read_json(fitted / "training" / "model.json")["seen"]
    assert seen["channels"] == ["channel 1", "channel 2", "channel 3"]
    assert len(seen["quantiles"]) == 3


def test_thresholds_and_scores_come_from_the_labels(fitted):
    assert read_json(fitted / BUNDLE / "models" / "model.json")["chosen_from"]["positives"] == 6  # of training, too
    assert read_json(fitted / "evaluation" / "labels.json")["volumes"]["positives"] == 2


def test_every_image_gets_a_mask_and_a_heatmap_of_its_size_and_format(fitted):
    check_results(fitted / "masks", list(range(16)))


def test_the_bundle_says_that_it_takes_three_channels(fitted):
    image = read_json(fitted / BUNDLE / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 4
    assert list(image["channel_def"].values()) == ["channel 1", "channel 2", "channel 3", "brain mask"]
    assert "image, 3 channels" in (fitted / BUNDLE / "docs" / "README.md").read_text()
