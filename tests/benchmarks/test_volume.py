from __future__ import annotations

import re

import pytest

from tests.running import run_module


def test_command_times_a_bundle_from_file_to_files_and_the_network_inside():
    options = (
        "--bundle gp_unet_brats --shape (120,108,36) --repeats 1 --threads 1 --device cpu --num_workers 1 --cases 2"
    )
    done = run_module("benchmarks", "volume", *options.split())
    assert done.returncode == 0, done.stderr[-3000:]
    line = r"gp_unet_brats inference\.json \(120, 108, 36\): ([\d.]+) s a volume, ([\d.]+) s of it in the network"
    total, forward = map(float, re.search(line, done.stdout).groups())
    assert 0 < forward < total
    result = dict(re.findall(r"^(\w+): +([\d.]+)$", done.stdout, re.MULTILINE))
    assert (float(result["total"]), float(result["forward"])) == (total, forward)
    alone, workers = float(result["per_minute"]), float(result["per_minute_workers"])
    assert 0 < alone < 60 / forward
    assert float(result["gain"]) == pytest.approx(workers / alone, rel=0.02)
    assert f"2 volumes: {alone} a minute, with num_workers 1 {workers}: {result['gain']} times as many" in done.stdout
    least, most = ((total - step) / (forward + step) - 1 for step in (0.005, -0.005))  # both are rounded
    assert least - 0.001 <= float(result["beside"]) <= most + 0.001


def test_command_lists_its_benchmarks():
    done = run_module("benchmarks", "--help")
    assert {"cam", "radon", "volume"} <= set(re.findall(r"^ +(\w+)$", done.stdout + done.stderr, re.MULTILINE))
