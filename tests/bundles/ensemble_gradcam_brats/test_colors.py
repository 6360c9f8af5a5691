"""Images in color: training of one epoch, masks and heatmaps in the images' formats."""

from __future__ import annotations

from tests.bundles.colors import CHOSEN, train_and_mark

SMALL = {"channels": 3, "organ": "none", "spacing": [-1.0, -1.0, -1.0], "window": [48, 48], "map_width": 0}
SMALL |= {"classes": ["none", "red"], "members": [{"backbone": "resnet10", "width": 0.125}], "pretrained": {}}
COMBINED = CHOSEN | {
    "combine": "mean",
    "thresholds": [0.5],
    "use": None,
    "normalize_maps": "slice",
    "intensity_mask": None,
}


def test_weights_of_three_channels_can_be_used(tmp_path):
    train_and_mark("ensemble_gradcam_brats", tmp_path, SMALL, COMBINED, min_slices_per_epoch=0)
