from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from common.commands.fit_slides import SLIDE_SUFFIXES
from common.datasets import labeled_table
from common.datasets.headers import SLIDES
from tests.datasets.tables import scan, write
from tests.pipeline import affine_of, save


def labeled(tmp_path: Path, image: str, mask: str = "") -> Path:
    (tmp_path / "a.csv").write_text(f"image,label,mask\n{image},1,{mask}")
    return tmp_path / "a.csv"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, r"a.csv: cannot be read \(.*expected a complete NIfTI file"),
        ("x.nii.gz", b"", r"x.nii.gz is an empty file"),
        ("x.mha", b"", r"x.mha is an empty file"),
        ("x.nii.gz", b"text", r"x.nii.gz: cannot be read"),
        ("x.png", b"text", r"x.png: cannot be read \(.*expected a PNG or JPEG"),
        ("x.tif", b"text", r"x.tif: cannot be read \(.*expected a whole TIFF"),
        ("x.svs", b"", r"x.svs is an empty file"),
    ],
)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_file_that_is_no_image_is_named_with_row_and_column(tmp_path, name, content, message, column):
    scan(tmp_path / "b.nii.gz")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    table = labeled(tmp_path, name) if column == "image" else labeled(tmp_path, "b.nii.gz", name)
    with pytest.raises(ValueError, match=rf"a.csv: row 2, column '{column}': \S+{message}"):
        labeled_table(table)


def test_a_flat_image_is_named(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(
        ValueError, match=r"row 2, column 'image': .*x.nii: expected a 3D image, got the shape \[4, 4\]"
    ):
        labeled_table(labeled(tmp_path, "x.nii"))


def test_masks_and_modalities_lie_on_the_image_with_axes_in_any_order(tmp_path):
    save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.uint8), affine_of("RAS", (1, 2, 3), (3, 4, 5)))
    save(tmp_path / "m.nii.gz", np.zeros((4, 5, 3), np.uint8), affine_of("PIR", (2, 3, 1), (4, 5, 3)))
    (tmp_path / "a.csv").write_text("image_a,image_b,label,mask,organ\na.nii.gz,n.nii.gz,1,m.nii.gz,o.nii.gz")
    shutil.copy(tmp_path / "m.nii.gz", tmp_path / "n.nii.gz")
    shutil.copy(tmp_path / "m.nii.gz", tmp_path / "o.nii.gz")
    assert len(labeled_table(tmp_path / "a.csv")[0]) == 1
    for name, column in (("n", "image_b"), ("m", "mask"), ("o", "organ")):
        save(tmp_path / f"{name}.nii.gz", np.zeros((4, 5, 3), np.uint8), affine_of("PIR", (2, 3, 1.1), (4, 5, 3)))
        message = rf"row 2, column '{column}': \S+/{name}.nii.gz and \S+/a.nii.gz do not lie on one grid: their corners"
        with pytest.raises(ValueError, match=message):
            labeled_table(tmp_path / "a.csv")
        shutil.copy(tmp_path / "o.nii.gz" if name != "o" else tmp_path / "m.nii.gz", tmp_path / f"{name}.nii.gz")


def test_masks_of_pictures_have_their_size(tmp_path):
    table = write(tmp_path, "image,label,mask", "a.tif,1,b.png", "c.png,1,d.tif")
    assert len(labeled_table(table)[0]) == 2
    scan(tmp_path / "d.tif", size=5)
    with pytest.raises(ValueError, match=r"row 3, column 'mask': .*their shapes are \[5, 5, 1\] and \[4, 4, 1\]"):
        labeled_table(table)


def test_slides_and_their_outlines_are_left_to_what_opens_them(tmp_path):
    (tmp_path / "a.svs").write_text("a slide")
    (tmp_path / "a.xml").write_text("<ASAP_Annotations/>")
    assert len(labeled_table(labeled(tmp_path, "a.svs", "a.xml"))[0]) == 1
    with tifffile.TiffWriter(tmp_path / "b.tif") as slide:
        for side in (64, 32):
            slide.write(np.zeros((side, side), np.uint8))
    assert len(labeled_table(labeled(tmp_path, "b.tif", "a.xml"))[0]) == 1
    for name in ("m.geojson", "m.png", "m.tif"):
        (tmp_path / name).write_bytes((tmp_path / "b.tif").read_bytes())
        for slide in ("a.svs", "b.tif"):
            with pytest.raises(ValueError, match=rf"row 2, column 'mask': .*{name} cannot score a whole slide: .*XML"):
                labeled_table(labeled(tmp_path, slide, name))
    scan(tmp_path / "c.nii.gz")
    with pytest.raises(ValueError, match=r"row 2, column 'mask': .*a.xml: cannot be read"):
        labeled_table(labeled(tmp_path, "c.nii.gz", "a.xml"))
    assert {*SLIDE_SUFFIXES} <= {*SLIDES}


def test_masks_lie_on_dicom_series(tmp_path):
    pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
    from common.images import read_grid
    from tests.images import dicom_series as dicom

    dicom.save(tmp_path / "s", dicom.datasets(dicom.stack(3)))
    shape, affine = read_grid(tmp_path / "s")
    save(tmp_path / "m.nii.gz", np.zeros(shape, np.uint8), affine)
    assert len(labeled_table(labeled(tmp_path, "s", "m.nii.gz"))[0]) == 1
    save(tmp_path / "m.nii.gz", np.zeros(shape, np.uint8), affine + np.eye(4, k=3))
    with pytest.raises(ValueError, match=r"row 2, column 'mask': .*do not lie on one grid: their corners"):
        labeled_table(labeled(tmp_path, "s", "m.nii.gz"))
    (tmp_path / "x.dcm").write_text("none")
    with pytest.raises(ValueError, match=r"row 2, column 'mask': .*x.dcm: no DICOM header; a mask is a Segmentation"):
        labeled_table(labeled(tmp_path, "s", "x.dcm"))
