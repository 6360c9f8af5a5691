from __future__ import annotations

import pytest

import common.commands.run
from common.commands.console import logged, step
from common.commands.run import BUNDLES, run_bundle
from tests.running import run_module

# What a run says: lines of MONAI and ignite, a warning of this project, and what is printed.
SAYING = """
import logging, sys
from functools import partial
from logging.config import fileConfig
from monai.bundle import workflows
usual = partial(fileConfig, disable_existing_loggers=False)
getattr(workflows, "_apply_logging_file", usual)(sys.argv[-1])
logging.getLogger("monai.bundle.scripts").info("of monai")
logging.getLogger("ignite.engine.engine.Trainer").info("of ignite")
logging.getLogger("common.handlers").warning("take care")
print("printed")
"""


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What reaches the console from runs, in which `SAYING` stands for MONAI."""
    shown: list[str] = []

    def fake(command: list[str], *, stdout=None, **_) -> None:
        config = command[command.index("--logging_file") + 1]
        done = run_module("-c", SAYING, config)
        assert done.returncode == 0, done.stderr
        if stdout is not None:
            stdout.write(done.stdout)
        shown.extend([done.stderr, "" if stdout is not None else done.stdout])

    monkeypatch.setattr(common.commands.run.subprocess, "run", fake)
    return shown


def test_a_run_leaves_warnings_on_the_console_and_all_else_in_the_file(said, tmp_path):
    log = tmp_path / "a 100%'s folder" / "log.txt"
    with logged(log):
        run_bundle("gp_unet_brats", ["train.json"])
    assert "".join(said).split("\n") == ["WARNING: take care", ""]
    lines = log.read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["of monai", "of ignite", "take care", "printed"]


def test_verbose_shows_everything_and_the_file_keeps_the_log(said, tmp_path):
    with logged(tmp_path / "log.txt", verbose=True):
        run_bundle("gp_unet_brats", ["train.json"])
    for words in ("of monai", "of ignite", "take care", "printed"):
        assert words in "".join(said)
    assert "of ignite" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("bundle", sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/logging.conf")))
def test_a_run_of_a_bundle_alone_shows_its_warnings_and_no_line_of_monai_or_ignite(said, bundle):
    run_bundle(bundle, ["train.json"])
    assert [line.rpartition(": ")[2] for line in "".join(said).splitlines()] == ["take care", "printed"]


def test_steps_are_numbered_where_their_number_is_known(capsys, tmp_path):
    step("alone")
    with logged(tmp_path / "log.txt", steps=2):
        step("first")
        with logged(tmp_path / "inner.txt"):
            step("inner")
        step("second")
    assert capsys.readouterr().out.splitlines() == ["alone", "[1/2] first", "inner", "[2/2] second"]
