from __future__ import annotations

from importlib.util import find_spec

from benchmarks.radon import benchmark_radon
from common.radon import directions

FAST = ("torch", "finufft") if find_spec("finufft") else ("torch",)


def test_prints_fast_forms_beside_naive_ones_and_they_agree(capsys):
    result = benchmark_radon(
        shape=(20, 18, 7),
        spacing=(1.0, 1.0, 2.5),
        num_directions=200,
        num_slices=16,
        slice_size=20,
        map_size=5,
        repeats=1,
    )
    rows = [
        "backprojection, direct (naive)",
        *(f"backprojection, fourier, {backend}" for backend in FAST),
        "slices, one at a time (naive)",
        "slices, any directions",
        "slices, latitude layout",
        "maps of 5, averaged and tomographic",
    ]
    printed = capsys.readouterr().out
    for row in rows:
        assert row in printed
        assert result[f"{row} s"] > 0
    assert len(result) == 2 * len(rows) + len(FAST)
    for backend in FAST:
        assert result[f"correlation {backend}"] > 0.99


def test_times_of_a_few_directions_are_scaled_to_all_or_to_one(monkeypatch):
    monkeypatch.setattr("benchmarks.radon._fastest", lambda function, repeats: (1.0, 2.0))
    result = benchmark_radon(shape=(8, 8, 8), num_directions=200, num_slices=8, slice_size=8, map_size=4)
    assert result["backprojection, direct (naive) s"] == len(directions(200)) / 8
    assert result["backprojection, direct (naive) CPU-s"] == 2 * len(directions(200)) / 8
    assert result["backprojection, fourier, torch s"] == 1.0
    assert result["slices, latitude layout s"] == 1 / 10
    assert result["maps of 4, averaged and tomographic s"] == 1 / 8
