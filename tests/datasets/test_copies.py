from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.datasets import copies, labeled_table
from common.datasets.copies import check_copies
from common.datasets.rows import Row
from common.images.sources import files_of
from tests.datasets.tables import write
from tests.images.dicom_series import datasets, stack
from tests.images.dicom_series import save as save_series
from tests.pipeline import save


def test_copies_of_an_image_are_told_and_refused_where_labels_or_patients_contradict(tmp_path, caplog):
    table = write(tmp_path, "image,label,patient", "a.tif,1,P", "b.tif,1,P", "c.tif,0,R", "d.tif,0,R")
    labeled_table(table)
    assert not caplog.messages
    shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
    labeled_table(table)
    assert caplog.messages[0].endswith(
        "1 image(s) are in the table twice, e.g. row 3, column 'image': b.tif is a copy of a.tif in row 2"
    )
    shutil.copy(tmp_path / "a.tif", tmp_path / "c.tif")
    with pytest.raises(ValueError, match=r"row 4, .*c.tif is a copy of a.tif in row 2, which is labeled otherwise"):
        labeled_table(table)
    table.write_text(table.read_text().replace("c.tif,0", "c.tif,1"))
    with pytest.raises(ValueError, match=r"row 4, .*c.tif is a copy of a.tif in row 2, which is of patient 'P': one"):
        labeled_table(table)


def test_headers_alike_are_no_copies_where_the_voxels_beside_them_differ(tmp_path):
    table = write(tmp_path, "image,label,patient", "a.hdr,1,P", "b.hdr,0,R")
    for name in "ab":
        nib.save(nib.Nifti1Pair(np.full((4, 4, 2), ord(name), np.uint8), np.eye(4)), tmp_path / f"{name}.hdr")
    assert len(labeled_table(table)[0]) == 2
    shutil.copy(tmp_path / "a.img", tmp_path / "b.img")
    with pytest.raises(ValueError, match=r"b.hdr is a copy of a.hdr in row 2, which is labeled otherwise"):
        labeled_table(table)


def test_files_beside_a_header_are_listed_once_though_sizes_blocks_and_content_are_compared(tmp_path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(copies, "files_of", lambda file: seen.append(file.name) or files_of(file))
    rows = []
    for name in ("a.hdr", "b.hdr"):
        nib.save(nib.Nifti1Pair(np.ones((4, 4, 2), np.uint8), np.eye(4)), tmp_path / name)
        rows.append([Row(len(rows), {"image": name}, cls=1, files={"image": tmp_path / name})])
    assert check_copies(rows, ["image"], tmp_path / "a.csv") == {1: 0}
    assert seen == ["a.hdr", "b.hdr"]


def test_copies_are_of_one_patient_where_no_column_says_whose_they_are(tmp_path):
    table = write(tmp_path, "image,label,split", "a.tif,1,", "b.tif,0,", "c.tif,1,", "d.tif,1,")
    for name in ("c.tif", "d.tif"):
        shutil.copy(tmp_path / "a.tif", tmp_path / name)
    assert [case["patient"] for case in labeled_table(table)[0]] == ["a", "b", "a", "a"]
    table.write_text(table.read_text().replace("a.tif,1,", "a.tif,1,test").replace("d.tif,1,", "d.tif,1,training"))
    with pytest.raises(
        ValueError, match=r"row 5, column 'split': patient 'a' is in training here, and in test in row 2"
    ):
        labeled_table(table)


@pytest.mark.parametrize(
    ("one", "other", "contradict"),
    [
        ((0, 1, 1, 0), (0, 0, 0, 0), True),
        ((0, 1, 1, 0), (0, 1, 1, 0), False),
        ((0, 1, 1, 0), 0, True),
        ((0, 1, 1, 0), 1, False),
        ((0, 0, 0, 0), 1, True),
        ((0, 0, 0, 0), 0, False),
    ],
)
def test_labels_of_slices_contradict_those_of_a_copy(tmp_path: Path, one, other, contradict):
    save(tmp_path / "a.nii.gz", np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    rows = ["image,label,slice,patient", *(f"a.nii.gz,{cls},{k},P" for k, cls in enumerate(one))]
    slices = [(f"{k}.0", cls) for k, cls in enumerate(other)] if isinstance(other, tuple) else [("", other)]
    (tmp_path / "a.csv").write_text("\n".join([*rows, *(f"b.nii.gz,{cls},{k},P" for k, cls in slices)]))
    if contradict:
        with pytest.raises(
            ValueError, match=r"row 6, .*b.nii.gz is a copy of a.nii.gz in row 2, which is labeled other"
        ):
            labeled_table(tmp_path / "a.csv")
    else:
        assert len(labeled_table(tmp_path / "a.csv")[0]) == 2


def test_a_case_of_two_images_that_are_copies_of_two_patients_makes_them_one(tmp_path):
    files = {name: Path(save(tmp_path / f"{name}.nii.gz", np.full((4, 4, 2), ord(name), np.uint8))) for name in "xpyqr"}
    others = [shutil.copy(files[name], tmp_path / f"{name}_2.nii.gz") for name in "xy"]
    images = [[files["x"], files["p"]], [files["y"], files["q"]], [files["r"], files["r"]], others]
    cases = [{"patient": f"P{n}", "image": [str(file) for file in pair]} for n, pair in enumerate(images)]
    found = [case["patient"] for case in copies.with_copies_together(cases)]
    assert found[0] == found[1] == found[3] != found[2] == "P2"


def test_a_mask_that_is_another_patients_is_told_and_empty_ones_are_alike(tmp_path, caplog):
    image, same = (np.full((4, 4, 2), n, np.uint8) for n in (0, 9))
    masks = [save(tmp_path / f"{n}_mask.nii.gz", image if n < 2 else same) for n in range(5)]
    cases = [
        {"patient": patient, "image": save(tmp_path / f"{n}.nii.gz", same + n), "label": masks[n], "cls": [0, n // 2]}
        for n, patient in enumerate("ABCCC")
    ]
    copies.with_copies_together(cases)
    assert not caplog.messages
    copies.with_copies_together([*cases[:4], cases[4] | {"patient": "D"}])
    assert caplog.messages == [f"1 mask(s) are those of other patients: {masks[4]} holds the same as {masks[2]}"]


class TestMasks:
    def test_a_mask_is_of_one_case(self, tmp_path):
        table = write(tmp_path, "image,label,mask,patient", "a.tif,1,m.tif,P", "b.tif,1,./m.tif,P", "c.tif,1,a.tif,P")
        message = (
            r"row 3, column 'mask': ./m.tif is that of row 2, column 'mask' as well; each .*; row 4, .* row 2, column"
        )
        with pytest.raises(ValueError, match=message + " 'image'"):
            labeled_table(table)
        table.write_text(table.read_text().replace("c.tif,1,a.tif", "c.tif,1,"))
        shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
        assert [Path(case.get("label", "")).name for case in labeled_table(table)[0]] == ["m.tif", "m.tif", ""]

    def test_an_organ_is_of_one_case_or_of_all(self, tmp_path):
        rows = ("image,label,organ", "a.tif,1,o.tif", "b.tif,1,o.tif", "c.tif,0,o.tif")
        assert len(labeled_table(write(tmp_path, *rows))[0]) == 3
        with pytest.raises(ValueError, match=r"row 3, column 'organ': o.tif is that of row 2, column 'organ' as well"):
            labeled_table(write(tmp_path, *rows[:3], "c.tif,0,q.tif"))


def packed(path: Path, content: bytes, level: int) -> None:
    with gzip.GzipFile(path, "wb", level, mtime=level) as file:
        file.write(content)


def test_an_image_packed_anew_under_another_name_is_a_copy(tmp_path):
    table = write(tmp_path, "image,label,patient", "a.nii.gz,1,P", "another.nii.gz,0,P")
    assert len(labeled_table(table)[0]) == 2
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    packed(tmp_path / "another.nii.gz", content, 1)
    assert (tmp_path / "another.nii.gz").read_bytes() != (tmp_path / "a.nii.gz").read_bytes()
    with pytest.raises(
        ValueError, match=r"row 3, .*another.nii.gz is a copy of a.nii.gz in row 2, which is labeled oth"
    ):
        labeled_table(table)


def test_an_image_unpacked_is_a_copy_and_one_as_long_is_none(tmp_path):
    table = write(tmp_path, "image,label,patient", "a.nii.gz,1,P", "b.nii,0,R", "c.nii,0,R")
    for name in "bc":
        save(tmp_path / f"{name}.nii", np.full((4, 4, 2), ord(name), np.uint8))
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert len(content) == (tmp_path / "c.nii").stat().st_size
    assert len(labeled_table(table)[0]) == 3
    (tmp_path / "c.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"row 4, .*c.nii is a copy of a.nii.gz in row 2, which is labeled otherwise"):
        labeled_table(table)


def test_files_that_end_with_one_checksum_and_hold_something_else_are_no_copies(tmp_path):
    write(tmp_path, "image", "a.nii.gz", "b.nii.gz")
    rows = [
        Row(n, {"image": name}, cls=n, files={"image": tmp_path / name})
        for n, name in enumerate(("a.nii.gz", "b.nii.gz"))
    ]
    for name in ("a", "b"):
        content = bytes(8) if name == "a" else b"12345678"
        packed(tmp_path / f"{name}.nii.gz", content, 9)
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "b.nii.gz").read_bytes()[:-8] + whole[-8:])
    assert check_copies([[row] for row in rows], ["image"], tmp_path / "a.csv") == {}


def test_a_series_in_two_folders_is_a_copy_and_a_part_of_it_is_none(tmp_path):
    slices = datasets(stack(6))
    save_series(tmp_path / "a", slices)
    save_series(tmp_path / "b", slices, name="{:04d}.ima".format)
    (tmp_path / "t.csv").write_text("image,label,patient\na,1,P\nb,0,P\n")
    with pytest.raises(
        ValueError, match=r"row 3, column 'image': b is a copy of a in row 2, which is labeled otherwise"
    ):
        labeled_table(tmp_path / "t.csv")
    for folder, gone in (("a", (0, 1, 2)), ("b", (3, 4, 5))):
        for number in gone:
            next((tmp_path / folder).glob(f"*{number}.*")).unlink()
    assert len(labeled_table(tmp_path / "t.csv")[0]) == 2
