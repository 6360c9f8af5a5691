"""Images in color: training of one epoch, masks and heatmaps in the images' formats."""

from __future__ import annotations

from common.files import read_json
from tests.bundles.colors import CHOSEN, check_results, write_colors
from tests.bundles.conftest import run_bundle

BUNDLE = "ensemble_gradcam_brats"
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
    data, training = write_colors(tmp_path / "data"), tmp_path / "training"
    run_bundle(BUNDLE, ["train.json"], dataset_dir=data, output_dir=training, max_epochs=1, batch_size=4, **SMALL)
    assert read_json(training / "model.json")["seen"]["channels"] == ["channel 1", "channel 2", "channel 3"]
    shared = {"dataset_dir": data, "datalist": data / "datalist.json", "ckpt": training / "model.pt", **SMALL}
    run_bundle(BUNDLE, ["inference.json"], output_dir=tmp_path / "out", **shared, **COMBINED)
    check_results(tmp_path / "out", [3, 6, 9, 12])
