"""A run that was interrupted goes on where it was."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events

from common.handlers import CaseScores, CaseWriter
from tests.pipeline import BrightnessNet, evaluator, save

SHAPE = (12, 10, 3)


class Seen(BrightnessNet):
    """How often it was asked lies outside of it: it is no setting."""

    calls = 0

    def __init__(self, level: float) -> None:
        super().__init__(level)
        self._place = id(self)  # another one in every run, as what a network keeps to itself may be

    def explain(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Seen.calls += 1
        return super().explain(image)


def make_cases(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    cases = []
    for number in range(count):
        image = np.random.default_rng(number).uniform(0.9, 1.1, SHAPE).astype(np.float32)
        image[2:6, 2 : 3 + number % 5, 1] = 4.0
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        path = save(folder / f"c{number:02d}.nii.gz", image, affine)
        if number in broken:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
        label = save(folder / f"m{number:02d}.nii.gz", (image > 2).astype(np.uint8), affine)
        cases.append({"case": f"c{number:02d}", "image": path, "label": label})
    return cases


def run(
    cases: list[dict], out: Path, *, stop_after: int | None = None, more: tuple[Any, ...] = (), **options: Any
) -> int:
    """Run, interrupted after so many cases, and return through how many the network went."""
    keys = {key: options.pop(key) for key in ("overwrite", "save_montage") if key in options}
    handler = CaseWriter(out, classes=["none", "tumor"], **{"overwrite": False, "save_montage": False} | keys)
    network = Seen(options.pop("level", 2.0))
    engine = evaluator(cases, [handler, *more], network=network, spacing=[-1.0, -1.0, -1.0], **options)
    Seen.calls = 0

    @engine.on(Events.ITERATION_COMPLETED)
    def interrupt() -> None:
        if engine.state.iteration == stop_after:
            raise KeyboardInterrupt

    if stop_after is None:
        engine.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            engine.run()
    return Seen.calls


def table(out: Path, *without: str) -> list[dict[str, str]]:
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def test_thirty_cases_with_three_broken_are_interrupted_and_all_others_end_in_files_and_table(tmp_path):
    cases = make_cases(tmp_path / "in", 30, broken=(1, 9, 20))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    failed = r"3 of 30 cases failed:\n  c01: .*\n  c09: .*\n  c20: .*"
    with pytest.raises(RuntimeError, match=failed):
        run(cases, whole)
    assert run(cases, parts, stop_after=12) == 10
    assert not (parts / "predictions.csv").exists()
    with pytest.raises(RuntimeError, match=failed):
        run(cases, parts)
    assert Seen.calls == 17
    good = [case["case"] for number, case in enumerate(cases) if number not in (1, 9, 20)]
    assert [row["case"] for row in table(parts)] == good
    assert table(parts, "seconds") == table(whole, "seconds")
    assert sorted(path.name for path in parts.glob("*_seg.nii.gz")) == [f"{case}_seg.nii.gz" for case in good]


@pytest.fixture
def finished(tmp_path) -> tuple[list[dict], Path]:
    """Three cases, and the folder of a run over them."""
    cases, out = make_cases(tmp_path / "in", 3), tmp_path / "out"
    assert run(cases, out) == 3
    return cases, out


def test_by_default_every_case_is_made_anew(finished):
    cases, out = finished
    assert run(cases, out, overwrite=True) == 3
    assert [row["case"] for row in table(out)] == ["c00", "c01", "c02"]


def test_a_finished_run_is_not_repeated_and_its_table_is_there(finished):
    cases, out = finished
    before = table(out)
    (out / "predictions.csv").unlink()
    assert run(cases, out) == 0
    assert table(out) == before


def test_rows_come_in_the_order_of_the_cases_whatever_was_there(finished, tmp_path):
    cases, out = finished
    assert run([*make_cases(tmp_path / "more", 5)[3:], *cases], out) == 2
    assert [row["case"] for row in table(out)] == ["c03", "c04", "c00", "c01", "c02"]


@pytest.mark.parametrize(
    "options", [{"level": 2.5}, {"threshold": 0.25}, {"normalize": "none"}, {"gate": 0.4}, {"save_montage": True}]
)
def test_results_of_other_weights_or_settings_are_never_kept_beside_new_ones(finished, caplog, options):
    cases, out = finished
    with caplog.at_level(logging.WARNING):
        assert run(cases, out, **options) == 3
    assert "3 cases in " in caplog.text
    assert "of other weights, settings or input, or not whole: they are made anew" in caplog.text
    assert run(cases, out, **options) == 0


def newer(path: str) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda case, out: (out / "c01_heatmap.nii.gz").unlink(),
        lambda case, out: newer(case["image"]),
        lambda case, out: Path(case["image"]).write_bytes(Path(case["image"]).read_bytes() + b"\0"),
        lambda case, out: newer(case["label"]),  # it is outlined in the picture
        lambda case, out: (out / ".cases" / "c01.json").write_text("{"),
    ],
)
def test_a_case_that_is_not_whole_or_of_another_input_is_made_anew(finished, change: Callable[[dict, Path], Any]):
    cases, out = finished
    change(cases[1], out)
    assert run(cases, out) == 1
    assert (out / "c01_heatmap.nii.gz").is_file()
    assert run(cases, out) == 0


def test_scores_are_those_of_all_cases(finished, tmp_path, caplog):
    cases, out = finished
    with caplog.at_level(logging.WARNING):
        assert run(cases, out, more=(CaseScores(out, resamples=10),)) == 3
    assert "every case is made anew: CaseScores has to see all of them" in caplog.text
    with open(out / "metrics.csv", encoding="utf-8", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["c00", "c01", "c02"]


def test_a_case_that_was_killed_among_its_files_is_not_whole(finished, monkeypatch):
    """With other settings its old record must be gone before the first of its new files appears."""
    cases, out = finished
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith("c01_seg.nii.gz"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("common.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(cases, out, threshold=0.25)
    monkeypatch.undo()
    assert run(cases, out) == 2  # c00 has the other threshold, c01 is neither


def test_a_record_that_cannot_be_written_fails_its_case(finished, monkeypatch):
    cases, out = finished

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("common.handlers.finished.write_json", full)
    with pytest.raises(RuntimeError, match="3 of 3 cases failed:\n  c00: OSError: No space left"):
        run(cases, out, threshold=0.25)
    assert not (out / "predictions.csv").read_text().strip()


def test_what_cannot_be_told_from_others_is_refused_when_results_shall_be_kept(finished, tmp_path):
    cases, out = finished
    random = np.random.default_rng(0)
    for overwrite in (True, False):
        network = BrightnessNet()
        network.random = random  # type: ignore[assignment]
        handler = CaseWriter(out, classes=["none", "tumor"], overwrite=overwrite, save_montage=False)
        engine = evaluator(cases, [handler], network=network)
        if overwrite:
            engine.run()
        else:
            with pytest.raises(ValueError, match=r"\.random is random"):
                engine.run()


@pytest.mark.parametrize("overwrite", [True, False])
def test_files_that_no_run_wrote_are_never_replaced_and_own_ones_are(tmp_path, overwrite):
    cases = make_cases(tmp_path, 3)
    mask = Path(save(tmp_path / "c01_seg.nii.gz", np.ones(SHAPE, np.uint8)))  # a reader's, in the folder of the data
    content = mask.read_bytes()
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"1 of 3 cases failed:\n  c01: FileExistsError: .*c01_seg.nii.gz is not"
        ):
            run(cases, tmp_path, overwrite=overwrite)
        assert mask.read_bytes() == content
        assert [row["case"] for row in table(tmp_path)] == ["c00", "c02"]
        assert not (tmp_path / "c01_heatmap.nii.gz").exists()
    mask.unlink()
    run(cases, tmp_path, overwrite=overwrite)
    assert len(table(tmp_path)) == 3


def test_files_of_a_killed_run_are_its_own_at_whatever_point_it_was_killed(tmp_path, monkeypatch):
    cases, out = make_cases(tmp_path / "in", 2), tmp_path / "out"
    replace, left = os.replace, 4  # two temporary files, what will be written, the mask, but not the heatmap

    def killed(*paths: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluator(cases, [CaseWriter(out, classes=["none", "tumor"], save_montage=False)]).run()
    assert [path.name for path in out.glob("[!.]*")] == ["c00_seg.nii.gz"]
    assert run(cases, out, overwrite=True) == 2
