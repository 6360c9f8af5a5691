"""Where there are real scans: the documented scores of test patients are those of the weights in the repository."""

from __future__ import annotations

import csv

import nibabel as nib
import pytest

from common.metrics import dice
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json

BUNDLES = REPOSITORY / "bundles"
# The split that names the test patients, whom the weights of `lgg_tested.json` have not seen, and one of them.
SCORED = {
    "gp_unet_brats": ("gp_unet_brats/docs/lgg_split.json", "TCGA_CS_6290_20000917"),
    "ensemble_gradcam_brats": ("ensemble_gradcam_brats/docs/lgg_fold0.json", "TCGA_CS_4941_19960909"),
    "tonno_mosmed": ("gp_unet_brats/docs/lgg_split.json", "TCGA_CS_5393_19990606"),
}


@pytest.mark.parametrize(("split", "sizes"), [("gp_unet_brats", [50, 12, 20]), ("ensemble_gradcam_brats", [45, 9, 28])])
def test_split_holds_every_patient_once(split, sizes):
    sections = read_json(BUNDLES / SCORED[split][0])
    patients = [patient for section in sections.values() for patient in section]
    assert len(patients) == len(set(patients)) == 82
    assert [len(sections[name]) for name in ("training", "validation", "test")] == sizes


@pytest.mark.parametrize("bundle", SCORED)
def test_weights_give_the_documented_dice_on_unseen_patients(bundle, real_data, tmp_path):
    split, case = SCORED[bundle]
    data, root = real_data("lgg"), BUNDLES / bundle
    assert case in read_json(BUNDLES / split)["test"]
    configs = [str(root / "configs" / f"{name}.json") for name in ("inference", "lgg_tested")]
    monai_bundle(
        *("run", "--config_file", str(configs)),
        *("--dataset_dir", str(data), "--image_pattern", f"{case}/flair.nii.gz", "--output_dir", str(tmp_path)),
        *("--progress", "False"),
    )
    with open(root / "docs" / "test_metrics.csv", encoding="utf-8") as file:
        documented = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
    pred = nib.load(tmp_path / f"{case}_seg.nii.gz").get_fdata() > 0
    truth = nib.load(data / case / "mask.nii.gz").get_fdata() > 0
    assert dice(pred, truth) == pytest.approx(documented[case], abs=0.02)
