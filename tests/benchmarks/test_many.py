from __future__ import annotations

import re

from tests.running import run_module


def test_command_kills_a_run_goes_on_where_it_was_and_tells_what_is_there_in_the_end():
    options = "--cases 8 --broken 1 --shape (24,24,6) --kill_after 2 --device cpu"
    done = run_module("benchmarks", "many", *options.split(), environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    result = {k: int(v) for k, v in re.findall(r"^(\w+): +(\d+)$", done.stdout, re.MULTILINE)}
    assert (result["written"], result["rows"], result["failed"], result["exit"]) == (7, 7, 1, 1)
    assert 2 <= result["kept"] < 7  # it was killed before its end
    assert 100 < result["mb_first"] <= 1.2 * result["mb_last"]
    assert "8 cases: 7 written, 7 rows, 1 listed as failed, exit 1" in done.stdout
