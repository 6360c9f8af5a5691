from __future__ import annotations

import numpy as np
import pytest

from benchmarks.inputs import benchmark_inputs, benchmark_organ
from common.datasets import write_phantom
from tests.pipeline import affine_of, save


def test_scans_are_counted_by_how_they_are_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.path", ["."])
    write_phantom(tmp_path, cases=2, shape=(48, 48, 12), healthy_fraction=0.0)
    (tmp_path / "phantom_001" / "flair.nii.gz").write_bytes(b"no scan")
    assert benchmark_inputs("gp_unet_brats", str(tmp_path)) == {"error": 1, "warning": 1, "silent": 0}
    shown = capsys.readouterr().out
    assert "phantom_000: warning: organ of" in shown  # a phantom's head is small
    assert "phantom_001: error: " in shown
    assert "2 scans: 1 error, 1 warning, 0 silent" in shown


@pytest.mark.parametrize(("share", "score"), [(1.0, 1.0), (0.5, 2 / 3)])
def test_the_organ_that_is_found_is_scored_against_the_one_that_is_given(tmp_path, capsys, share, score):
    shape = (20, 16, 6)
    affine = affine_of("RAS", (2, 2, 5), shape)
    given = np.zeros(shape, np.uint8)
    given[: int(20 * share)] = 1
    save(tmp_path / "a" / "ct.nii.gz", np.random.default_rng(0).random(shape).astype(np.float32), affine)
    save(tmp_path / "a" / "lung.nii.gz", given, affine)
    assert benchmark_organ(str(tmp_path), organ="none") == {"a": pytest.approx(score, abs=1e-3)}
    assert f"a: Dice {score:.3f}, " in capsys.readouterr().out
