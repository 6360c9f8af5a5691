"""Who may write an entry of the feature store."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch

from common.features import EntryLocked, FeatureStore
from common.files import NotWritten
from tests.features.helpers import FORK, KEY, counted, files_of, in_child, tiles


def test_two_processes_at_once_compute_each_batch_once(tmp_path):
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
    assert {path.name for path in tmp_path.rglob(".*")} <= {".lock"}


def test_an_entry_that_is_being_written_is_refused_to_any_other_writer(tmp_path):
    store, (other, calls) = FeatureStore(tmp_path), counted()

    def try_as_well() -> None:
        with pytest.raises(EntryLocked, match=f"{KEY} is being written by another process"):
            store.compute(KEY, tiles(), other)

    def meanwhile(call: int) -> None:
        assert in_child(try_as_well) == 0
        try_as_well()  # the end of the child has not released it

    store.compute(KEY, tiles(), counted(meanwhile)[0])
    assert calls.value == 0


def test_a_lock_is_released_by_errors_and_interrupts(tmp_path):
    def interrupt(call: int) -> None:
        raise KeyboardInterrupt

    store = FeatureStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.compute(KEY, tiles(), counted(interrupt)[0])
    assert files_of(store) == set()
    assert in_child(lambda: store.compute(KEY, tiles(), counted()[0])) == 0
    assert len(store.open(KEY)) == 10


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match=rf"file/ab/{KEY}/\.lock cannot be written"):
        FeatureStore(tmp_path / "file").compute(KEY, tiles(), counted()[0])
