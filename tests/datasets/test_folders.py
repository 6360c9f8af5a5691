from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import folder
from tests.pipeline import save as save_volume


def save(path: Path, volume: np.ndarray) -> str:
    return save_volume(path, volume.astype(np.uint8))


def mask_of(*slices: int, depth: int = 4) -> np.ndarray:
    mask = np.zeros((5, 6, depth))
    mask[2, 3, list(slices)] = 4
    return mask


def test_reads_cases_with_labels_where_there_is_a_mask_and_names_the_others(tmp_path, caplog):
    save(tmp_path / "P1_a" / "flair.nii.gz", np.ones((5, 6, 4)))
    save(tmp_path / "P1_a" / "mask.nii.gz", mask_of(0, 3))
    save(tmp_path / "P1_b" / "flair.nii.gz", np.ones((5, 6, 4)))
    first, second = folder(tmp_path, patient_separator="_")
    assert first == {
        "case": "P1_a",
        "patient": "P1",
        "image": str(tmp_path / "P1_a" / "flair.nii.gz"),
        "label": str(tmp_path / "P1_a" / "mask.nii.gz"),
        "cls": [1, 0, 0, 1],
    }
    assert second.keys() == {"case", "patient", "image"}
    assert "1 case(s) have no mask '*/mask.nii.gz', and so no label: P1_b" in caplog.text
    assert folder(tmp_path)[0]["patient"] == "P1_a"


def test_several_modalities_make_a_list_and_masks_can_be_ignored(tmp_path, caplog):
    for name in ("flair", "t1", "mask"):
        save(tmp_path / "a" / f"{name}.nii.gz", mask_of(1))
    (case,) = folder(tmp_path, modalities=("t1", "flair"), label=None)
    assert case["image"] == [str(tmp_path / "a" / "t1.nii.gz"), str(tmp_path / "a" / "flair.nii.gz")]
    assert "label" not in case
    assert "no mask" not in caplog.text


def test_the_organs_mask_comes_along_where_it_is_asked_for(tmp_path):
    for name in ("flair", "mask", "brain"):
        save(tmp_path / "a" / f"{name}.nii.gz", mask_of(1))
    (case,) = folder(tmp_path, organ="brain")
    assert case["organ"] == str(tmp_path / "a" / "brain.nii.gz")
    assert "organ" not in folder(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match=r"'\*/lung.nii.gz' beside a/flair.nii.gz"):
        folder(tmp_path, organ="lung")


def test_a_case_without_a_modality_is_left_out_where_that_is_asked_for(tmp_path):
    for name in ("a/flair", "a/t1", "b/flair"):
        save(tmp_path / f"{name}.nii.gz", mask_of(1))
    with pytest.raises(FileNotFoundError, match=r"'\*/t1.nii.gz' beside b/flair.nii.gz"):
        folder(tmp_path, modalities=("flair", "t1"))
    cases = folder(tmp_path, modalities=("flair", "t1"), skip_incomplete=True)
    assert [case["case"] for case in cases] == ["a"]


def test_volume_labels_tell_empty_masks_from_others(tmp_path):
    for name, slices in (("a", (1,)), ("b", ())):
        save(tmp_path / name / "flair.nii.gz", np.ones((5, 6, 4)))
        save(tmp_path / name / "lesion.nii.gz", mask_of(*slices))
    assert [c["cls"] for c in folder(tmp_path, label="lesion", cls_per="volume")] == [1, 0]
    with pytest.raises(ValueError, match="cls_per must be 'slice' or 'volume'; got 'patient'"):
        folder(tmp_path, cls_per="patient")


def test_sessions_of_a_patient_are_cases_of_one_patient(tmp_path):
    for name in ("P1/ses1", "P1/ses2", "P2/ses1"):
        save(tmp_path / name / "flair.nii.gz", np.ones((5, 6, 4)))
        save(tmp_path / name / "lesion.nii.gz", mask_of(2))
    cases = folder(tmp_path, label="lesion", pattern="*/*/{}.nii.gz")
    assert [(c["case"], c["patient"], c["cls"]) for c in cases] == [
        ("P1_ses1", "P1", [0, 0, 1, 0]),
        ("P1_ses2", "P1", [0, 0, 1, 0]),
        ("P2_ses1", "P2", [0, 0, 1, 0]),
    ]


def test_pairs_masks_of_other_names_as_the_isbi_challenge_has_them(tmp_path):
    for session in ("01", "02"):
        for name in ("flair", "t2"):
            save(tmp_path / "training03" / "preprocessed" / f"training03_{session}_{name}_pp.nii", np.ones((5, 6, 4)))
        for rater in ("1", "2"):
            mask = mask_of(int(session)) if rater == "1" else mask_of()
            save(tmp_path / "training03" / "masks" / f"training03_{session}_mask{rater}.nii", mask)
    cases = folder(
        tmp_path,
        modalities=("flair", "t2"),
        pattern="*/preprocessed/*_{}_pp.nii",
        label_pattern="*/masks/*_mask1.nii",
    )
    assert [(c["patient"], c["cls"]) for c in cases] == [("training03", [0, 1, 0, 0]), ("training03", [0, 0, 1, 0])]
    assert [Path(p).name for p in cases[1]["image"]] == ["training03_02_flair_pp.nii", "training03_02_t2_pp.nii"]


def test_counts_slices_of_the_real_gliomas(real_data):
    cases = folder(real_data("lgg"))
    labels = [label for case in cases for label in case["cls"]]
    assert (len(cases), len(labels), sum(labels)) == (82, 2823, 969)


def test_files_of_one_folder_are_patients_of_their_own_name(tmp_path):
    for name in ("P1_a", "P1_b", "P2_a"):
        for kind, value in (("images", 9), ("masks", int("a" in name))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 5), value, np.uint8)).save(tmp_path / kind / f"{name}.png")
    layout = {"modalities": ("images",), "label": "masks", "pattern": "{}/*.png"}
    cases = folder(tmp_path, **layout)
    assert [(c["patient"], c["cls"]) for c in cases] == [("P1_a", [1]), ("P1_b", [0]), ("P2_a", [1])]
    assert [c["patient"] for c in folder(tmp_path, **layout, patient_separator="_")] == ["P1", "P1", "P2"]


@pytest.mark.parametrize(
    ("files", "pattern", "patients"),
    [
        (("data/P1/scans/flair", "data/P2/scans/flair"), "data/*/scans/{}.nii.gz", ["P1", "P2"]),
        (("data/scans/scans/flair", "data/P2/scans/flair"), "data/*/scans/{}.nii.gz", ["P2", "scans"]),  # called so
        (("P1.2_flair", "P1.3_flair"), "*_{}.nii.gz", ["P1.2_flair", "P1.3_flair"]),
    ],
)
def test_folders_that_the_pattern_names_are_nobodys(tmp_path, files, pattern, patients):
    for name in files:
        save(tmp_path / f"{name}.nii.gz", np.ones((5, 6, 4)))
    assert [case["patient"] for case in folder(tmp_path, pattern=pattern, label=None)] == patients
