"""How a training begins: with which weights, in one process and in several; and that each of its steps is there."""

from __future__ import annotations

import re

import pytest
from monai.bundle import ConfigParser

from common.commands.run import BUNDLES
from tests.running import run_module

DRAWN = ["train", "covid", "train_refine", "train_draw"]


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


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("several", [[], ["multi_gpu_train"]])
@pytest.mark.parametrize(
    ("bundle", "names"),
    [(path.parents[1].name, ["train"]) for path in BUNDLES.glob("*/configs/train.json")]
    + [(path.parents[1].name, ["train", "train_refine"]) for path in BUNDLES.glob("*/configs/train_refine.json")]
    + [("insight_ct", DRAWN)],
)
def test_a_training_refers_to_steps_that_it_has(bundle, names, several):
    files = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in [*names, *several]]
    parser = ConfigParser(config=ConfigParser.load_config_files(files))
    steps = [step for key in ("initialize", "run", "finalize") for step in parser.get(key) or []]
    named = {name for step in steps for name in re.findall(r"@([\w#]+)", step)}
    assert {"train#trainer"} <= named
    assert [name for name in named if name.replace("#", "::") not in parser] == []
