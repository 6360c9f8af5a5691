from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from common.handlers import Panel
from tests.pipeline import affine_of, run_handler


def item(case: str, overlap: int, axcodes: str = "LPS") -> tuple[dict, dict]:
    """A lesion in slices 1 and 2 (larger in 2), and a mask that shares `overlap` of its columns."""
    affine = affine_of(axcodes, (1.0, 1.0, 1.0), (12, 10, 4))
    truth, pred = np.zeros((2, 1, 12, 10, 4), dtype=np.float32)
    truth[0, 2:8, 3:6, 2], truth[0, 2:4, 3:6, 1] = 1, 1
    pred[0, 2 : 2 + overlap, 3:6, 2] = 1
    label, mask, scan = (MetaTensor(torch.as_tensor(a), affine=affine) for a in (truth, pred, truth * 3))
    output = {"pred": mask, "heatmap": MetaTensor(mask - 0.5, affine=affine), "baseline_other": label}
    return {"case": case, "label": label, "scan": scan}, output


def test_cases_are_ranked_and_shown_at_the_slice_with_most_truth(tmp_path):
    panel = Panel(tmp_path, quantiles=[1.0, 0.0])
    run_handler(panel, [item("poor", 1), item("good", 6, "RAS"), item("fair", 3)])
    assert {row["case"]: row["truth"].sum() for row in panel.rows} == {"poor": 18, "good": 18, "fair": 18}
    assert list(panel.rows[0]["masks"]) == ["pred", "baseline_other"]
    assert panel.rows[0]["scores"]["baseline_other"] == 1.0
    dices = {row["case"]: row["dice"] for row in panel.rows}
    assert dices["good"] > dices["fair"] > dices["poor"] > 0
    picture = np.asarray(Image.open(tmp_path / "panel.png").convert("RGB")).astype(int)
    amber = (picture[..., 0] > 200) & (abs(picture[..., 1] - 176.0) < 40) & (picture[..., 2] < 100)
    cyan = (picture[..., 1] > 200) & (picture[..., 2] > 200) & (picture[..., 0] < 100)
    assert amber.any()
    assert cyan.any()


def test_columns_can_be_chosen(tmp_path):
    panel = Panel(tmp_path, columns=["baseline_other"], quantiles=[0.5])
    run_handler(panel, [item("a", 2)])
    assert list(panel.rows[0]["masks"]) == ["baseline_other"]


def test_without_any_lesion_there_is_nothing_to_show(tmp_path):
    batch, output = item("healthy", 2)
    batch["label"] = batch["label"] * 0
    with pytest.raises(RuntimeError, match=r"no case with a lesion .* is evaluate.json"):
        run_handler(Panel(tmp_path), [(batch, output)])
