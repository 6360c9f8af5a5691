"""Command line: `python -m benchmarks NAME`."""

from __future__ import annotations

import fire

from .backbones import benchmark_backbones
from .cache import benchmark_cache
from .cam import benchmark_cam
from .colors import benchmark_colors
from .heads import benchmark_heads
from .inputs import benchmark_inputs, benchmark_organ
from .many import benchmark_many
from .mosaics import lay_out_mosaics
from .radon import benchmark_radon
from .slides import benchmark_slides
from .volume import benchmark_volume

if __name__ == "__main__":
    commands = {"cam": benchmark_cam, "radon": benchmark_radon, "volume": benchmark_volume}
    commands |= {"cache": benchmark_cache, "many": benchmark_many, "slides": benchmark_slides, "heads": benchmark_heads}
    commands |= {"backbones": benchmark_backbones, "colors": benchmark_colors, "mosaics": lay_out_mosaics}
    commands |= {"inputs": benchmark_inputs, "organ": benchmark_organ}
    fire.Fire(commands, name="python -m benchmarks")
