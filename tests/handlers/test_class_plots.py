from __future__ import annotations

import pytest

from common.handlers.class_plots import draw_class_scores

CLASSES = ["healthy", "LGG", "HGG"]


def row(cls: int, *dice: float) -> dict:
    """A slice that is called by its class with a probability of .8; Dice of its mask, raw, cleaned and fixed."""
    scores = dict(zip(("dice_mask", "dice_raw", "dice_cleaned", "dice_fixed"), dice, strict=False))
    return {
        "class": cls,
        "called": cls,
        **{f"probability_{n}": 0.1 + 0.7 * (k == cls) for k, n in enumerate(CLASSES)},
    } | scores


SCORES = {
    "auc": 0.9,
    "auc_interval": [0.85, 0.95],
    "average_precision": 0.7,
    "average_precision_interval": [float("nan")] * 2,
}


def axes(rows: list[dict], sweep: list[dict], scored: dict) -> dict:
    summary = {"classes": scored, "confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    return {axis.get_title(): axis for axis in draw_class_scores(rows, summary, sweep, CLASSES).axes}


def labels(axis) -> list[str]:
    return [] if axis.get_legend() is None else [text.get_text() for text in axis.get_legend().get_texts()]


def test_each_plot_shows_what_was_scored_and_an_interval_where_there_is_one():
    sweep = [{"offset": offset, "dice_raw": 0.4, "dice_cleaned": 0.5} for offset in (0.0, 0.1)]
    shown = axes([row(0), row(1, 0.6, 0.5, 0.7, 0.4), row(1, 0.8, 0.7, 0.9, 0.6)], sweep, {"LGG": SCORES})
    assert labels(shown["ROC, class against the rest"]) == ["LGG 0.900 [0.850, 0.950]"]
    assert labels(shown["Precision and recall"]) == ["LGG 0.700"]
    boxes = shown["Dice of slices with a finding"]
    assert [tick.get_text() for tick in boxes.get_xticklabels()] == ["LGG\nraw", "LGG\ncleaned", "LGG\nfixed"]
    assert [line.get_ydata()[0] for line in boxes.lines[5::6]] == pytest.approx([0.6, 0.8, 0.5])  # medians
    assert labels(shown["Median Dice by offset"]) == ["dice_raw", "dice_cleaned"]
    (points,) = shown["Confidence against Dice"].collections
    assert points.get_offsets().tolist() == [pytest.approx([0.8, 0.6]), pytest.approx([0.8, 0.8])]


def test_plots_without_anything_to_show_stay_empty():
    shown = axes([row(0), row(1)], [], {})
    assert [text.get_text() for text in shown.pop("Slices").texts] == list("100010001")
    assert len(shown) == 5
    assert not any(axis.lines or axis.collections or axis.get_legend() for axis in shown.values())
