from __future__ import annotations

from benchmarks.radon import benchmark_radon


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
    printed = capsys.readouterr().out
    for name in ("direct (naive)", "fourier, torch", "slices, latitude layout", "maps of 5"):
        assert name in printed
    assert all(seconds > 0 for name, seconds in result.items() if name.endswith(" s"))
    assert result["correlation torch"] > 0.99
    assert result["backprojection, fourier, torch s"] < result["backprojection, direct (naive) s"]
