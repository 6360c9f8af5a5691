"""Volumes cut into single slices, as `prepare --split paper` draws them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.datasets.files import load_volume
from common.datasets.parts import single_slices
from common.preprocessing import LoadCased
from tests.datasets.test_parts import SHAPE, mask_in, numbered, voxels, write_case
from tests.pipeline import save


def test_slices_keep_grade_values_and_place_and_patient(tmp_path):
    where = write_case(
        tmp_path / "in", "a", {"t1": numbered(), "t2": numbered()[::-1], "mask": 4 * mask_in(2, 3)}, axcodes="PIR"
    )
    paths = {name: str(tmp_path / "in" / "a" / f"{name}.nii.gz") for name in ("t1", "t2", "mask")}
    case = {"case": "a", "patient": "P", "image": [paths["t1"], paths["t2"]], "label": paths["mask"]}
    case |= {"cls": [0, 0, 2, 2, *[0] * 6], "box": [0, 0, 0, 1, 1, 1]}
    found = single_slices([case], tmp_path / "out", modalities=("t1", "t2"))
    assert [one["case"] for one in found] == [f"a_s{z:03d}" for z in range(10)]
    assert [one["cls"] for one in found] == [[cls] for cls in case["cls"]]  # of slices, not of volumes
    assert {one["patient"] for one in found} == {"P"}
    assert found[0].keys() == case.keys() - {"box"}
    folder = tmp_path / "out" / "a_s003"
    assert found[3]["image"] == [str(folder / "t1.nii.gz"), str(folder / "t2.nii.gz")]
    assert found[3]["label"] == str(folder / "mask.nii.gz")
    np.testing.assert_array_equal(voxels(found[3]["image"][0])[..., 0], numbered()[..., 3])
    np.testing.assert_array_equal(voxels(found[3]["image"][1])[..., 0], numbered()[::-1, :, 3])
    assert [bool(voxels(one["label"]).any()) for one in found] == [cls > 0 for cls in case["cls"]]
    cut = nib.Nifti1Image.from_filename(found[3]["image"][0])
    for index, value in np.ndenumerate(voxels(found[3]["image"][0])):
        np.testing.assert_allclose(cut.affine @ [*index, 1], [*where[int(value)], 1], atol=1e-3)


def test_slices_that_show_nothing_are_left_out_and_other_cases_stay(tmp_path):
    empty = numbered()
    empty[..., [0, 7]] = 0
    write_case(tmp_path / "in", "a", {"t1": empty})
    path = str(tmp_path / "in" / "a" / "t1.nii.gz")
    whole = {"case": "b", "patient": "b", "image": "b.nii.gz", "cls": 1}
    picture = whole | {"cls": [1]}
    cases = [{"case": "a", "patient": "a", "image": path, "cls": [0] * 10}, whole, picture]
    *cut, volume, kept = single_slices(cases, tmp_path / "out", modalities=("t1",))
    assert [one["case"][-1] for one in cut] == list("12345689")
    assert all("label" not in one and isinstance(one["image"], str) for one in cut)
    assert (volume, kept) == (whole, picture)


def test_slices_with_values_that_are_no_numbers_are_kept_for_the_run_to_name(tmp_path):
    t1, t2 = numbered().astype(np.float32), numbered().astype(np.float32)
    t1[2, 3, 4], t1[..., 5], t2[..., 6], t1[..., 7] = np.nan, np.inf, np.nan, 0
    t2[..., 4] = 0  # beside NaN in the other one
    write_case(tmp_path / "in", "a", {"t1": t1, "t2": t2})
    case = {"case": "a", "patient": "a", "cls": [0] * 10}
    case["image"] = [str(tmp_path / "in" / "a" / f"{name}.nii.gz") for name in ("t1", "t2")]
    found = single_slices([case], tmp_path / "out", modalities=("t1", "t2"))
    assert [one["case"][-1] for one in found] == list("012345689")
    with pytest.raises(ValueError, match=r"a_s006.*holds NaN"):
        LoadCased(channels=2)(found[6])


def test_each_image_is_read_once(tmp_path, monkeypatch):
    write_case(tmp_path / "in", "a", {"t1": numbered(), "t2": -numbered()})
    paths = [str(tmp_path / "in" / "a" / f"{name}.nii.gz") for name in ("t1", "t2")]
    read = []
    monkeypatch.setattr(
        "common.datasets.parts.load_volume", lambda path, **like: (read.append(path), load_volume(path, **like))[1]
    )
    case = {"case": "a", "patient": "a", "cls": [0] * 10, "image": paths}
    assert len(single_slices([case], tmp_path / "out", modalities=("t1", "t2"))) == 10
    assert read == paths


def test_an_organ_may_be_probabilities_or_all_of_the_volume_as_in_a_run(tmp_path):
    share = np.linspace(0, 1, numbered().size, dtype=np.float32).reshape(SHAPE)
    for organ in (share, np.ones(SHAPE, np.uint8)):
        write_case(tmp_path / "in", "a", {"t1": numbered(), "organ": organ, "mask": mask_in(4)}, axcodes="PIR")
        case = {"case": "a", "patient": "a", "cls": [0] * 10}
        named = {"image": "t1", "organ": "organ", "label": "mask"}
        case |= {key: str(tmp_path / "in" / "a" / f"{name}.nii.gz") for key, name in named.items()}
        found = single_slices([case], tmp_path / "out", modalities=("t1",))
        for z, one in enumerate(found):
            np.testing.assert_array_equal(voxels(one["organ"])[..., 0], organ[..., z] > 0.5)
    save(Path(case["label"]), share, nib.Nifti1Image.from_filename(case["label"]).affine)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz"):  # a finding may not
        single_slices([case], tmp_path / "out", modalities=("t1",))


def test_says_what_does_not_go_together(tmp_path):
    write_case(tmp_path / "in", "a", {"t1": numbered()})
    case = {"case": "a", "patient": "a", "image": str(tmp_path / "in" / "a" / "t1.nii.gz"), "cls": [0] * 9}
    with pytest.raises(ValueError, match="'a' has 9 labels in `cls` for 10 slices"):
        single_slices([case], tmp_path / "out", modalities=("t1",))
    with pytest.raises(ValueError, match=r"'a': 1 image\(s\), but modalities=\('t1', 't2'\)"):
        single_slices([case], tmp_path / "out", modalities=("t1", "t2"))
