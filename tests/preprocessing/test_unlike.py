from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from common.preprocessing.seen import describe_case
from common.preprocessing.unlike import unlike_others

WINDOW = (-1350.0, 150.0)


def described(slopes: Mapping[str, tuple[float, float]], window: tuple[float, float] | None = None) -> dict:
    """Cases of intensities 20 to 200 on a line of their own, slope and offset."""
    organ = np.zeros((12, 12, 4), bool)
    organ[2:-2, 2:-2] = True
    image = np.random.default_rng(0).uniform(20, 200, (1, *organ.shape))
    options = {"spacing": (1.0, 1.0, 4.0), "native_spacing": (1.0, 1.0, 4.0), "window": window}
    return {name: describe_case(slope * image + offset, organ, **options) for name, (slope, offset) in slopes.items()}


RAW = {f"p{n}": (1.0 + n, 0.0) for n in range(6)}  # scanners differ
HU = {f"p{n}": (3.0, -1000.0 + 10 * n) for n in range(6)}


def test_standardized_images_among_raw_ones_are_named_and_raw_ones_among_those():
    assert unlike_others(described(RAW)) == []
    odd = unlike_others(described(RAW | {"x": (0.02, -2.0), "y": (0.02, -2.0)}))
    assert len(odd) == 1
    assert odd[0].startswith("x, y: negative values, which 6 other cases lack")
    standardized = dict.fromkeys(RAW, (0.02, -2.0))
    assert unlike_others(described(standardized)) == []
    assert unlike_others(described(standardized | {"x": (1, 0)}))[0].startswith(
        "x: no negative values, which 6 other cases have"
    )


def test_where_a_window_scales_other_units_are_named():
    assert unlike_others(described(HU, WINDOW), window=WINDOW) == []
    odd = unlike_others(described(HU | {"x": (1.0, 0.0)}, WINDOW), window=WINDOW)
    assert len(odd) == 1
    assert odd[0].startswith("x: 5 to 95 % of the organ's intensities are ")
    assert "other units?" in odd[0]
    each = {f"m{n}": (1.0, 1000.0 * n) for n in range(8)}  # in units of its own: none is odd
    assert unlike_others(described(each, WINDOW), window=WINDOW) == []


@pytest.mark.parametrize("window", [None, WINDOW])
def test_a_mask_in_the_place_of_an_image_is_named(window):
    lines = RAW if window is None else HU
    found = unlike_others(described({"m": (0.0, lines["p2"][1] + 1.0)} | lines, window), window=window)
    assert found[0] == "m: nearly all of the organ has one value: masks?"


def test_no_case_is_no_doubt():
    assert unlike_others({}) == []


@pytest.mark.parametrize("window", [None, WINDOW])
def test_one_scan_under_two_names_is_named_whatever_files_it_was_read_from(window):
    organ = np.ones((40, 40, 3), bool)
    scans = {name: np.random.default_rng(seed).uniform(20, 200, (1, *organ.shape)) for seed, name in enumerate("abc")}
    scans["d"] = scans["b"].astype(np.float32).astype(np.float64)
    options = {"spacing": (1.0, 1.0, 4.0), "native_spacing": (1.0, 1.0, 4.0), "window": window}
    cases = {name: describe_case(np.float32(scan), organ, **options) for name, scan in scans.items()}
    assert unlike_others(cases, window=window) == ["b, d: the same organ and intensities: copies of one scan?"]
    assert unlike_others({name: cases[name] for name in "abc"}, window=window) == []


def test_of_several_channels_and_many_cases_the_doubt_names_the_channel_and_the_first_cases():
    cases = described(RAW | {f"m{n}": (0.0, 1.0) for n in range(6)})
    of_channels = ("quantiles", "outside", "negative", "contrast")
    two = {name: case | {key: case[key] * 2 for key in of_channels} for name, case in cases.items()}
    first, second = unlike_others(two)
    assert first.startswith("m0, m1, m2, m3, m4, … (6), channel 1: nearly all")
    assert second.startswith("m0, m1, m2, m3, m4, … (6), channel 2: nearly all")
