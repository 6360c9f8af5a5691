from __future__ import annotations

import json

import pytest
import tifffile
import torch

from common.commands.prepare import prepare
from tests.bundles.conftest import load_script, run_bundle
from tests.bundles.insight_ct.slides.helpers import (
    GLASS,
    LESION,
    LESIONS,
    TISSUE,
    TISSUE_BOX,
    corners_of,
    slide_case,
    write_annotation,
)

RED = (235, 130, 110)  # all tissue of slides with `high`; `low` is a lesion, so either may be without the other
LABELS = ("low;high", "no", "low", "high")
SIDE = 1250  # pixels twice as large as those of other slides


def test_several_labels_of_a_slide_are_learned_in_one_network(tmp_path):
    rows = ["image,label,patient,mask,split"]
    for number, section in enumerate(["training"] * 4 + ["validation"] * 4):
        label, name = LABELS[number % 4], f"s{number}"
        found = [] if label == "no" else label.split(";")
        tissue = (TISSUE_BOX[0], TISSUE_BOX[1] - 8 * number, *TISSUE_BOX[2:])
        options = {"lesions": LESIONS if "low" in found else (), "tissue": [tissue], "side": SIDE}
        slide_case(tmp_path, name, colors=(GLASS, RED if "high" in found else TISSUE, LESION), **options)
        boxes = [(one, box) for one in found for box in (LESIONS if one == "low" else (tissue,))]
        write_annotation(tmp_path / f"{name}.xml", [(one, corners_of(box, SIDE)) for one, box in boxes])
        rows.append(f"{name}.tif,{label},p{number},{f'{name}.xml' if found else ''},{section}")
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    prepare("table", str(tmp_path / "slides.csv"), classes="none,low,high")
    shared = {"dataset_dir": tmp_path, "store_dir": tmp_path / "store", "classes": ["none", "low", "high"]}
    shared |= {"mpp": 2.0, "width": 16}
    settings = {"max_epochs": 12, "bags_per_epoch": 8, "learning_rate": 0.005, "output_dir": tmp_path / "run"}
    run_bundle("insight_ct", ["train.json", "wsi.json", "wsi_labels.json"], **shared, **settings)
    weights = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert (weights["head.scale.spread"] != 1).all()
    configs = ["wsi_inference.json", "wsi_evaluate.json"]
    chosen = {"gate": [0.0, 0.0], "smooth_um": 0.0, "binarize": "otsu", "threshold": [0.5, 0.5]}
    where = {"ckpt": tmp_path / "run" / "model.pt", "section": "validation", "output_dir": tmp_path / "out"}
    run_bundle("insight_ct", configs, **shared, **chosen, **where)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["auc"] == {"low": 1.0, "high": 1.0}
    assert {name: scores["dice"]["count"] for name, scores in summary["labels"].items()} == {"low": 2, "high": 2}
    assert tifffile.imread(tmp_path / "out" / "s6_heatmap.ome.tif").shape[0] == 2
    assert len(list((tmp_path / "out").glob("*_heatmap_high.tif"))) == 4


def test_a_label_that_the_weights_do_not_know_is_told_with_its_case_before_any_slide_is_read():
    cases = [{"case": "a"}, {"case": "b", "cls": 2}]
    with pytest.raises(
        ValueError, match=r"case 'b': cls must be .*'tumor'.*; got 2. Do the weights have other classes"
    ):
        load_script("insight_ct", "slides.inference").SlideDataset(cases, classes=("none", "tumor"))
