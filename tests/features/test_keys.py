from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.features import FeatureStore, case_files, file_key
from common.features.store import content_key
from tests.features.helpers import KEY, tiles


def test_content_key_is_of_elements_shape_dtype_and_encoder():
    image, organ = tiles(), tiles() > 0.5
    base = content_key("f", image, organ)
    assert base == content_key("f", image.clone(memory_format=torch.preserve_format), organ)
    changed = image.clone()
    changed[3, 0, 4, 4] = torch.nextafter(changed[3, 0, 4, 4], torch.tensor(2.0))
    others = [
        content_key("g", image, organ),
        content_key("f", changed, organ),
        content_key("f", image, ~organ),
        content_key("f", image),
        content_key("f", image.transpose(2, 3), organ),
        content_key("f", image.flatten(), organ),
        content_key("f", image.double(), organ),
        content_key("f", torch.zeros(4), torch.zeros(2)),
        content_key("f", torch.zeros(2), torch.zeros(4)),
        content_key("f", torch.zeros(4, dtype=torch.int32), torch.zeros(2)),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_file_key_is_of_bytes_order_recipe_and_encoder_but_not_of_names(tmp_path):
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    a, b, same = file("a", b"abc" * 10**6), file("b", b"x"), file("c", b"abc" * 10**6)
    base = file_key("f", [a, b], "recipe")
    assert base == file_key("f", [str(same), b], "recipe")
    others = [
        file_key("f", [b, a], "recipe"),
        file_key("f", [a], "recipe"),
        file_key("f", [a, b], "recipe 2"),
        file_key("g", [a, b], "recipe"),
        file_key("f", [file("d", b"abc" * 10**6 + b"a"), b], "recipe"),
        file_key("f", [file("e", b"abc" * (10**6 - 1) + b"abd"), b], "recipe"),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("image", "beside", "header"),
    [
        ("a.hdr", ["a.img"], ""),
        ("a.img", ["a.hdr", "a.mat"], ""),
        ("a.img.gz", ["a.hdr.gz"], ""),
        ("a.mhd", ["b.zraw"], "NDims = 3\nElementDataFile = b.zraw\n"),
        ("a.mhd", ["b1.raw", "b2.raw"], "ElementDataFile = LIST\r\nb1.raw\r\nb2.raw\r\n"),
        ("a.mhd", ["b001.raw", "b002.raw"], "NDims = 3\nElementDataFile = b%03d.raw 1 2 1\n"),
        ("a.nhdr", ["b1.raw", "b3.raw"], "NRRD0004\nencoding: raw\ndata file: b%d.raw 3 1 -2 2\n"),
        ("a.nhdr", ["a.raw.gz"], "NRRD0004\nencoding: gzip\ndata file: ./a.raw.gz\n"),
    ],
)
def test_a_case_is_made_from_the_files_beside_a_header_as_well(tmp_path, image, beside, header):
    for name in (image, *beside, "a.json", "a.nii.gz", "b2.raw", "b003.raw", "c.img"):
        (tmp_path / name).write_text(header)
    files = case_files({"image": str(tmp_path / image), "organ": None})
    assert files[0].name == image
    assert sorted(file.name for file in files[1:]) == beside
    before = file_key("f", files, "recipe")
    (tmp_path / beside[-1]).write_bytes(b"other voxels")
    assert file_key("f", files, "recipe") != before


def test_a_slide_in_mirax_is_made_from_the_files_of_its_folder_as_well(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("Slidedat.ini", "Data0000.dat"):
            (tmp_path / name / file).write_text("pixels")
    for name in ("a.mrxs", "a.tif"):
        (tmp_path / name).write_text("thumbnail")
    files = case_files({"image": tmp_path / "a.mrxs"})
    assert files == [tmp_path / name for name in ("a.mrxs", "a/Data0000.dat", "a/Slidedat.ini")]
    assert case_files({"image": tmp_path / "a.tif"}) == [tmp_path / "a.tif"]


def test_a_single_file_that_is_not_there_is_named_all_the_same(tmp_path):
    for name in ("a.nii.gz", "a.hdr", "a.mhd", "a.mrxs"):
        assert case_files({"image": [tmp_path / name]}) == [tmp_path / name]


def test_an_alias_leads_to_the_content(tmp_path):
    store = FeatureStore(tmp_path)
    assert store.resolve("12" + KEY[2:]) is None
    store.set_alias("12" + KEY[2:], KEY)
    assert FeatureStore(tmp_path).resolve("12" + KEY[2:]) == KEY
    assert store.get(store.resolve("12" + KEY[2:])) is None  # the features are still to come
