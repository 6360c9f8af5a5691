from __future__ import annotations

import subprocess
import sys

import pytest

from tests.running import REPOSITORY, Running, run_code, run_module

PROGRAM = """
import os, sys

print(os.getcwd(), sys.path[0], os.environ.get("COLOR"), sys.argv[1:], __name__)
print("a word of warning", file=sys.stderr)
"""
DRAWS = """
import random
import numpy as np
from monai.transforms import RandFlip

print(np.random.rand(), random.random(), RandFlip().R.rand())
"""


def test_a_forked_run_sees_and_says_what_a_new_interpreter_does(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "program", "--size", "3"]
    variables = {"COLOR": "green"}
    forked = run_module(*command[2:], cwd=tmp_path, environment=variables)
    plain = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert forked.stdout == plain.stdout == f"{tmp_path} {tmp_path} green ['--size', '3'] __main__\n"
    assert forked.stderr == plain.stderr == "a word of warning\n"
    assert (forked.returncode, forked.args) == (0, command)


def test_code_runs_in_the_repository_with_another_seed_of_hashes():
    folder, hashed = run_code("import os; print(os.getcwd(), hash('a'))").split()
    assert folder == str(REPOSITORY)
    assert (int(hashed) != hash("a")) == bool(sys.flags.hash_randomization)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_code("1 / 0")


def test_two_runs_without_a_seed_differ(tmp_path):
    (tmp_path / "draws.py").write_text(DRAWS)
    first, second = (run_module("draws", cwd=tmp_path).stdout.split() for _ in range(2))
    assert len({*first, *second}) == 6


@pytest.mark.parametrize(
    ("line", "code", "last"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no data here')", 1, "no data here"),
        ("raise ValueError('4 axes')", 1, "ValueError: 4 axes"),
        ("import sys\nsys.excepthook = lambda *_: print('the end', file=sys.stderr)\n1 / 0", 1, "the end"),
    ],
)
def test_the_exit_code_and_the_last_line_are_those_of_python(line, code, last, tmp_path):
    (tmp_path / "ends.py").write_text(line)
    done = run_module("ends", cwd=tmp_path)
    assert done.returncode == code
    assert ([*done.stderr.splitlines()] or [""])[-1] == last


def test_a_run_that_takes_too_long_is_ended(tmp_path):
    (tmp_path / "long.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired) as late:
        Running("long", cwd=tmp_path).wait(timeout=2)
    assert late.value.stdout == "here\n"
