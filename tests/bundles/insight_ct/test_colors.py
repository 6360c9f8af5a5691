"""Images in color, TIFF among them: from labels to masks and heatmaps in the images' formats by `fit`."""

from __future__ import annotations

import common.commands.fit_runs
from common.commands.fit import fit
from common.files import read_json
from tests.bundles.colors import check_results, write_colors
from tests.bundles.conftest import run_bundle

SMALL = {"channels": 3, "organ": "none", "zoom": 1.0, "width": 8, "max_epochs": 1}


def test_pictures_are_fitted_as_slices_of_three_channels_and_no_tiff_is_taken_for_a_slide(tmp_path, monkeypatch):
    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", run_bundle)
    fit("insight_ct", str(write_colors(tmp_path / "data")), str(tmp_path / "out"), rounds=0, **SMALL)
    seen = read_json(tmp_path / "out" / "training" / "model.json")["seen"]
    assert seen["channels"] == ["channel 1", "channel 2", "channel 3"]
    check_results(tmp_path / "out" / "masks", list(range(16)))
