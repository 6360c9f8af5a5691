"""Command line: `python -m benchmarks NAME`."""

from __future__ import annotations

import fire

from .cam import benchmark_cam
from .radon import benchmark_radon
from .volume import benchmark_volume

if __name__ == "__main__":
    fire.Fire({"cam": benchmark_cam, "radon": benchmark_radon, "volume": benchmark_volume}, name="python -m benchmarks")
