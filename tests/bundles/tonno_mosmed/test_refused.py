"""What the bundle cannot learn is refused as a run begins, with the bundle that can."""

from __future__ import annotations

import pytest

from tests.bundles.conftest import run_bundle


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_several_findings_are_refused_before_anything_is_read(config, tmp_path):
    settings = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "classes": ["none", "a", "b"]}
    done = run_bundle("tonno_mosmed", [config], check=False, **settings)
    assert done.returncode != 0
    assert "gp_unet_brats tells several classes apart" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
