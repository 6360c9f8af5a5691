from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.encoders import Encoder
from common.features import EntryLocked, FeatureStore, content_key, encode, file_key
from common.files import NotWritten

KEY = "ab" + 62 * "0"
FORK = multiprocessing.get_context("fork")


class Counted(nn.Module):
    """Cell means; does something at each call and counts them, in whatever process."""

    def __init__(self, at_call: Callable[[int], None] = lambda call: None) -> None:
        super().__init__()
        self.calls = FORK.Value("i", 0)
        self.at_call = at_call

    def forward(self, image: Tensor) -> Tensor:
        with self.calls.get_lock():
            self.calls.value += 1
            call = self.calls.value
        self.at_call(call)
        return nn.functional.avg_pool2d(image, 4)


def counted(at_call: Callable[[int], None] = lambda call: None) -> tuple[Encoder, Any]:
    body = Counted(at_call)
    return Encoder(body, name="counted", channels=3, stride=4), body.calls


def tiles(number: int = 10, side: int = 8) -> Tensor:
    return torch.rand(number, 1, side, side, generator=torch.Generator().manual_seed(0))


def in_child(function: Callable[[], object]) -> int:
    """Exit code of a process that runs the function; it uses one thread, as a forked torch should."""

    def run() -> None:
        torch.set_num_threads(1)
        function()

    child = FORK.Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode


def files_of(store: FeatureStore, key: str = KEY) -> set[str]:
    return {path.name for path in store.folder(key).iterdir()}


class TestEntry:
    @pytest.fixture
    def entry(self, tmp_path):
        options = {"inside": torch.rand(10, 1, 2, 2), "coordinates": np.arange(20).reshape(10, 2)}
        about = {"case": "one", "indices": list(range(5, 15))}
        return FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0], chunk=4, about=about, **options)

    def test_any_part_read_in_chunks_equals_the_whole(self, entry):
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

    def test_what_is_read_is_what_the_encoder_gave_within_float16(self, entry):
        exact = counted()[0](tiles())
        assert entry[:].dtype == torch.float32
        assert not torch.equal(entry[:], exact)
        assert ((entry[:] - exact).abs() <= exact.abs() * 2**-11).all()  # half a unit in the last of 11 binary places

    def test_what_goes_with_it_is_kept(self, entry):
        assert entry.inside.shape == (10, 1, 2, 2)
        assert entry.inside.dtype == torch.float32
        assert entry.coordinates.tolist() == [[i, i + 1] for i in range(0, 20, 2)]
        assert entry.indices == list(range(5, 15))
        assert entry.about["case"] == "one"
        on_disk = sum(path.stat().st_size for path in entry.folder.glob("*.npy"))
        assert entry.about["bytes"] == on_disk > 10 * 3 * 4 * 2
        assert entry.about["encoder"]["name"] == "counted"

    def test_without_organ_and_coordinates_there_are_none(self, tmp_path):
        entry = FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0])
        assert entry.inside is None
        assert entry.coordinates is None
        assert entry.indices == list(range(10))

    def test_a_place_outside_or_a_step_is_refused(self, entry):
        with pytest.raises(IndexError, match="tile 10 of 10"):
            entry[10]
        with pytest.raises(ValueError, match="a slice without a step"):
            entry[::2]

    def test_a_damaged_chunk_is_named(self, entry):
        chunk = entry.folder / "0000004.npy"
        chunk.write_bytes(chunk.read_bytes()[:-1])
        assert len(entry[:4]) == 4
        with pytest.raises(ValueError, match=r"0000004\.npy is damaged: remove the folder"):
            entry[:]


def test_encoding_in_memory_gives_what_the_store_rounds(tmp_path):
    encoder, calls = counted()
    features = encode(encoder, tiles(), batch_size=4)
    assert calls.value == 3
    torch.testing.assert_close(features, encoder(tiles()))
    assert torch.equal(FeatureStore(tmp_path).compute(KEY, tiles(), encoder)[:], features.half().float())


class TestStore:
    def test_only_missing_tiles_are_loaded_and_only_batch_by_batch(self, tmp_path):
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

    def test_a_finished_entry_is_not_computed_again(self, tmp_path):
        store, (encoder, calls) = FeatureStore(tmp_path), counted()
        assert store.get(KEY) is None
        with pytest.raises(
            FileNotFoundError, match=f"no finished features in .*{KEY}: run `python -m common features`"
        ):
            store.open(KEY)
        store.compute(KEY, tiles(), encoder, batch_size=5)
        assert calls.value == 2
        store.compute(KEY, tiles(), encoder, batch_size=5)
        assert calls.value == 2
        assert store.get(KEY) is not None
        assert [entry.about["key"] for entry in store.entries()] == [KEY]

    def test_after_a_kill_finished_chunks_are_kept_and_the_rest_is_computed(self, tmp_path):
        def kill(call: int) -> None:
            if call == 4:  # in the middle of the second of three chunks
                os.kill(os.getpid(), signal.SIGKILL)

        store = FeatureStore(tmp_path)
        options = {"batch_size": 2, "chunk": 4}
        assert in_child(lambda: store.compute(KEY, tiles(), counted(kill)[0], **options)) == -signal.SIGKILL
        assert files_of(store) == {".lock", "0000000.npy"}
        assert store.get(KEY) is None
        encoder, calls = counted()
        entry = store.compute(KEY, tiles(), encoder, **options)
        assert calls.value == 3  # batches 4-6, 6-8, 8-10
        assert torch.equal(entry[:], encoder(tiles()).half().float())
        assert ".lock" not in files_of(store)

    @pytest.mark.parametrize(("before", "after"), [(3, 4), (4, 3), (2, 4), (5, 4)])
    def test_chunks_of_another_length_are_not_mistaken_for_finished(self, tmp_path, before, after):
        store, (encoder, _) = FeatureStore(tmp_path), counted()
        whole = store.compute(KEY, tiles(), encoder, chunk=before)[:]
        (store.folder(KEY) / "entry.json").unlink()
        entry = store.compute(KEY, tiles(), encoder, chunk=after)
        assert torch.equal(entry[:], whole)
        chunks = [np.load(path) for path in sorted(entry.folder.glob("*.npy"))]
        assert [len(chunk) for chunk in chunks] == [min(after, 10 - first) for first in range(0, 10, after)]

    def test_a_chunk_that_was_cut_off_is_computed_again(self, tmp_path):
        store, (encoder, calls) = FeatureStore(tmp_path), counted()
        entry = store.compute(KEY, tiles(), encoder, chunk=4)
        whole = entry[:]
        (entry.folder / "entry.json").unlink()
        first = entry.folder / "0000000.npy"
        first.write_bytes(first.read_bytes()[:-2])
        assert torch.equal(store.compute(KEY, tiles(), encoder, chunk=4)[:], whole)
        assert calls.value == 4

    def test_two_processes_at_once_compute_each_batch_once(self, tmp_path):
        store = FeatureStore(tmp_path)
        encoder, calls = counted(lambda call: time.sleep(0.01))
        barrier = FORK.Barrier(2)

        def write() -> None:
            torch.set_num_threads(1)
            barrier.wait(20)
            for _ in range(1000):
                with contextlib.suppress(EntryLocked):
                    store.compute(KEY, tiles(), encoder, batch_size=1, chunk=2)
                    return
                time.sleep(0.01)
            raise SystemExit(1)

        children = [FORK.Process(target=write) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0]
        assert calls.value == 10
        assert torch.equal(store.open(KEY)[:], counted()[0](tiles()).half().float())
        assert not list(tmp_path.rglob(".*"))

    def test_a_full_disk_leaves_nothing_that_looks_finished(self, tmp_path):
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
    def test_features_that_float16_cannot_hold_are_an_error(self, tmp_path, value, message):
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

    def test_nothing_to_encode_and_an_organ_on_another_grid_are_errors(self, tmp_path):
        store = FeatureStore(tmp_path)
        with pytest.raises(ValueError, match="no slice holds any organ"):
            store.compute(KEY, tiles(0), counted()[0])
        with pytest.raises(ValueError, match=r"inside must be \[10, 1, 2, 2\], got \[10, 1, 4, 4\]"):
            store.compute(KEY, tiles(), counted()[0], inside=torch.ones(10, 1, 4, 4))
        assert store.get(KEY) is None

    def test_memory_stays_flat_in_writing_and_reading(self, tmp_path):
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


class TestKeys:
    def test_content_key_is_of_elements_shape_dtype_and_encoder(self):
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

    def test_file_key_is_of_bytes_order_recipe_and_encoder_but_not_of_names(self, tmp_path):
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

    def test_an_alias_leads_to_the_content(self, tmp_path):
        store = FeatureStore(tmp_path)
        assert store.resolve("12" + KEY[2:]) is None
        store.set_alias("12" + KEY[2:], KEY)
        assert FeatureStore(tmp_path).resolve("12" + KEY[2:]) == KEY
        assert store.get(store.resolve("12" + KEY[2:])) is None  # the features are still to come


def test_entry_json_is_readable_by_anyone(tmp_path):
    entry = FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0], chunk=4)
    about = json.loads((entry.folder / "entry.json").read_text())
    assert about["shape"] == [10, 3, 2, 2]
    assert (about["dtype"], about["chunk"], about["key"]) == ("float16", 4, KEY)
    chunk = np.load(entry.folder / "0000008.npy")
    assert (chunk.dtype, chunk.shape) == (np.float16, (2, 3, 2, 2))
