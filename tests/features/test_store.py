from __future__ import annotations

import os
import resource
import signal
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.encoders import Encoder
from common.features import FeatureStore, encode, encode_batches
from common.files import NotWritten
from tests.features.helpers import KEY, counted, files_of, in_child, tiles


def test_encoding_in_memory_gives_what_the_store_rounds(tmp_path):
    encoder, calls = counted()
    features = encode(encoder, tiles(), batch_size=4)
    assert calls.value == 3
    torch.testing.assert_close(features, encoder(tiles()))
    assert torch.equal(FeatureStore(tmp_path).compute(KEY, tiles(), encoder)[:], features.half().float())


def test_only_missing_tiles_are_loaded_and_only_batch_by_batch(tmp_path):
    asked = []

    class Lazy:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, place: slice) -> Tensor:
            asked.append((place.start, place.stop))
            return tiles()[place]

    store = FeatureStore(tmp_path)
    expected = store.compute("cd" + KEY[2:], tiles(), counted()[0])[:]
    done = store.compute(KEY, Lazy(), counted()[0], batch_size=3, chunk=4)
    assert asked == [(0, 3), (3, 4), (4, 7), (7, 8), (8, 10)]
    (done.folder / "entry.json").unlink()
    (done.folder / "0000004.npy").unlink()
    asked.clear()
    assert torch.equal(store.compute(KEY, Lazy(), counted()[0], batch_size=3, chunk=4)[:], expected)
    assert asked == [(4, 7), (7, 8)]


def test_the_next_tiles_are_read_while_the_encoder_works_and_what_cannot_be_read_is_an_error():
    begun = [threading.Event() for _ in range(3)]

    class Broken:
        def __getitem__(self, place: slice) -> Tensor:
            begun[place.start // 2].set()
            if place.start == 4:
                raise OSError("damaged")
            return tiles()[place]

    waited = []
    encoder, calls = counted(lambda call: waited.append(begun[call].wait(10)))
    with pytest.raises(OSError, match="damaged"):
        list(encode_batches(encoder, Broken(), 2, stop=8))
    assert (calls.value, waited) == (2, [True, True])


def test_a_finished_entry_is_not_computed_again(tmp_path):
    store, (encoder, calls) = FeatureStore(tmp_path), counted()
    assert store.get(KEY) is None
    with pytest.raises(FileNotFoundError, match=f"no finished features in .*{KEY}: run `python -m common features`"):
        store.open(KEY)
    store.compute(KEY, tiles(), encoder, batch_size=5)
    assert calls.value == 2
    store.compute(KEY, tiles(), encoder, batch_size=5)
    assert calls.value == 2
    assert store.get(KEY) is not None
    assert [entry.about["key"] for entry in store.entries()] == [KEY]


def test_after_a_kill_finished_chunks_are_kept_and_the_rest_is_computed(tmp_path):
    def kill(call: int) -> None:
        if call == 4:  # in the middle of the second of three chunks
            os.kill(os.getpid(), signal.SIGKILL)

    store = FeatureStore(tmp_path)
    options = {"batch_size": 2, "chunk": 4}
    assert in_child(lambda: store.compute(KEY, tiles(), counted(kill)[0], **options)) == -signal.SIGKILL
    assert files_of(store) == {"0000000.npy"}
    assert store.get(KEY) is None
    left = store.folder(KEY) / ".123.0000004.npy"  # had it been killed while it wrote
    left.touch()
    encoder, calls = counted()
    entry = store.compute(KEY, tiles(), encoder, **options)
    assert calls.value == 3  # batches 4-6, 6-8, 8-10
    assert not left.exists()
    assert torch.equal(entry[:], encoder(tiles()).half().float())


@pytest.mark.parametrize(("before", "after"), [(3, 4), (4, 3), (2, 4), (5, 4)])
def test_chunks_of_another_length_are_not_mistaken_for_finished(tmp_path, before, after):
    store, (encoder, _) = FeatureStore(tmp_path), counted()
    whole = store.compute(KEY, tiles(), encoder, chunk=before)[:]
    (store.folder(KEY) / "entry.json").unlink()
    entry = store.compute(KEY, tiles(), encoder, chunk=after)
    assert torch.equal(entry[:], whole)
    chunks = [np.load(path) for path in sorted(entry.folder.glob("*.npy"))]
    assert [len(chunk) for chunk in chunks] == [min(after, 10 - first) for first in range(0, 10, after)]


def test_a_chunk_that_was_cut_off_is_computed_again(tmp_path):
    store, (encoder, calls) = FeatureStore(tmp_path), counted()
    entry = store.compute(KEY, tiles(), encoder, chunk=4)
    whole = entry[:]
    (entry.folder / "entry.json").unlink()
    first = entry.folder / "0000000.npy"
    first.write_bytes(first.read_bytes()[:-2])
    assert torch.equal(store.compute(KEY, tiles(), encoder, chunk=4)[:], whole)
    assert calls.value == 4


def test_an_entry_whose_description_was_emptied_is_unfinished(tmp_path):
    store, (encoder, calls) = FeatureStore(tmp_path), counted()
    expected = store.compute(KEY, tiles(), encoder)[:]
    (store.folder(KEY) / "entry.json").write_bytes(b"")
    assert store.get(KEY) is None
    calls_before = calls.value
    assert torch.equal(store.compute(KEY, tiles(), encoder)[:], expected)
    assert calls.value == calls_before  # its chunks are whole


def test_chunks_of_other_features_are_refused_by_the_name_of_their_folder(tmp_path):
    store = FeatureStore(tmp_path)
    store.folder(KEY).mkdir(parents=True)
    np.save(store.folder(KEY) / "0000000.npy", np.zeros((4, 1, 2, 2), dtype=np.float16))
    with pytest.raises(ValueError, match=f"{KEY}: chunks of different shapes .*; remove the folder"):
        store.compute(KEY, tiles(), counted()[0], chunk=4)


def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path):
    store, encoder = FeatureStore(tmp_path), counted()[0]

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # less than the first chunk of 320 bytes
        with pytest.raises(NotWritten, match=r"0000000\.npy cannot be written .*: free space, then run again"):
            store.compute(KEY, tiles(), encoder, chunk=8)

    assert in_child(write) == 0
    assert files_of(store) == set()
    assert store.get(KEY) is None
    assert (store.compute(KEY, tiles(), counted()[0], chunk=8).folder / "0000000.npy").stat().st_size == 320


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or inf"), (7e4, "too large for")]
)
def test_features_that_float16_cannot_hold_are_an_error(tmp_path, value, message):
    class Bad(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            features = nn.functional.avg_pool2d(image, 4)
            features[image[:, 0, 0, 0] > 0.9] = value
            return features

    images = tiles() * 0.5
    images[6, 0, 0, 0] = 1.0
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match=f"tiles 6 to 7 are {message}"):
        store.compute(KEY, images, Encoder(Bad(), name="bad", channels=3, stride=4), batch_size=2)
    assert files_of(store) == set()


def test_nothing_to_encode_and_an_organ_on_another_grid_are_errors(tmp_path):
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="no slice holds any organ"):
        store.compute(KEY, tiles(0), counted()[0])
    with pytest.raises(ValueError, match=r"inside must be \[10, 1, 2, 2\], got \[10, 1, 4, 4\]"):
        store.compute(KEY, tiles(), counted()[0], inside=torch.ones(10, 1, 4, 4))
    assert store.get(KEY) is None


def test_memory_stays_flat_in_writing_and_reading(tmp_path):
    """100 MB of float32 features go by in steps of 4 MB."""

    class Many:
        def __len__(self) -> int:
            return 384

        def __getitem__(self, place: slice) -> Tensor:
            return torch.zeros(place.stop - place.start, 1, 32, 32)

    class Wide(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.ones(len(image), 64, 32, 32)

    encoder = Encoder(Wide(), name="wide", channels=64, stride=1)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def run() -> None:
        store = FeatureStore(tmp_path)
        store.compute("cd" + KEY[2:], tiles(), counted()[0])  # whatever is loaded at first use
        before = peak()
        entry = store.compute(KEY, Many(), encoder, batch_size=16, chunk=16)
        assert sum(float(part.mean()) for part in entry.chunks(16)) == 24
        assert peak() - before < 40, f"{peak() - before:.0f} MB"

    assert in_child(run) == 0
    assert len(FeatureStore(tmp_path).open(KEY)) == 384
