"""`fit` on slices of two classes, none of them healthy: from a table of labels to scored masks and a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import common.commands.fit_runs
from common.commands.fit import fit
from common.commands.prepare import prepare
from common.files import read_json
from tests.bundles.conftest import run_bundle
from tests.bundles.gp_unet_brats.test_pictures import CLASSES, write_pictures

SMALL = {"backbone": "gp_unet", "network_options": {"features": [4, 8, 16]}, "organ": "none", "batch_size": 4}
SMALL |= {"spacing": [-1.0, -1.0, -1.0], "slice_size": [48, 48], "max_epochs": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """Folder of the results, and what was printed; the runs are forked."""
    home, printed = tmp_path_factory.mktemp("classes"), []
    (home / "data").mkdir()
    write_pictures(home / "data")
    prepare("table", str(home / "data" / "labels.csv"), classes=",".join(CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.commands.fit_runs, "run_bundle", run_bundle)
        patch.setattr("builtins.print", lambda *lines, **_: printed.extend(lines))
        fit("gp_unet_brats", str(home / "data"), str(home / "out"), **SMALL)
    return home / "out", "\n".join(map(str, printed))


def test_the_bundle_says_that_every_slice_passes_and_is_cut_by_otsu(finished):
    out, printed = finished
    beside = read_json(out / "gp_unet_brats" / "models" / "model.json")
    assert (beside["chosen"]["gate"], beside["chosen"]["binarize"]) == (0.0, "otsu")
    assert (beside["chosen_from"]["positives"], beside["chosen_from"]["negatives"]) == (3, 0)
    assert beside["chosen_from"]["rule"] == "no label says that nothing is there: every case is marked, cut by Otsu"
    assert beside["chosen_from"]["rule"] in printed
    assert not (out / "round1").exists()


def test_every_slice_has_a_mask_of_one_class(finished):
    masks = [np.asarray(Image.open(path)) for path in sorted((finished[0] / "masks").glob("*_seg.png"))]
    assert len(masks) == 12
    for mask in masks:
        assert mask.shape == (36, 44)
        assert len(set(np.unique(mask)) - {0}) == 1


def test_classes_and_masks_of_the_test_section_are_scored(finished):
    out, printed = finished
    scores = read_json(out / "evaluation" / "class_scores.json")
    assert np.sum(scores["confusion"]) == scores["slices"] == 3
    assert "test, from labels: class accuracy" in printed
    assert "3 of 3 cases marked" in printed
    assert scores["masks"]["all"]["dice_mask"]["mean"] > 0
    assert (out / "evaluation" / "report.html").is_file()
