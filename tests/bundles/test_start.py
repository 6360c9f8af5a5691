"""`start_ckpt`: with which weights a training begins, in one process and in several."""

from __future__ import annotations

import pytest

from common.commands.run import BUNDLES
from tests.running import run_module

DRAWN = ["train", "covid", "train_refine", "covid_refine", "train_draw"]


@pytest.mark.parametrize(
    ("bundle", "names"),
    [
        ("gp_unet_brats", ["train", "train_refine"]),
        ("gp_unet_brats", ["train", "train_refine", "multi_gpu_train"]),
        ("tonno_mosmed", ["train", "train_refine"]),
        ("insight_ct", DRAWN),
    ],
)
def test_a_training_begins_with_the_weights_that_it_is_given(bundle, names, tmp_path):
    done = run_module("tests.bundles.check_start", str(tmp_path), *names, cwd=BUNDLES / bundle)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "as told"
