from __future__ import annotations

import logging

import pytest
from monai.transforms import Compose

from common.preprocessing import within_window
from common.preprocessing.windows import OutsideWindow
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
    for transform in (preprocessing(None, window=None), preprocessing(None).transforms[0], None):
        assert within_window(gone, transform, skip=True) == gone


def test_other_errors_are_no_reason_to_leave_a_case_out(cases):
    cases[1]["image"] = "gone.nii.gz"  # the training says so
    assert within_window(cases, preprocessing(None), skip=True, progress=False) == cases
