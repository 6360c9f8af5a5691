from __future__ import annotations

import csv
import errno
import gzip
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from tqdm import TMonitor

from common.engines import CaseDataset
from common.handlers import CaseWriter, LabelScores
from tests.pipeline import BrightnessNet, evaluator, save

CLASSES = ["none", "tumor"]


def blob(shape: tuple[int, ...] = (24, 20, 6)) -> np.ndarray:
    image = np.random.default_rng(0).uniform(0.9, 1.1, shape).astype(np.float32)
    image[8:14, 6:12, 2:4] = 3.0
    return image


@pytest.fixture
def cases(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Good cases at both ends, and between them one of each kind of bad file."""
    good = save(tmp_path / "data" / "good.nii.gz", blob())
    bad: dict[str, Any] = {
        "flat": blob()[..., 2],
        "nan": np.where(blob() > 2, np.nan, blob()),
        "empty": np.zeros((24, 20, 6), np.float32),
        "channels": np.stack([blob()] * 3, axis=-1),
    }
    files = {name: save(tmp_path / "data" / f"{name}.nii.gz", volume) for name, volume in bad.items()}
    files["missing"] = str(tmp_path / "data" / "missing.nii.gz")
    files["truncated"] = str(tmp_path / "data" / "truncated.nii.gz")
    Path(files["truncated"]).write_bytes(Path(good).read_bytes()[:5000])
    files["text"] = str(tmp_path / "data" / "text.nii.gz")
    Path(files["text"]).write_bytes(gzip.compress(b"no image at all"))
    names = ["first", *files, "last"]
    return {name: {"case": name, "patient": name, "image": files.get(name, good)} for name in names}


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("[!.]*")}


def files_of(*names: str) -> set[str]:
    return {f"{name}_{kind}" for name in names for kind in ("heatmap.nii.gz", "seg.nii.gz", "montage.png")}


def test_bad_cases_are_listed_with_their_files_and_the_good_ones_are_written(cases, tmp_path):
    engine = evaluator(list(cases.values()), [CaseWriter(tmp_path / "out", classes=CLASSES)])
    with pytest.raises(RuntimeError, match="7 of 9 cases failed") as failure:
        engine.run()
    lines = dict(line.strip().split(": ", 1) for line in str(failure.value).splitlines()[1:])
    assert lines.keys() == cases.keys() - {"first", "last"} == engine.failed.keys()
    for name, reason in lines.items():
        assert cases[name]["image"] in reason, f"{name} does not name its file: {reason}"
    assert "expected a 3D image, got shape [24, 20]" in lines["flat"]
    assert "NaN" in lines["nan"]
    assert "--channels 3 trains on such images" in lines["channels"]
    assert "every voxel is 0" in lines["empty"]
    assert "FileNotFoundError" in lines["missing"]
    assert "end-of-stream" in lines["truncated"]
    assert written(tmp_path / "out") == files_of("first", "last") | {"predictions.csv"}
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["first", "last"]


def test_good_cases_alone_end_without_an_error_and_a_second_run_forgets_the_first(cases, tmp_path):
    engine = evaluator([cases["first"], cases["last"]], [CaseWriter(tmp_path / "out", classes=CLASSES)])
    engine.failed["of an earlier run"] = "?"
    engine.run()
    assert engine.failed == {}
    engine.run()
    assert engine.state.iteration == 2
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_full_disk_fails_that_case_alone_and_leaves_nothing_of_it(cases, tmp_path, monkeypatch):
    whole = nib.save

    def until_full(image: Any, path: Path) -> None:
        if "middle_seg" in str(path):
            Path(path).write_bytes(b"half a header")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(image, path)

    monkeypatch.setattr("common.images.writing.nib.save", until_full)
    three = [cases["first"], cases["first"] | {"case": "middle"}, cases["last"]]
    engine = evaluator(three, [CaseWriter(tmp_path / "out", classes=CLASSES)])
    with pytest.raises(RuntimeError, match=r"1 of 3 cases failed:\n  middle: NotWritten: .*No space left.*free space"):
        engine.run()
    assert written(tmp_path / "out") == files_of("first", "last") | {"predictions.csv"}
    assert "middle" not in (tmp_path / "out" / "predictions.csv").read_text()


def test_when_every_case_fails_they_are_listed_before_what_a_handler_says_of_it(cases, tmp_path):
    engine = evaluator([cases["missing"], cases["nan"]], [LabelScores(tmp_path / "out")])
    with pytest.raises(RuntimeError, match=r"(?s)2 of 2 cases failed:.*missing:.*nan:.*no case has a label"):
        engine.run()


def test_an_error_at_the_end_of_a_run_without_failed_cases_is_not_hidden(cases, tmp_path):
    engine = evaluator([cases["first"]], [])

    @engine.on(Events.COMPLETED)
    def finish() -> None:
        raise OSError("the summary cannot be written")

    with pytest.raises(OSError, match="the summary cannot be written"):
        engine.run()


def test_interrupting_is_no_failed_case(cases):
    engine = evaluator([cases["first"], cases["last"]], [])

    @engine.on(Events.ITERATION_STARTED)
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run()


def test_dataset_gives_the_error_in_place_of_a_case_it_cannot_read_and_hides_cls():
    def transform(case: dict) -> dict:
        if case["case"] == "b":
            raise ValueError("mend it") from KeyError("inner")
        return case

    a, b = CaseDataset([{"case": "a", "image": "x.nii", "cls": [0, 1]}, {"case": "b", "image": "y.nii"}], transform)
    assert a.keys() == {"case", "image", "load_seconds"}
    assert b == {"case": "b", "error": "ValueError: mend it (in y.nii)"}


class Counting(BrightnessNet):
    """Counts its calls, and fails in the second one."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.calls = 0
        self.second = threading.Event()

    def explain(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        if self.calls == 2:
            self.second.set()
            if self.fails:
                raise ValueError("out of memory")
        assert not torch.is_grad_enabled()
        return super().explain(image)


class TestAhead:
    """With workers the network runs ahead of what follows it."""

    def test_what_is_written_and_what_is_said_of_bad_cases_is_the_same(self, cases, tmp_path):
        said, tables = [], []
        for workers in (0, 1):
            out = tmp_path / str(workers)
            engine = evaluator(list(cases.values()), [CaseWriter(out, classes=CLASSES)], num_workers=workers)
            with pytest.raises(RuntimeError, match="7 of 9 cases failed") as failure:
                engine.run()
            said.append(str(failure.value))
            with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
                tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
        assert said[0] == said[1]
        assert tables[0] == tables[1]
        one, other = (tmp_path / str(workers) for workers in (0, 1))
        assert written(one) == written(other)
        for name in files_of("first", "last"):
            contents = [(folder / name).read_bytes() for folder in (one, other)]
            if name.endswith(".gz"):
                contents = [gzip.decompress(content) for content in contents]
            assert contents[0] == contents[1]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_the_next_case_goes_through_the_network_before_this_one_is_written(self, cases, tmp_path, workers):
        network = Counting()
        three = [cases["first"], cases["first"] | {"case": "middle"}, cases["last"]]
        engine = evaluator(three, [], network=network, num_workers=workers)
        waited: list[bool] = []

        @engine.on(IterationEvents.MODEL_COMPLETED)
        def wait_for_the_second() -> None:
            waited.append(network.second.wait(20 * workers))

        engine.run()
        assert waited[0] == (workers == 1)
        assert network.calls == 3

    def test_a_case_on_which_the_network_fails_is_named_and_the_next_ones_keep_their_own_results(self, cases, tmp_path):
        dark = save(tmp_path / "dark.nii.gz", np.where(blob() > 2, 1.0, blob()).astype(np.float32))
        four = [cases["first"], cases["first"] | {"case": "middle"}, {"case": "dark", "image": dark}, cases["last"]]
        out = tmp_path / "out"
        engine = evaluator(four, [CaseWriter(out, classes=CLASSES)], network=Counting(fails=True), num_workers=1)
        with pytest.raises(RuntimeError, match=r"1 of 4 cases failed:\n  middle: ValueError: out of memory"):
            engine.run()
        with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
            found = {row["case"]: float(row["volume_ml"]) > 0 for row in csv.DictReader(file)}
        assert found == {"first": True, "dark": False, "last": True}

    def test_workers_are_forked_whatever_is_usual(self, cases, tmp_path):
        """MONAI finds a transform that it inverts by its `id`, which is another one in a process that is not forked."""
        usual = multiprocessing.get_start_method()
        multiprocessing.set_start_method("forkserver", force=True)
        try:
            writer = CaseWriter(tmp_path / "out", classes=CLASSES, save_montage=False)
            evaluator([cases["first"]], [writer], num_workers=1).run()
        finally:
            multiprocessing.set_start_method(usual, force=True)
        assert (tmp_path / "out" / "first_seg.nii.gz").is_file()

    def test_threads_are_given_back_and_interrupting_ends_what_is_under_way(self, cases):
        # The first bar of a process starts a thread of tqdm's that stays.
        def running() -> set[threading.Thread]:
            return {thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)}

        before, threads = running(), torch.get_num_threads()
        engine = evaluator([cases["first"], cases["last"]], [], num_workers=1)

        @engine.on(Events.ITERATION_STARTED)
        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.run()
        assert [thread.name for thread in threading.enumerate() if "forward" in thread.name] == []
        for thread in running() - before:  # those of the loader's queues are told to end, and not waited for
            thread.join(timeout=10)
        assert (running() - before, torch.get_num_threads()) == (set(), threads)
