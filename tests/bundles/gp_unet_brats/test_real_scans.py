"""The weights that test patients score, where there are real scans: the documented scores are those of the files."""

from __future__ import annotations

import csv

import nibabel as nib
import pytest

from common.metrics import dice
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json

ROOT = REPOSITORY / "bundles" / "gp_unet_brats"
CASES = ("TCGA_CS_6290_20000917", "TCGA_HT_7602_19951103")


def test_split_holds_every_patient_once():
    split = read_json(ROOT / "docs" / "lgg_split.json")
    patients = [patient for part in split.values() for patient in part]
    assert len(patients) == len(set(patients)) == 82
    assert {name: len(part) for name, part in split.items()} == {"training": 50, "validation": 12, "test": 20}


@pytest.mark.parametrize("case", CASES)
def test_tested_weights_give_the_documented_dice_on_unseen_patients(case, real_data, tmp_path):
    data = real_data("lgg")
    assert case in read_json(ROOT / "docs" / "lgg_split.json")["test"]
    monai_bundle(
        *(
            "run",
            "--config_file",
            str([str(ROOT / "configs" / f"{name}.json") for name in ("inference", "lgg_tested")]),
        ),
        *("--dataset_dir", str(data)),
        *("--image_pattern", f"{case}/flair.nii.gz", "--output_dir", str(tmp_path), "--progress", "False"),
    )
    with open(ROOT / "docs" / "test_metrics.csv", encoding="utf-8") as file:
        documented = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
    pred = nib.load(tmp_path / f"{case}_seg.nii.gz").get_fdata() > 0
    truth = nib.load(data / case / "mask.nii.gz").get_fdata() > 0
    assert dice(pred, truth) == pytest.approx(documented[case], abs=0.02)
