"""Images in color: training of one epoch, masks and heatmaps in the images' formats."""

from __future__ import annotations

from tests.bundles.colors import CHOSEN, train_and_mark

SMALL = {"channels": 3, "organ": "none", "classes": ["none", "red"], "zoom": 1.0, "width": 8}


def test_weights_of_three_channels_can_be_used(tmp_path):
    train_and_mark("insight_ct", tmp_path, SMALL, CHOSEN)
