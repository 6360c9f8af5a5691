from __future__ import annotations

import logging
import os
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.data import SliceDataset
from common.data.cache import VolumeCache, in_turns, warn_of_memory
from common.files import NotWritten
from tests.pipeline import save

SHAPE = (6, 5, 4)


class Preprocessing:
    """Reads a file of an image, to which it puts an organ; counts how often, outside of itself: that is no setting."""

    read: list[str] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, *, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, case: dict) -> dict:
        Preprocessing.read.append(case["case"])
        image = torch.from_numpy(np.load(case["image"])).float()[None] * self.factor
        return {**case, "image": torch.cat([image, (image > 0).float()])}


def targets(case: dict, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """A mask and a number a slice, which depend on the label, too."""
    return {"mask": image[:1] > np.max(case["cls"]), "number": torch.arange(image.shape[-1])}


@pytest.fixture
def cases(tmp_path) -> list[dict[str, Any]]:
    """Three volumes; the last has no organ in its first slice, and a narrow one elsewhere."""
    found = []
    for number in range(3):
        image = np.random.default_rng(number).uniform(0.5, 3, SHAPE).astype(np.float32)
        if number == 2:
            image[..., 0] = 0
            image[:, 2:] = 0
        path = tmp_path / "in" / f"c{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, image)
        found.append({"case": f"c{number}", "image": str(path), "cls": [0, 1, 1, 0]})
    return found


def read(cases: list[dict[str, Any]], cache: Path | None, *, factor: float = 1.0, **options: Any) -> SliceDataset:
    Preprocessing.read.clear()
    return SliceDataset(cases, Preprocessing(factor=factor), cache_dir=cache, **{"progress": False} | options)


@pytest.mark.parametrize(
    "options", [{}, {"window": [4, 4]}, {"targets": targets}, {"targets": targets, "window": [8, 3]}]
)
def test_items_are_those_of_a_dataset_in_memory(cases, tmp_path, options):
    held = read(cases, None, **options)
    for _ in range(2):  # made, then found
        stored = read(cases, tmp_path / "cache", **options)
        assert (stored.classes, stored.positions, stored.where) == (held.classes, held.positions, held.where)
        for one, other in zip(held, stored, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name]))


def test_a_second_run_reads_no_scan_and_says_the_size(cases, tmp_path, capsys):
    read(cases, tmp_path / "cache", progress=True)
    assert Preprocessing.read == ["c0", "c1", "c2"]
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    assert size > 3 * 2 * 2 * np.prod(SHAPE)
    assert f"{tmp_path / 'cache'}: 3 volumes, 3 of them made now, {size / 2**30:.2f} GiB" in capsys.readouterr().out
    read(cases, tmp_path / "cache", progress=True)
    assert Preprocessing.read == []
    assert "3 volumes, 0 of them made now" in capsys.readouterr().out


def test_no_volume_is_held(cases, tmp_path):
    """What a worker gets is as small as this."""
    big = np.ones((200, 200, 4), np.float32)
    np.save(cases[0]["image"], big)
    data = read(cases, tmp_path / "cache", targets=targets)
    assert len(pickle.dumps(data.volumes)) < 10_000 < big.nbytes
    item = data[0]["image"]
    item += 1  # of its own: the file stays as it is
    assert torch.equal(data[0]["image"] + 1, item)


def test_a_volume_is_found_by_content_wherever_it_lies(cases, tmp_path):
    read(cases, tmp_path / "cache")
    moved = shutil.copy(cases[0]["image"], tmp_path / "other name.npy")
    os.utime(moved, ns=(1, 1))
    read([cases[0] | {"image": moved, "case": "moved"}], tmp_path / "cache")
    assert Preprocessing.read == []


@pytest.mark.parametrize("change", ["content", "preprocessing", "window", "organ_channel"])
def test_a_volume_of_other_content_or_settings_is_made_anew(cases, tmp_path, change):
    read(cases, tmp_path / "cache")
    options: dict[str, Any] = {"preprocessing": {"factor": 2.0}, "window": {"window": [4, 4]}, "content": {}}.get(
        change, {"organ_channel": False}
    )
    if change == "content":  # name, size and time stay
        path = Path(cases[1]["image"])
        about = path.stat()
        np.save(path, np.load(path) + 1)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    data = read(cases, tmp_path / "cache", **options)
    assert Preprocessing.read == (["c1"] if change == "content" else ["c0", "c1", "c2"])
    for one, other in zip(data, read(cases, None, **options), strict=True):
        assert torch.equal(one["image"], other["image"])


def test_labels_are_not_stored_but_targets_follow_them(cases, tmp_path):
    read(cases, tmp_path / "cache", targets=targets)
    relabeled = [case | {"cls": [0, 2, 2, 0]} for case in cases]
    assert set(read(relabeled, tmp_path / "cache").classes) == {0, 2}
    assert Preprocessing.read == []
    data = read(relabeled, tmp_path / "cache", targets=targets)
    assert Preprocessing.read == ["c0", "c1", "c2"]
    assert torch.equal(data[0]["mask"], (read(relabeled, None)[0]["image"] > 2).float())


def test_targets_follow_the_mask_that_they_may_be_made_from(cases, tmp_path):
    for case in cases:
        case["label"] = save(tmp_path / "in" / f"{case['case']}.nii", np.zeros(SHAPE, np.uint8))
    read(cases, tmp_path / "cache", targets=targets)
    save(Path(cases[1]["label"]), np.ones(SHAPE, np.uint8))
    read(cases, tmp_path / "cache")
    assert Preprocessing.read == []
    read(cases, tmp_path / "cache", targets=targets)
    assert Preprocessing.read == ["c1"]


@pytest.mark.parametrize("damage", ["no entry.json", "empty entry.json", "cut off", "missing"])
def test_an_unfinished_or_damaged_entry_is_made_anew(cases, tmp_path, damage):
    read(cases[:1], tmp_path / "cache")
    (entry,) = (tmp_path / "cache").rglob("entry.json")
    if damage == "no entry.json":
        entry.unlink()
    elif damage == "empty entry.json":
        entry.write_bytes(b"")
    elif damage == "cut off":
        os.truncate(entry.parent / "image.npy", 200)
    else:
        (entry.parent / "shown.npy").unlink()
    data = read(cases[:1], tmp_path / "cache")
    assert Preprocessing.read == ["c0"]
    assert torch.equal(data[2]["image"], read(cases, None)[2]["image"])


def test_what_is_killed_while_it_writes_leaves_no_entry(cases, tmp_path, monkeypatch):
    def full(path: Any, content: Any) -> None:
        if "shown" in str(path):
            raise NotWritten(f"{path} cannot be written")

    monkeypatch.setattr("common.data.cache.write", full)
    with pytest.raises(NotWritten, match=r"shown.npy cannot be written"):
        read(cases, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("entry.json"))


def test_two_that_need_the_same_entry_make_it_once(cases, tmp_path):
    caches = [VolumeCache(tmp_path / "cache", "the same") for _ in range(2)]

    def make() -> dict[str, torch.Tensor]:
        time.sleep(0.2)
        return {"image": torch.ones(3)}

    threads = [threading.Thread(target=cache.entry, args=([cases[0]["image"]], make)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache.made for cache in caches) == [0, 1]
    assert [cache.entries for cache in caches] == [1, 1]


def test_processes_begin_with_different_parts_and_take_everything(monkeypatch):
    monkeypatch.setattr("common.data.cache.get_world_size", lambda: 3)
    orders = []
    for rank in range(3):
        monkeypatch.setattr("common.data.cache.get_rank", lambda rank=rank: rank)
        orders.append(list(in_turns(range(7), progress=False)))
    assert [order[0] for order in orders] == [0, 2, 4]
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_items_do_not_depend_on_which_process_reads_them_first(cases, tmp_path, monkeypatch):
    alone = read(cases, None)
    monkeypatch.setattr("common.data.cache.get_world_size", lambda: 2)
    monkeypatch.setattr("common.data.cache.get_rank", lambda: 1)
    second = read(cases, tmp_path / "cache")
    assert Preprocessing.read == ["c1", "c2", "c0"]
    assert second.where == alone.where
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(second, alone, strict=True))


def test_a_preprocessing_that_is_random_is_refused(cases, tmp_path):
    preprocessing = Preprocessing()
    preprocessing.noise = np.random.default_rng(0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"noise is random"):
        SliceDataset(cases, preprocessing, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize(("count", "warned"), [(1, False), (1 << 20, True)])
def test_volumes_that_do_not_fit_into_memory_are_told_where_to_go(caplog, count, warned):
    volume = torch.zeros(1, dtype=torch.float16).expand(1 << 24)  # 32 MB, of which two bytes exist
    with caplog.at_level(logging.WARNING):
        warn_of_memory([volume], count)
    assert ("keep them on disk with --cache_dir DIR" in caplog.text) == warned
    assert ("1048576 volumes like the first are 32768.0 GiB, this machine has" in caplog.text) == warned
