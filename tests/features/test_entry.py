from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.features import FeatureStore
from tests.features.helpers import KEY, counted, tiles


@pytest.fixture
def entry(tmp_path):
    options = {"inside": torch.rand(10, 1, 2, 2), "coordinates": np.arange(20).reshape(10, 2)}
    about = {"case": "one", "indices": list(range(5, 15))}
    return FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0], chunk=4, about=about, **options)


def test_any_part_read_in_chunks_equals_the_whole(entry):
    whole = entry[:]
    assert entry.shape == (10, 3, 2, 2)
    for start in range(11):
        for stop in range(11):
            assert torch.equal(entry[start:stop], whole[start:stop])
    for size in (None, 1, 3, 4, 7, 50):
        parts = list(entry.chunks(size))
        assert [len(part) for part in parts[:-1]] == [size or 4] * (len(parts) - 1)
        assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(entry[i], whole[i]) for i in range(-10, 10))
    assert torch.equal(entry[-3:], whole[-3:])


def test_what_is_read_is_what_the_encoder_gave_within_float16(entry):
    exact = counted()[0](tiles())
    assert entry[:].dtype == torch.float32
    assert not torch.equal(entry[:], exact)
    assert ((entry[:] - exact).abs() <= exact.abs() * 2**-11).all()  # half a unit in the last of 11 binary places


def test_what_goes_with_it_is_kept(entry):
    assert entry.inside.shape == (10, 1, 2, 2)
    assert entry.inside.dtype == torch.float32
    assert entry.coordinates.tolist() == [[i, i + 1] for i in range(0, 20, 2)]
    assert entry.indices == list(range(5, 15))
    assert entry.about["case"] == "one"
    on_disk = sum(path.stat().st_size for path in entry.folder.glob("*.npy"))
    assert entry.about["bytes"] == on_disk > 10 * 3 * 4 * 2
    assert entry.about["encoder"]["name"] == "counted"


def test_without_organ_and_coordinates_there_are_none(tmp_path):
    entry = FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0])
    assert entry.inside is None
    assert entry.coordinates is None
    assert entry.indices == list(range(10))


def test_a_place_outside_or_a_step_is_refused(entry):
    with pytest.raises(IndexError, match="tile 10 of 10"):
        entry[10]
    with pytest.raises(ValueError, match="a slice without a step"):
        entry[::2]


def test_a_damaged_chunk_is_named(entry):
    chunk = entry.folder / "0000004.npy"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert len(entry[:4]) == 4
    with pytest.raises(ValueError, match=r"0000004\.npy is damaged: remove the folder"):
        entry[:]


def test_entry_json_is_readable_by_anyone(tmp_path):
    entry = FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0], chunk=4)
    about = json.loads((entry.folder / "entry.json").read_text())
    assert about["shape"] == [10, 3, 2, 2]
    assert (about["dtype"], about["chunk"], about["key"]) == ("float16", 4, KEY)
    chunk = np.load(entry.folder / "0000008.npy")
    assert (chunk.dtype, chunk.shape) == (np.float16, (2, 3, 2, 2))
