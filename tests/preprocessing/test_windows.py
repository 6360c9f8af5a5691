from __future__ import annotations

import logging

import pytest
from monai.transforms import Compose

from common.preprocessing import within_window
from common.preprocessing.windows import OutsideWindow, outside_window
from tests.preprocessing.test_checking import preprocessing, volume


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    """The second is in other units; masks of findings are not there to be opened."""
    slopes = {"a": {}, "b": {"offset": -1000.0}, "c": {}}
    return [volume(tmp_path, name, **options) | {"label": "none", "cls": 1} for name, options in slopes.items()]


def test_by_default_all_are_taken_unread_and_the_preprocessing_raises(cases):
    gone = [{**case, "image": "gone.nii.gz"} for case in cases]
    assert within_window(gone, preprocessing(None)) == gone
    assert within_window(cases, preprocessing(None)) == cases
    with pytest.raises(RuntimeError) as error:
        preprocessing(None)({key: value for key, value in cases[1].items() if key != "label"})
    assert isinstance(error.value.__cause__, OutsideWindow)


def test_on_request_a_case_of_which_the_window_shows_nothing_is_left_out_and_named_with_the_reason(cases, caplog):
    after = Compose([*preprocessing(None).transforms, lambda data: pytest.fail("read beyond the check")])
    with caplog.at_level(logging.WARNING):
        assert within_window(cases, after, skip=True, progress=False) == [cases[0], cases[2]]
    assert "1 of 3 case(s) left out" in caplog.text
    assert f"b ({cases[1]['image']}: 100% of the organ's voxels lie outside" in caplog.text
    with pytest.raises(ValueError, match="the window shows nothing of any of 1 cases: b "):
        within_window(cases[1:2], after, skip=True, progress=False)


def test_without_a_window_there_is_nothing_to_leave_out(cases):
    gone = [{**case, "image": "gone.nii.gz"} for case in cases]
    unread = Compose([lambda data: pytest.fail("read"), *preprocessing(None, window=None).transforms])
    for transform in (unread, preprocessing(None).transforms[0], None):
        assert within_window(gone, transform, skip=True) == gone


def test_other_errors_are_no_reason_to_leave_a_case_out(cases):
    cases[1]["image"] = "gone.nii.gz"  # the training says so
    assert within_window(cases, preprocessing(None), skip=True, progress=False) == cases


def test_processes_share_the_reading_and_take_the_same_cases(cases, monkeypatch):
    """With NCCL each of them sends from a device of its own."""
    told: list[dict] = []
    devices, read = [], []

    def exchange(parts: list, mine: dict) -> None:
        told.append(mine)
        parts[:] = told[:2] if len(told) > 2 else [mine, {}]

    steps = Compose([lambda case: read.append(case["case"]) or case, *preprocessing(None).transforms])
    monkeypatch.setattr("common.engines.processes.all_gather_object", exchange)
    monkeypatch.setattr("common.engines.processes.get_backend", lambda: "nccl")
    monkeypatch.setattr("torch.cuda.set_device", devices.append)
    for place in ("common.preprocessing.windows", "common.engines.processes"):
        monkeypatch.setattr(f"{place}.get_world_size", lambda: 2)
    kept = []
    for rank in (0, 1, 0, 1):
        monkeypatch.setattr("common.preprocessing.windows.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("common.engines.processes.get_local_rank", lambda rank=rank: rank)
        kept.append(within_window(cases, steps, skip=True, progress=False))
    assert read == ["a", "c", "b"] * 2
    assert kept[2] == kept[3] == [cases[0], cases[2]]
    assert devices == [0, 1, 0, 1]


def test_next_to_all_of_an_organ_has_to_lie_outside_and_the_text_says_where_most_of_it_lies():
    case = {"outside": [0.2, 0.98], "quantiles": [[1, 5, 25, 50, 75, 95, 99], [10, 50, 250, 500, 750, 950, 990]]}
    assert outside_window(case, (0, 1)) == ""
    assert outside_window(case | {"outside": [0.2, 0.99]}, None) == ""
    said = outside_window(case | {"outside": [0.2, 0.99]}, (0, 1))
    assert said.startswith("99% of the organ's voxels lie outside of the window [0, 1]")
    assert "(5 to 95 % of them are 50 to 950)" in said
