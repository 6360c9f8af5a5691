from __future__ import annotations

import numpy as np
import openslide
import pytest

from benchmarks.heads import line_of, row_of
from benchmarks.slides import write_textured


def test_a_textured_slide_is_a_pyramid_of_known_resolution_with_its_share_of_tissue(tmp_path):
    with openslide.OpenSlide(write_textured(tmp_path / "a.tif", 2048, levels=2)) as slide:
        assert slide.level_dimensions == ((2048, 2048), (1024, 1024))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        for level, side in enumerate((2048, 1024)):
            green = np.asarray(slide.read_region((0, 0), level, (side, side)))[..., 1].astype(int)
            assert (green < 225).mean() == pytest.approx(0.5, abs=0.08)
            assert green[side // 2 : side // 2 + 99, side // 2 : side // 2 + 99].std() > 10  # tissue in the middle
            assert abs(green[:9, :9] - 243).max() < 3


def test_a_row_of_heads_has_each_seeds_auc_and_means_over_seeds():
    def scores(auc: float, mean: float, share: float) -> dict:
        return {"auc_macro": auc, "dice": {"mean": mean, "std": 0.2}, "labels": {"a": {"tissue_in_negatives": share}}}

    row = row_of("abmil", [scores(0.9, 0.5, 0.01), scores(0.8, 0.7, 0.03)])
    assert line_of(row) == "| abmil | 2 | 0.900, 0.800 | 0.600 ± 0.200 | 2.0 % |"
    assert (
        line_of(row_of("abmil", [{"labels": {"a": {"tissue_in_negatives": None}}}]))
        == "| abmil | 1 | n/a | n/a | 0.0 % |"
    )
