from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.commands.prepare import prepare
from common.datasets import cheng
from tests.bundles.conftest import read_json

h5py = pytest.importorskip("h5py")


def write_mat(path: Path, *, label: int, patient: str, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A file as MATLAB 7.3 saves the owners' struct; returns image and mask in rows and columns."""
    rng = np.random.default_rng([*path.name.encode()])
    image = rng.integers(0, 3000, (size, size)).astype(np.int16)
    mask = np.zeros((size, size), np.uint8)
    mask[2 : 4 + label, 5:8] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        struct["image"], struct["tumorMask"] = image.T, mask.T  # columns lie together
        struct["label"] = np.array([[float(label)]])
        struct["PID"] = np.array([[ord(sign)] for sign in patient], np.uint16)
        struct["tumorBorder"] = np.zeros((1, 8))
    return image, mask


def test_slices_become_pictures_with_class_patient_and_mask(tmp_path):
    image, mask = write_mat(tmp_path / "raw" / "brainTumorDataPublic_766" / "12.mat", label=2, patient="MR017")
    (case,) = cheng(tmp_path / "raw", tmp_path / "out")
    assert (case["case"], case["patient"], case["cls"]) == ("0012", "MR017", 2)
    assert case["image"] == str(tmp_path / "out" / "0012.png")
    np.testing.assert_array_equal(np.asarray(Image.open(case["image"])), image)
    np.testing.assert_array_equal(np.asarray(Image.open(case["label"])) > 0, mask > 0)


def test_size_shrinks_image_and_mask_alike(tmp_path):
    write_mat(tmp_path / "raw" / "1.mat", label=3, patient="A", size=32)
    (case,) = cheng(tmp_path / "raw", tmp_path / "out", size=16)
    assert Image.open(case["image"]).size == Image.open(case["label"]).size == (16, 16)


def test_pictures_of_another_size_are_made_anew_and_others_stay(tmp_path):
    write_mat(tmp_path / "raw" / "1.mat", label=3, patient="A", size=32)
    widths, times = [], []
    for size in (None, 16, 16, None):
        (case,) = cheng(tmp_path / "raw", tmp_path / "out", size=size)
        widths.append([Image.open(case[key]).size[0] for key in ("image", "label")])
        times.append(Path(case["image"]).stat().st_mtime_ns)
    assert widths == [[32, 32], [16, 16], [16, 16], [32, 32]]
    assert times[1] == times[2]


def test_a_slice_that_was_replaced_is_read_again(tmp_path):
    write_mat(tmp_path / "raw" / "1.mat", label=3, patient="A")
    (case,) = cheng(tmp_path / "raw", tmp_path / "out")
    _, mask = write_mat(tmp_path / "raw" / "1.mat", label=1, patient="A")
    assert cheng(tmp_path / "raw", tmp_path / "out")[0]["cls"] == 1
    np.testing.assert_array_equal(np.asarray(Image.open(case["label"])) > 0, mask > 0)


def test_prepare_splits_patients_of_every_class_apart(tmp_path):
    for number in range(24):
        write_mat(tmp_path / "raw" / f"{number + 1}.mat", label=1 + number % 3, patient=f"P{number % 12:02d}")
    prepare("cheng", str(tmp_path / "raw"), dataset_dir=str(tmp_path / "out"))
    content = read_json(tmp_path / "out" / "datalist.json")
    assert content["classes"] == ["none", "meningioma", "glioma", "pituitary"]
    assert content["modalities"] == ["t1ce"]
    patients = {}
    for section in ("training", "validation", "test"):
        assert {case["cls"] for case in content[section]} == {1, 2, 3}
        patients[section] = {case["patient"] for case in content[section]}
    assert len(patients["training"] | patients["validation"] | patients["test"]) == sum(map(len, patients.values()))


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file <number>\.mat"):
        cheng(tmp_path, tmp_path)
    (tmp_path / "1.mat").write_text("MATLAB 5.0")
    with pytest.raises(ValueError, match=r"1\.mat: .*expected MATLAB 7\.3"):
        cheng(tmp_path, tmp_path)
    write_mat(tmp_path / "1.mat", label=7, patient="A")
    with pytest.raises(ValueError, match="the label 7; expected 1, 2 or 3"):
        cheng(tmp_path, tmp_path)


def test_a_number_that_is_there_twice_is_refused(tmp_path):
    for folder in ("1-766", "767-1532"):
        write_mat(tmp_path / folder / "1.mat", label=1, patient=folder)
    with pytest.raises(ValueError, match=r"1\.mat and .*1\.mat are one file of one case"):
        cheng(tmp_path, tmp_path / "out")


def test_papers_split_draws_slices_whatever_patient_they_are_of_and_says_so(tmp_path, capsys):
    for number in range(24):
        write_mat(tmp_path / "raw" / f"{number + 1}.mat", label=1 + number % 3, patient=f"P{number % 3}")
    prepare("cheng", str(tmp_path / "raw"), dataset_dir=str(tmp_path / "out"), split="paper")
    assert "scores are of memory" in capsys.readouterr().out
    content = read_json(tmp_path / "out" / "datalist.json")
    assert content["split"] == "paper"
    for section in ("training", "validation", "test"):
        assert {case["patient"] for case in content[section]} == {"P0", "P1", "P2"}
