from __future__ import annotations

import re

from tests.running import run_module


def test_command_reads_the_same_slices_from_memory_from_the_cache_and_from_many_volumes():
    options = "--volumes 2 --many 5 --shape (72,72,18) --items 12 --repeats 2"
    done = run_module("benchmarks", "cache", *options.split(), environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    result = {k: float(v) for k, v in re.findall(r"^(\w+): +([\d.]+)$", done.stdout, re.MULTILINE)}
    assert result["second"] < result["first"]  # nothing is preprocessed again
    assert min(result["memory"], result["cache"], result["many"]) > 0
    assert result["mb_alone"] <= result["mb_many"] + 1
    assert f"5 volumes: {result['many']} ms a slice" in done.stdout
