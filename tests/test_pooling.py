from __future__ import annotations

import numpy as np
import pytest
import torch

from common.pooling import (
    POOLINGS,
    GlobalPool,
    RunningPool,
    SmoothMax,
    global_avg_pool,
    global_max_pool,
    smooth_max_pool,
    top_fraction_pool,
)

SHAPES = [(2, 3, 6, 7), (2, 3, 4, 5, 6)]


def random_maps(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator)
    mask = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.6
    return maps, mask


def numpy_pool(name, values):
    """The pools of a flat array, written out without masks."""
    values = values.astype(np.float64)
    if name == "max":
        return values.max()
    if name == "avg":
        return values.mean()
    if name == "smooth_max":
        weights = np.exp(8.0 * (values - values.max()))
        return (weights * values).sum() / weights.sum()
    count = max(1, int(0.03 * values.size + 0.5))
    return np.sort(values)[-count:].mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_mask_equals_pooling_the_selected_positions(name, shape):
    maps, mask = random_maps(shape)
    selected = [[maps[b, c].numpy()[mask[b, 0].numpy()] for c in range(shape[1])] for b in range(shape[0])]
    expected = [[numpy_pool(name, values) for values in row] for row in selected]
    np.testing.assert_allclose(POOLINGS[name](maps, mask).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(POOLINGS[name](maps, mask.float()).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_full_mask_changes_nothing(name):
    maps, mask = random_maps(SHAPES[1])
    torch.testing.assert_close(POOLINGS[name](maps), POOLINGS[name](maps, torch.ones_like(mask)))


def test_top_fraction_counts_by_each_samples_own_mask():
    maps = torch.arange(100.0).reshape(1, 1, 10, 10).repeat(2, 1, 1, 1)
    mask = torch.ones(2, 1, 10, 10)
    mask[1, 0, 2:] = 0  # 20 positions, values 0..19
    pooled = top_fraction_pool(maps, mask, fraction=0.1)
    assert pooled[:, 0].tolist() == [np.arange(90, 100).mean(), 18.5]


def test_top_fraction_spans_max_to_mean():
    maps, mask = random_maps(SHAPES[0])
    torch.testing.assert_close(top_fraction_pool(maps, mask, fraction=1e-6), global_max_pool(maps, mask))
    torch.testing.assert_close(top_fraction_pool(maps, mask, fraction=1.0), global_avg_pool(maps, mask))


@pytest.mark.parametrize("shape", SHAPES)
def test_smooth_max_tends_to_the_mean_and_to_the_max(shape):
    maps, mask = random_maps(shape)
    for given in (mask, None):
        torch.testing.assert_close(SmoothMax(alpha=1e-6)(maps, given), global_avg_pool(maps, given))
        torch.testing.assert_close(SmoothMax(alpha=1e4)(maps, given), global_max_pool(maps, given))
        assert (SmoothMax(alpha=1.0)(maps, given) > global_avg_pool(maps, given)).all()
        assert (SmoothMax(alpha=1.0)(maps, given) < global_max_pool(maps, given)).all()


def test_gradient_of_smooth_max_is_the_derivative_of_equation_5():
    """`p_i (1 + alpha (H_i - S))` inside the mask with `p` the softmax and `S` the pool; it sums to 1."""
    maps, mask = random_maps((2, 1, 5, 4))
    values = maps.double().requires_grad_()
    pooled = SmoothMax(alpha=3.0)(values, mask)
    (gradient,) = torch.autograd.grad(pooled.sum(), values)
    weights = (3.0 * maps.double()).masked_fill(~mask, -torch.inf).flatten(1).softmax(1).reshape(maps.shape)
    expected = weights * (1 + 3.0 * (maps - pooled.detach()[..., None, None]))
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(gradient.flatten(1).sum(1), torch.ones(2, dtype=torch.float64))


def test_smooth_max_dilutes_as_documented():
    maps = torch.zeros(1, 1, 32, 37, 37)
    maps.view(-1)[:15] = 1.0
    assert smooth_max_pool(maps).item() == pytest.approx(0.505, abs=5e-4)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_empty_mask_gives_zero_and_zero_gradient(name):
    maps, mask = random_maps(SHAPES[0])
    mask[1] = False
    maps.requires_grad_()
    pooled = POOLINGS[name](maps, mask)
    pooled.sum().backward()
    assert pooled[1].tolist() == [0.0, 0.0, 0.0]
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    assert maps.grad[1].abs().sum() == 0
    assert maps.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_positions_outside_the_mask_get_no_gradient_even_when_nan(name):
    maps, mask = random_maps(SHAPES[0])
    maps = maps.masked_fill(~mask, float("nan")).requires_grad_()
    POOLINGS[name](maps, mask).sum().backward()
    assert maps.grad is not None
    assert (maps.grad[(~mask).expand_as(maps)] == 0).all()
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_half_precision_does_not_overflow(name, dtype):
    maps = torch.full((1, 2, 64, 64), 60000.0).to(dtype)  # 8 × 60000 and any sum of two exceed float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = POOLINGS[name](maps)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 2), maps[0, 0, 0, 0].item()))


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_module_scripts_and_agrees_with_the_function(name):
    maps, mask = random_maps(SHAPES[1])
    scripted = torch.jit.script(torch.nn.Sequential(GlobalPool(name)))
    torch.testing.assert_close(scripted(maps), POOLINGS[name](maps))
    torch.testing.assert_close(torch.jit.script(GlobalPool(name))(maps, mask), POOLINGS[name](maps, mask))


def test_smooth_max_scripts_and_agrees_with_the_function():
    maps, mask = random_maps(SHAPES[1])
    scripted = torch.jit.script(SmoothMax(alpha=2.0))
    torch.testing.assert_close(scripted(maps), smooth_max_pool(maps, alpha=2.0))
    torch.testing.assert_close(scripted(maps, mask), smooth_max_pool(maps, mask, alpha=2.0))
    torch.testing.assert_close(SmoothMax()(maps, mask), smooth_max_pool(maps, mask))
    assert repr(SmoothMax(2)) == "SmoothMax(alpha=2.0)"


def test_module_passes_its_option_on():
    maps, _ = random_maps(SHAPES[0])
    torch.testing.assert_close(GlobalPool("smooth_max", alpha=2.0)(maps), smooth_max_pool(maps, alpha=2.0))
    torch.testing.assert_close(GlobalPool("top_fraction", fraction=0.5)(maps), top_fraction_pool(maps, fraction=0.5))
    assert "alpha=2.0" in repr(GlobalPool("smooth_max", alpha=2.0))


def test_errors_say_what_to_do():
    maps, _ = random_maps(SHAPES[0])
    with pytest.raises(ValueError, match=r"unknown pooling 'mean'.*'avg', 'max', 'smooth_max', 'top_fraction'"):
        GlobalPool("mean")
    with pytest.raises(ValueError, match=r"'max' has no option \['alpha'\]"):
        GlobalPool("max", alpha=8.0)
    with pytest.raises(ValueError, match=r"\[2, 1, 6, 7\].*got \[2, 1, 6, 6\]"):
        global_max_pool(maps, torch.ones(2, 1, 6, 6))
    with pytest.raises(ValueError, match=r"got shape \[2, 3\]"):
        global_avg_pool(maps[:, :, 0, 0])
    for alpha in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match="alpha must be finite and not negative"):
            smooth_max_pool(maps, alpha=alpha)
        with pytest.raises(ValueError, match="alpha must be finite and not negative"):
            SmoothMax(alpha)
    with pytest.raises(ValueError, match="fraction"):
        top_fraction_pool(maps, fraction=0.0)


RUNNING = [("smooth_max", 8.0), ("smooth_max", 0.0), ("smooth_max", 1e4), ("max", 8.0), ("avg", 8.0)]


def run(name, alpha, maps, mask, sizes):
    pool = RunningPool(name, alpha=alpha)
    for part, inside in zip(maps.flatten(2).split(sizes, -1), mask.flatten(2).split(sizes, -1), strict=True):
        pool.update(part, inside)
    return pool.compute()


@pytest.mark.parametrize("sizes", [[120], [1] * 120, [60, 0, 59, 1], [7, 13, 100]])
@pytest.mark.parametrize(("name", "alpha"), RUNNING)
def test_chunks_pool_to_what_one_pass_gives(name, alpha, sizes):
    maps, mask = random_maps((2, 3, 4, 5, 6))
    mask[0].view(-1)[:70] = False  # chunks with an empty mask, for one sample only
    whole = smooth_max_pool(maps, mask, alpha=alpha) if name == "smooth_max" else POOLINGS[name](maps, mask)
    torch.testing.assert_close(run(name, alpha, maps, mask, sizes), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "alpha"), RUNNING)
def test_chunks_of_rising_or_falling_values_neither_overflow_nor_vanish(name, alpha):
    values = torch.linspace(-300, 300, 120)  # exp(8 × 300) is far beyond float64
    for maps in (values, values.flip(0)):
        maps = maps.reshape(1, 1, 120)
        whole = smooth_max_pool(maps, alpha=alpha) if name == "smooth_max" else POOLINGS[name](maps)
        got = run(name, alpha, maps, torch.ones_like(maps), [10] * 12)
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-6)


def test_many_chunks_keep_their_accuracy():
    maps = torch.rand(1, 1, 20_000, generator=torch.Generator().manual_seed(0))
    values = maps.numpy().ravel()
    got = run("smooth_max", 8.0, maps, torch.ones_like(maps), [4] * 5000).item()
    assert got == pytest.approx(numpy_pool("smooth_max", values), abs=1e-7)


@pytest.mark.parametrize(("name", "alpha"), RUNNING)
def test_chunks_without_a_position_inside_pool_to_zero(name, alpha):
    maps = torch.full((1, 2, 6), -3.0)
    assert run(name, alpha, maps, torch.zeros(1, 1, 6), [3, 3]).tolist() == [[0.0, 0.0]]


def test_running_pool_keeps_no_graph():
    pool = RunningPool("avg")
    pool.update(torch.ones(1, 1, 3, requires_grad=True))
    assert not pool.compute().requires_grad


def test_running_pool_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="'top_fraction' cannot run over chunks; choose"):
        RunningPool("top_fraction")
    with pytest.raises(ValueError, match="alpha must be finite"):
        RunningPool(alpha=float("inf"))
    pool = RunningPool()
    with pytest.raises(RuntimeError, match="nothing to pool"):
        pool.compute()
    pool.update(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"agree in \[B, C\]; got \[1, 3\] after \[1, 2\]"):
        pool.update(torch.zeros(1, 3, 3))
