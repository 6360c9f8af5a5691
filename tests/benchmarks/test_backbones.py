from __future__ import annotations

import pytest
from torch import nn

from benchmarks.backbones import benchmark_backbones, operations


def test_operations_are_twice_the_multiplications_of_the_convolutions():
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, kernel_size=1))

    counted = operations(make, (2, 3, 8, 8))
    first, last = 2 * 2 * 64 * 5 * 3 * 9, 2 * 2 * 64 * 2 * 5
    assert counted["parameters"] == 5 * 3 * 9 + 5 + 2 * 5 + 2
    assert counted["gflop"] == pytest.approx((first + last) / 1e9)
    # Backward: gradients of both weights, and of the inputs of all but the first.
    assert counted["training_gflop"] == pytest.approx((2 * first + 3 * last) / 1e9)


def test_a_row_has_what_a_network_costs_forward_and_in_training(capsys):
    (row,) = benchmark_backbones(size=16, repeats=1, threads=0, backbones="gp_unet", channels=3)
    assert row["backbone"] == "gp_unet"
    assert row["parameters"] == 1_740_099
    assert 0 < row["gflop"] < row["training_gflop"]
    assert row["training_seconds"] > 0
    assert "1,740,099" in capsys.readouterr().out


def test_training_costs_three_forwards_of_grouped_and_transposed_convolutions_too():
    def make():
        return nn.Sequential(
            nn.Conv2d(3, 96, 1),
            nn.Conv2d(96, 96, 3, padding=1, groups=96),
            nn.ConvTranspose2d(96, 8, 2, stride=2),
        )

    counted = operations(make, (2, 3, 8, 8))
    first = 2 * 2 * 64 * 3 * 96 / 1e9
    assert counted["gflop"] == pytest.approx(first + (2 * 2 * 64 * 96 * 9 + 2 * 2 * 64 * 96 * 8 * 4) / 1e9)
    assert counted["training_gflop"] == pytest.approx(3 * counted["gflop"] - first)  # no gradient of the images
