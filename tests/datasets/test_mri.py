from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from common.datasets import brats2020, decathlon, kaggle_3m, read_cases
from tests.pipeline import affine_of, world
from tests.pipeline import save as save_volume


def save(path: Path, volume: np.ndarray, axcodes: str = "LPS") -> None:
    signs = [{"L": -1, "P": -1, "R": 1, "A": 1, "S": 1}[code] for code in axcodes]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.astype(np.uint8), np.diag([*signs, 1])), path)


def mask_of(*slices: int, depth: int = 4) -> np.ndarray:
    mask = np.zeros((5, 6, depth))
    mask[2, 3, list(slices)] = 4
    return mask


@pytest.fixture
def brats_root(tmp_path: Path) -> Path:
    for number, slices in (("001", (1, 2)), ("355", (3,)), ("002", ())):
        name = f"BraTS20_Training_{number}"
        for modality in ("flair", "t1", "t1ce", "t2"):
            save(tmp_path / name / f"{name}_{modality}.nii", np.ones((5, 6, 4)))
        save(tmp_path / name / ("W39_1998.09.19_Segm.nii" if number == "355" else f"{name}_seg.nii"), mask_of(*slices))
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2020_subject_ID\n"
        "HGG,x,BraTS20_Training_001\nLGG,y,BraTS20_Training_355\nLGG,z,BraTS20_Training_002\n"
    )
    return tmp_path


class TestBrats2020:
    def test_labels_slices_by_grade_where_the_mask_is_not_empty(self, brats_root):
        cases = brats2020(brats_root)
        assert [(c["case"][-3:], c["cls"]) for c in cases] == [
            ("001", [0, 2, 2, 0]),
            ("002", [0, 0, 0, 0]),
            ("355", [0, 0, 0, 1]),
        ]
        assert cases[2]["label"].endswith("W39_1998.09.19_Segm.nii")
        assert cases[0]["patient"] == "BraTS20_Training_001"

    def test_gives_modalities_in_the_documented_order(self, brats_root):
        name = "BraTS20_Training_001"
        assert brats2020(brats_root)[0]["image"] == [
            str(brats_root / name / f"{name}_{m}.nii") for m in ("t1", "t2", "t1ce", "flair")
        ]

    def test_binary_labels_ask_for_no_grade_and_modalities_come_as_chosen(self, brats_root):
        (brats_root / "name_mapping.csv").unlink()
        cases, classes, modalities = read_cases("brats2020", brats_root, binary=True, modalities=("t1ce", "flair"))
        assert [c["cls"] for c in cases] == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
        assert [Path(path).name[-9:] for path in cases[0]["image"]] == ["_t1ce.nii", "flair.nii"]
        assert (classes, modalities) == (("none", "tumor"), ("t1ce", "flair"))
        with pytest.raises(ValueError, match=r"modalities must be among .* got \('adc',\)"):
            brats2020(brats_root, modalities=["adc"])

    def test_says_what_is_missing(self, brats_root):
        path = brats_root / "BraTS20_Training_002" / "BraTS20_Training_002_t1ce.nii"
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"BraTS20_Training_002: no file 'BraTS20_Training_002_t1ce.nii\*'"):
            brats2020(brats_root)
        (brats_root / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\nHGG,BraTS20_Training_355\n")
        with pytest.raises(ValueError, match=r"Grade of BraTS20_Training_001 is None"):
            brats2020(brats_root)
        (brats_root / "name_mapping.csv").write_text("Grade,other\nHGG,x\n")
        with pytest.raises(ValueError, match="column 'BraTS_2020_subject_ID' is missing"):
            brats2020(brats_root)
        (brats_root / "name_mapping.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"name_mapping.csv does not exist"):
            brats2020(brats_root)
        with pytest.raises(FileNotFoundError, match=r"no folder BraTS20_Training_\*"):
            brats2020(brats_root / "BraTS20_Training_001")


@pytest.fixture
def kaggle_root(tmp_path: Path) -> Path:
    """Twelve slices of 8×6 pixels; slice n has the values n, 100 + n, 200 + n, and tumor if n is 2 or 10."""
    name = "TCGA_CS_4941_19960909"
    path = tmp_path / "kaggle_3m" / name
    path.mkdir(parents=True)
    for number in range(1, 13):
        image = np.broadcast_to(np.array([0, 100, 200]) + number, (8, 6, 3)).astype(np.uint8)
        mask = np.zeros((8, 6), np.uint8)
        if number in (2, 10):
            mask[7, 1] = 255  # low in the picture (posterior), left in the picture (patient's right)
        tifffile.imwrite(path / f"{name}_{number}.tif", image, photometric="rgb")
        tifffile.imwrite(path / f"{name}_{number}_mask.tif", mask)
    (path.parent / "data.csv").write_text("Patient\nTCGA_CS_4941\n")
    return path.parent


class TestKaggle3m:
    def test_orders_slices_by_number_and_labels_them(self, kaggle_root, tmp_path):
        (case,) = kaggle_3m(kaggle_root, tmp_path / "out")
        assert case["patient"] == "TCGA_CS_4941"
        assert case["cls"] == [int(n in (2, 10)) for n in range(1, 13)]
        np.testing.assert_array_equal(
            nib.Nifti1Image.from_filename(case["image"]).get_fdata()[0, 0], 100 + np.arange(1, 13)
        )

    def test_writes_lps_volumes_with_nominal_spacing(self, kaggle_root, tmp_path):
        (case,) = kaggle_3m(kaggle_root, tmp_path / "out")
        image, mask = nib.Nifti1Image.from_filename(case["image"]), nib.Nifti1Image.from_filename(case["label"])
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_zooms() == (1, 1, 5)
        assert image.shape == mask.shape == (6, 8, 12)
        # In LPS a low first index is the patient's right, a high second one posterior.
        found = np.argwhere(np.asanyarray(mask.dataobj))
        assert found.tolist() == [[1, 7, 1], [1, 7, 9]]

    def test_splits_channels_into_their_modalities(self, kaggle_root, tmp_path):
        (case,) = kaggle_3m(kaggle_root, tmp_path / "out", modalities=("post", "pre"))
        assert [int(nib.Nifti1Image.from_filename(p).get_fdata()[0, 0, 0]) for p in case["image"]] == [201, 1]

    def test_a_case_whose_owners_repeated_flair_for_a_modality_is_left_out_and_named(
        self, kaggle_root, tmp_path, caplog
    ):
        name = "TCGA_CS_4942_19970222"
        (kaggle_root / name).mkdir()
        image = np.broadcast_to(np.array([1, 101, 101]), (8, 6, 3)).astype(np.uint8)
        tifffile.imwrite(kaggle_root / name / f"{name}_1.tif", image, photometric="rgb")
        tifffile.imwrite(kaggle_root / name / f"{name}_1_mask.tif", np.zeros((8, 6), np.uint8))
        assert len(kaggle_3m(kaggle_root, tmp_path / "out", modalities=("pre", "flair"))) == 2
        assert caplog.text == ""
        (case,) = kaggle_3m(kaggle_root, tmp_path / "out", modalities=("post",))
        assert case["case"] == "TCGA_CS_4941_19960909"
        assert f"1 case(s) have FLAIR in place of another of post, and are left out: {name}" in caplog.text
        shutil.rmtree(kaggle_root / "TCGA_CS_4941_19960909")
        with pytest.raises(ValueError, match="no case is left; choose other modalities"):
            kaggle_3m(kaggle_root, tmp_path / "out", modalities=("flair", "post"))

    def test_skips_finished_cases_and_mends_unfinished_ones(self, kaggle_root, tmp_path):
        (first,) = kaggle_3m(kaggle_root, tmp_path / "out")
        written = Path(first["image"]).stat().st_mtime_ns
        assert kaggle_3m(kaggle_root, tmp_path / "out") == [first]
        assert Path(first["image"]).stat().st_mtime_ns == written
        Path(first["label"]).unlink()
        assert kaggle_3m(kaggle_root, tmp_path / "out") == [first]
        assert len(list(Path(first["image"]).parent.iterdir())) == 4

    def test_a_mask_that_was_replaced_is_read_again_were_it_older_than_the_volumes(self, kaggle_root, tmp_path):
        (first,) = kaggle_3m(kaggle_root, tmp_path / "out")
        z = first["cls"].index(1)
        file = kaggle_root / first["case"] / f"{first['case']}_{z + 1}_mask.tif"
        tifffile.imwrite(file, np.zeros((8, 6), np.uint8))
        os.utime(file, (0, 0))
        (second,) = kaggle_3m(kaggle_root, tmp_path / "out")
        assert second["cls"] == [cls * (i != z) for i, cls in enumerate(first["cls"])]

    def test_slices_are_read_once_and_volumes_may_lie_beside_them(self, kaggle_root, tmp_path):
        for out in (tmp_path / "out", kaggle_root):
            (first,) = kaggle_3m(kaggle_root, out)
            written = Path(first["image"]).stat().st_mtime_ns
            assert kaggle_3m(kaggle_root, out) == [first]
            assert Path(first["image"]).stat().st_mtime_ns == written

    @pytest.mark.parametrize(
        ("number", "message"),
        [("5", r"slices must count from 1 without gaps; missing: \[5\]"), ("12_mask", "_12_mask.tif")],
    )
    def test_names_a_missing_slice_and_writes_nothing(self, kaggle_root, tmp_path, number, message):
        (kaggle_root / "TCGA_CS_4941_19960909" / f"TCGA_CS_4941_19960909_{number}.tif").unlink()
        with pytest.raises(FileNotFoundError, match=message):
            kaggle_3m(kaggle_root, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_refuses_grey_slices_unknown_modalities_and_empty_folders(self, kaggle_root, tmp_path):
        tifffile.imwrite(
            kaggle_root / "TCGA_CS_4941_19960909" / "TCGA_CS_4941_19960909_3.tif", np.zeros((8, 6), np.uint8)
        )
        with pytest.raises(ValueError, match=r"_3.tif: shape \(8, 6\); expected RGB"):
            kaggle_3m(kaggle_root, tmp_path / "out")
        with pytest.raises(ValueError, match="modalities must be among"):
            kaggle_3m(kaggle_root, tmp_path / "out", modalities=("t2",))
        with pytest.raises(FileNotFoundError, match=r"no folder TCGA_\*"):
            kaggle_3m(tmp_path / "nowhere", tmp_path / "out")


MODALITIES = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


@pytest.fixture
def decathlon_root(tmp_path: Path) -> Path:
    """Two cases of 5×6×4 voxels in LAS order; modality m has the voxel's number + 1000 m."""
    root = tmp_path / "Task01_BrainTumor"
    affine = affine_of("LAS", (1, 1, 2), (5, 6, 4))
    numbers = np.arange(120).reshape(5, 6, 4)
    pairs = []
    for number, slices in ((457, (1, 2)), (306, ())):
        pairs.append({key: f"./{key}sTr/BRATS_{number}.nii.gz" for key in ("image", "label")})
        image = np.stack([numbers + 1000 * m for m in range(4)], axis=-1).astype(np.float32)
        save_volume(root / pairs[-1]["image"], image, affine)
        save_volume(root / pairs[-1]["label"], mask_of(*slices).astype(np.uint8), affine)
    content = {"modality": MODALITIES, "labels": {"0": "background", "1": "edema"}, "training": pairs, "test": []}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


class TestDecathlon:
    def test_takes_the_named_modalities_in_their_place(self, decathlon_root, tmp_path):
        case = decathlon(decathlon_root, tmp_path / "out", modalities=("T2w", "FLAIR"))[0]
        images = [nib.Nifti1Image.from_filename(path) for path in case["image"]]
        place = world(affine_of("LAS", (1, 1, 2), (5, 6, 4)), (5, 6, 4)).reshape(-1, 3)
        for image, offset in zip(images, (3000, 0), strict=True):
            assert image.shape == (5, 6, 4)
            numbers = image.get_fdata().astype(int) - offset
            np.testing.assert_allclose(world(image.affine, image.shape), place[numbers], atol=1e-5)
        truth = nib.Nifti1Image.from_filename(case["label"])
        assert np.asanyarray(truth.dataobj).any(axis=(0, 1)).tolist() == [False, True, True, False]

    def test_labels_slices_or_volumes(self, decathlon_root, tmp_path):
        found = decathlon(decathlon_root, tmp_path / "out", modalities=("t1gd",))
        assert [(c["case"], c["patient"], c["cls"]) for c in found] == [
            ("BRATS_457", "BRATS_457", [0, 1, 1, 0]),
            ("BRATS_306", "BRATS_306", [0, 0, 0, 0]),
        ]
        assert [
            c["cls"] for c in decathlon(decathlon_root, tmp_path / "out", modalities=("t1gd",), cls_per="volume")
        ] == [1, 0]

    def test_reads_tasks_of_one_modality(self, decathlon_root, tmp_path):
        content = json.loads((decathlon_root / "dataset.json").read_text())
        content |= {"modality": {"0": "MRI"}, "training": content["training"][:1]}
        (decathlon_root / "dataset.json").write_text(json.dumps(content))
        affine = affine_of("LAS", (1, 1, 2), (5, 6, 4))
        save_volume(decathlon_root / content["training"][0]["image"], np.ones((5, 6, 4), np.float32), affine)
        (case,) = decathlon(decathlon_root, tmp_path / "out", modalities=("MRI",))
        assert nib.Nifti1Image.from_filename(case["image"]).get_fdata().sum() == 120

    def test_skips_finished_cases_and_adds_missing_modalities(self, decathlon_root, tmp_path):
        first = decathlon(decathlon_root, tmp_path / "out", modalities=("FLAIR",))[0]
        written = Path(first["image"]).stat().st_mtime_ns
        assert decathlon(decathlon_root, tmp_path / "out", modalities=("FLAIR",))[0] == first
        assert Path(first["image"]).stat().st_mtime_ns == written
        both = decathlon(decathlon_root, tmp_path / "out", modalities=("FLAIR", "T1w"))[0]
        assert nib.Nifti1Image.from_filename(both["image"][1]).get_fdata().min() == 1000

    @pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
    def test_a_file_that_was_replaced_is_read_again(self, decathlon_root, tmp_path, folder):
        file = decathlon_root / folder / "BRATS_457.nii.gz"
        decathlon(decathlon_root, tmp_path / "out", modalities=("FLAIR",))
        held = nib.Nifti1Image.from_filename(file)
        save_volume(file, np.zeros(held.shape, held.get_data_dtype()), held.affine)
        case = decathlon(decathlon_root, tmp_path / "out", modalities=("FLAIR",))[0]
        written = case["image" if folder == "imagesTr" else "label"]
        assert not nib.Nifti1Image.from_filename(written).get_fdata().any()

    def test_says_what_is_missing(self, decathlon_root, tmp_path):
        def read(**options):
            return decathlon(decathlon_root, tmp_path / "out", **{"modalities": ("FLAIR",)} | options)

        with pytest.raises(ValueError, match=r"among \['FLAIR', 'T1w', 't1gd', 'T2w'\]; got \['ADC'\]"):
            read(modalities=("ADC",))
        with pytest.raises(ValueError, match="cls_per must be 'slice' or 'volume'; got 'case'"):
            read(cls_per="case")
        save_volume(decathlon_root / "imagesTr" / "BRATS_457.nii.gz", np.ones((5, 6, 4, 2), np.float32))
        with pytest.raises(ValueError, match=r"BRATS_457.nii.gz: shape \(5, 6, 4, 2\); expected 4 modalities"):
            read()
        (decathlon_root / "labelsTr" / "BRATS_457.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"BRATS_457.nii.gz does not exist, but .*dataset.json lists it"):
            read()
        (decathlon_root / "dataset.json").write_text('{"modality": {"0": "FLAIR"}}')
        with pytest.raises(ValueError, match="'modality' or 'training' is missing"):
            read()
        (decathlon_root / "dataset.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"dataset.json does not exist; give the folder of one task"):
            read()
