from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.handlers import CaseHandler, iterate_cases
from tests.pipeline import run_handler

ITEMS = [({"case": name}, {"pred": number}) for number, name in enumerate("abc")]


class Found(CaseHandler):
    """One row a case and one more for `b`; what is written, and by whom."""

    def __init__(self, output_dir: Path) -> None:
        super().__init__(output_dir)
        self.written: list[list[dict]] = []

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        self.rows += [{"case": batch["case"], "pred": output["pred"]}] * (2 if batch["case"] == "b" else 1)

    def _check(self) -> None:
        if len(self.rows) < 2:
            raise RuntimeError("too few")

    def _write(self) -> None:
        self.written.append(self.rows)


def names(rows: list[dict]) -> str:
    return "".join(row["case"] for row in rows)


def test_each_case_is_collected_with_its_own_output_and_written_once_at_the_end(tmp_path):
    handler = Found(tmp_path)
    run_handler(handler, ITEMS)
    assert [[(row["case"], row["pred"]) for row in rows] for rows in handler.written] == [
        [("a", 0), ("b", 1), ("b", 1), ("c", 2)]
    ]


def test_a_second_run_starts_afresh(tmp_path):
    handler = Found(tmp_path)
    run_handler(handler, ITEMS)
    run_handler(handler, ITEMS[1:])
    assert [names(rows) for rows in handler.written] == ["abbc", "bbc"]


@pytest.mark.parametrize(("rank", "written"), [(0, ["abbcde"]), (1, [])])
def test_every_process_holds_all_rows_and_the_first_one_writes(tmp_path, monkeypatch, rank, written):
    others = [{"case": "d"}, {"case": "e"}]
    monkeypatch.setattr("common.handlers.base.gathered_rows", lambda rows, cases: [*rows, *others])
    monkeypatch.setattr("common.handlers.base.get_rank", lambda: rank)
    handler = Found(tmp_path)
    run_handler(handler, ITEMS)
    assert names(handler.rows) == "abbcde"
    assert [names(rows) for rows in handler.written] == written


@pytest.mark.parametrize("rank", [0, 1])
def test_too_little_is_said_by_every_process_after_all_rows_are_there(tmp_path, monkeypatch, rank):
    monkeypatch.setattr("common.handlers.base.get_rank", lambda: rank)
    handler = Found(tmp_path)
    with pytest.raises(RuntimeError, match="too few"):
        run_handler(handler, ITEMS[:1])
    assert handler.written == []
    monkeypatch.setattr("common.handlers.base.gathered_rows", lambda rows, cases: [*rows, {"case": "b"}])
    run_handler(handler, ITEMS[:1])


def test_rows_come_in_the_order_of_the_runs_cases(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("common.handlers.base.gathered_rows", lambda rows, cases: asked.append(cases) or rows)
    handler = Found(tmp_path)
    handler.rows = [{"case": "a"}, {"case": "b"}]
    handler._finish(SimpleNamespace(cases=["c", "a"]))
    assert asked == [["c", "a"]]


def test_an_iteration_that_is_one_case_is_passed_on_as_it_is():
    batch, output = {"case": ["a"]}, {"pred": "a slide's result"}
    assert list(iterate_cases(SimpleNamespace(state=SimpleNamespace(batch=batch, output=output)))) == [(batch, output)]


def test_an_iteration_of_unequal_parts_is_an_error():
    state = SimpleNamespace(batch=[{}, {}], output=[{}])
    with pytest.raises(ValueError, match="zip"):
        list(iterate_cases(SimpleNamespace(state=state)))
