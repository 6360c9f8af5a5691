"""Locks, as the feature store uses them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import pytest

from common.features import EntryLocked, FeatureStore
from tests.features.test_store import FORK, KEY, counted, files_of, tiles


@pytest.fixture
def locked(tmp_path) -> Callable[..., FeatureStore]:
    def lock(owner: str, age: float = 0.0) -> FeatureStore:
        store = FeatureStore(tmp_path, stale_seconds=60)
        path = store.folder(KEY) / ".lock"
        path.parent.mkdir(parents=True)
        path.write_text(owner)
        os.utime(path, (time.time() - age,) * 2)
        return store

    return lock


def test_a_lock_of_a_living_process_is_respected(locked):
    store, (encoder, calls) = locked(f"{os.getppid()} {socket.gethostname()} 1"), counted()
    with pytest.raises(EntryLocked, match=f"written by process {os.getppid()}"):
        store.compute(KEY, tiles(), encoder)
    assert calls.value == 0
    assert files_of(store) == {".lock"}


@pytest.mark.parametrize(("age", "busy"), [(50, True), (70, False)])
def test_a_lock_of_another_host_holds_until_it_is_too_old(locked, age, busy):
    store = locked("1 some-other-host 1", age)
    with pytest.raises(EntryLocked) if busy else contextlib.nullcontext():
        store.compute(KEY, tiles(), counted()[0])
    assert (store.get(KEY) is None) == busy


def test_a_lock_of_a_process_that_has_ended_here_is_taken_over_at_once(locked):
    child = FORK.Process(target=lambda: None)
    child.start()
    child.join(30)
    store = locked(f"{child.pid} {socket.gethostname()} 1")
    assert len(store.compute(KEY, tiles(), counted()[0])) == 10
    assert ".lock" not in files_of(store)


def test_a_lock_is_renewed_with_each_batch(tmp_path):
    ages = []

    def look(call: int) -> None:
        path = tmp_path / "ab" / KEY / ".lock"
        ages.append(time.time() - path.stat().st_mtime)
        os.utime(path, (1, 1))

    FeatureStore(tmp_path).compute(KEY, tiles(), counted(look)[0], batch_size=4)
    assert len(ages) == 3
    assert max(ages) < 30


def test_a_lock_that_another_took_over_makes_the_first_give_up_and_stays(tmp_path):
    path = tmp_path / "ab" / KEY / ".lock"
    encoder, calls = counted(lambda call: path.write_text("1 some-other-host 1") and None)
    with pytest.raises(EntryLocked, match="taken over by process 1 some-other-host"):
        FeatureStore(tmp_path).compute(KEY, tiles(), encoder, batch_size=2)
    assert calls.value == 1
    assert path.read_text() == "1 some-other-host 1"


def test_a_lock_is_released_by_errors_and_interrupts(tmp_path):
    def interrupt(call: int) -> None:
        raise KeyboardInterrupt

    store = FeatureStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.compute(KEY, tiles(), counted(interrupt)[0])
    assert files_of(store) == set()


def test_clear_locks_removes_them_all(locked):
    store = locked("1 some-other-host 1")
    assert store.clear_locks() == 1
    assert len(store.compute(KEY, tiles(), counted()[0])) == 10
    assert store.clear_locks() == 0
