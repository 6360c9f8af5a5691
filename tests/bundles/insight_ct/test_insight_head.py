from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from common.masks import otsu
from common.pooling import POOLINGS, GlobalPool
from tests.bundles.insight_ct.toy import features, half_inside, networks, small


def branch_bias(head, *, detection=None, context=None):
    """Make the branches' logits constant."""
    with torch.no_grad():
        for branch, bias in ((head.detection, detection), (head.context, context)):
            if bias is not None:
                branch[-1].weight.zero_()
                branch[-1].bias.fill_(bias)
    return head


@pytest.mark.parametrize(
    ("options", "count"), [({"norm": "spatial", "grid": (14, 14)}, 669_954), ({"norm": "none"}, 419_074)]
)
def test_head_has_the_authors_number_of_parameters(options, count):
    head = networks.InsightHead(in_channels=1024, num_labels=1, **options)
    assert sum(p.numel() for p in head.parameters()) == count


@pytest.mark.parametrize(("branch", "reach"), [("detection", 0), ("context", 4)])
def test_detection_sees_one_cell_and_context_nine_by_nine(branch, reach):
    head, x = small(), features(tiles=1, size=15).requires_grad_()
    getattr(head, branch)(head.adapt(x))[0, :, 7, 7].sum().backward()
    seen = torch.zeros(15, 15)
    seen[7 - reach : 8 + reach, 7 - reach : 8 + reach] = 1
    torch.testing.assert_close((x.grad[0].abs().sum(0) > 0).float(), seen)


@pytest.mark.parametrize("fusion", ["gate", "eq4"])
def test_planted_features_give_the_analytic_heatmap(fusion):
    head = small(num_labels=1, norm="none", fusion=fusion)
    with torch.no_grad():
        for convolution in (m for m in head.modules() if isinstance(m, nn.Conv2d)):
            convolution.weight.zero_()
            convolution.bias.zero_()
            middle = convolution.kernel_size[0] // 2
            convolution.weight[0, 0, middle, middle] = 1  # channel 0 passes on; far from 0, GELU is the identity or 0
        head.detection[-1].weight[0, 0] = 0.2
        head.detection[-1].bias.fill_(-1)
        head.context[-1].weight[0, 0, 1, 1] = 0  # looks at the cell to the left instead
        head.context[-1].weight[0, 0, 1, 0] = 0.1
    x = torch.full((1, 6, 3, 4), -20.0)
    x[0, 0, 1, 1] = 20
    z = torch.full((1, 1, 3, 4), -1.0)
    c = torch.zeros(1, 1, 3, 4)
    z[0, 0, 1, 1], c[0, 0, 1, 2] = 3, 2
    gate = 1 - c.sigmoid()
    expected = z.sigmoid() * gate if fusion == "gate" else (gate * z).sigmoid()
    torch.testing.assert_close(head.heatmap(x), expected)


def test_each_layer_is_convolution_then_gelu_then_norm():
    kinds = [type(m).__name__ for m in small().detection]
    assert kinds == ["Conv2d", "GELU", "ChannelNorm"] * 3 + ["Conv2d"]


def test_channel_norm_normalizes_each_cell_by_itself():
    norm, x = networks.ChannelNorm(6), features()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
        norm.bias.copy_(torch.arange(6.0) - 3)
    cell = x[2, :, 3, 4]
    expected = (cell - cell.mean()) / (cell.var(unbiased=False) + 1e-5).sqrt() * torch.arange(6.0) + norm.bias
    torch.testing.assert_close(norm(x)[2, :, 3, 4], expected)


def test_spatial_norm_normalizes_over_channels_and_grid():
    head, x = small(norm="spatial", grid=(7, 7)), features()
    normed = head.adapt(x)
    torch.testing.assert_close(normed.mean(dim=(1, 2, 3)), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(normed.var(dim=(1, 2, 3), unbiased=False), torch.ones(5), atol=1e-3, rtol=0)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        head(features(size=8))


def test_edges_are_replicated_so_constant_features_give_a_constant_map():
    x = features(tiles=2, size=1).expand(-1, -1, 9, 11)
    heatmap = small().heatmap(x)
    torch.testing.assert_close(heatmap, heatmap[..., :1, :1].expand_as(heatmap), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("fusion", "least"), [("gate", 0.0), ("eq4", 0.5)])
def test_suppressed_cells_are_zero_under_the_gate_and_a_half_under_eq4(fusion, least):
    head = branch_bias(small(fusion=fusion), detection=3.0, context=100.0)
    torch.testing.assert_close(head.heatmap(features()), torch.full((5, 2, 7, 7), least))
    head = branch_bias(head, context=-100.0)
    torch.testing.assert_close(head.heatmap(features()), torch.full((5, 2, 7, 7), 3.0).sigmoid())


@pytest.mark.parametrize("fusion", ["gate", "eq4"])
def test_without_context_the_heatmap_is_the_detection(fusion):
    head, x = small(context=False, fusion=fusion), features()
    torch.testing.assert_close(head.heatmap(x), head.detection(head.adapt(x)).sigmoid())
    assert not any("context" in name for name, _ in head.named_parameters())


@pytest.mark.parametrize("pooling", ["smooth_max", "max", "avg"])
def test_probability_pools_the_cells_inside_of_all_tiles(pooling):
    head, x, inside = small(pooling=pooling), features(), half_inside()
    heatmap, probability, _ = head(x, inside)
    everywhere = head.heatmap(x)
    for label in range(2):
        cells = everywhere[:, label][inside[:, 0] > 0.5]
        torch.testing.assert_close(probability[label], POOLINGS[pooling](cells[None, None])[0, 0])
    torch.testing.assert_close(heatmap, everywhere * inside)


def test_alpha_reaches_the_pool():
    x, cells = features(), small().heatmap(features()).transpose(0, 1).flatten(1)
    weights = (3 * cells).softmax(dim=1)
    torch.testing.assert_close(small(alpha=3.0)(x)[1], (weights * cells).sum(dim=1))


def test_bag_without_a_cell_inside_has_probability_and_penalty_zero_and_no_gradient():
    head, x = small(), features()
    heatmap, probability, penalty = head(x, torch.zeros(5, 1, 7, 7))
    (probability.sum() + penalty).backward()
    assert heatmap.abs().sum() == 0
    assert probability.tolist() == [0.0, 0.0]
    assert penalty == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in head.parameters())


def test_penalty_is_the_mean_squared_detection_logit_inside():
    head, x, inside = small(), features(), half_inside()
    logits = head.detection(head.adapt(x))
    torch.testing.assert_close(head(x)[2], logits.square().mean())
    cells = logits.transpose(0, 1)[:, inside[:, 0] > 0.5]
    torch.testing.assert_close(head(x, inside)[2], cells.square().mean())
    summed = small(squared_norm="sum")
    torch.testing.assert_close(summed(x)[2], logits.square().sum())
    torch.testing.assert_close(summed(x, inside)[2], cells.square().sum())


def test_otsu_leaves_the_pool_what_lies_above_the_threshold_of_each_label_and_bag():
    head, x, inside = small(otsu=True, pooling="avg").train(), features(), half_inside()
    heatmap, probability, _ = head(x, inside)
    for label in range(2):
        cells = heatmap[:, label][inside[:, 0] > 0.5]
        kept = cells[cells > otsu(cells.detach().numpy())]
        assert 0 < len(kept) < len(cells)
        torch.testing.assert_close(probability[label], kept.sum() / len(cells))
    probability.sum().backward()
    assert all(p.grad is not None for p in head.detection.parameters())
    assert (head(torch.zeros_like(x), inside)[1] > 0).all()  # alike everywhere: nothing is taken away


@pytest.mark.parametrize("pooling", ["smooth_max", "max", "avg"])
def test_order_of_tiles_does_not_matter_and_tiles_do_not_see_each_other(pooling):
    head, x, order = small(pooling=pooling), features(), torch.tensor([3, 0, 4, 2, 1])
    heatmap, probability, penalty = head(x)
    shuffled = head(x[order])
    torch.testing.assert_close(shuffled[0], heatmap[order])
    torch.testing.assert_close(shuffled[1], probability)
    torch.testing.assert_close(shuffled[2], penalty)
    torch.testing.assert_close(head.heatmap(x[2:3]), heatmap[2:3])


@pytest.mark.parametrize(("chunk", "passes"), [(1, 10), (2, 6), (5, 1), (100, 1)])
def test_checkpointed_chunks_of_five_tiles_give_the_values_and_gradients_of_one_pass(chunk, passes):
    """Each chunk is computed twice, but not the only one."""
    x, inside = features().double(), half_inside()
    results, shapes = [], []
    for options in ({}, {"checkpoint_chunk": chunk}):
        head = small(**options).double().train()
        shapes.clear()
        head.adapt.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        heatmap, probability, penalty = head(x, inside)
        (probability.sum() + penalty + heatmap.square().sum()).backward()
        results.append([heatmap, probability, penalty, *(p.grad for p in head.parameters())])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    assert len(shapes) == passes


def test_checkpointing_keeps_no_activations_of_the_branches():
    x, kept = features(tiles=32, size=16), []
    for options in ({}, {"checkpoint_chunk": 4}):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        head = small(width=32, **options).train()
        with saved_tensors_hooks(count, lambda tensor: tensor):
            head(x)
        kept.append(total)
    assert kept[1] < kept[0] / 20  # a few maps of two labels, against all channels of all layers


@pytest.mark.parametrize(("pooling", "cut"), [("smooth_max", False), ("max", False), ("avg", False), ("avg", True)])
@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 0, 3, 2]])
def test_stream_gives_the_heatmaps_and_probability_of_one_pass(pooling, cut, sizes):
    head, x, inside = small(pooling=pooling, otsu=cut), features(tiles=9), half_inside(tiles=9)
    inside[4:7] = 0  # one of the chunks has no cell inside
    heatmap, probability, _ = head(x, inside)
    stream = head.stream()
    maps = [stream.update(f, i) for f, i in zip(x.split(sizes), inside.split(sizes), strict=True)]
    torch.testing.assert_close(torch.cat(maps), heatmap, atol=1e-6, rtol=0)
    for _ in range(2):
        torch.testing.assert_close(stream.compute(), probability, atol=1e-6, rtol=0)
    assert not maps[0].requires_grad


def test_stream_without_a_mask_counts_all_cells():
    head, x = small(), features()
    stream = head.stream()
    for part in x.split(2):
        stream.update(part)
    torch.testing.assert_close(stream.compute(), head(x)[1], atol=1e-6, rtol=0)


def test_single_vectors_are_a_grid_of_one_cell():
    heatmap, probability, _ = small()(features(size=1))
    assert list(heatmap.shape) == [5, 2, 1, 1]
    torch.testing.assert_close(probability, GlobalPool("smooth_max")(heatmap[..., 0, 0].T[None])[0])


def test_labels_have_maps_of_their_own():
    head = small(num_labels=3)
    with torch.no_grad():
        before = head.heatmap(features())
        head.detection[-1].bias[1] += 2
        after = head.heatmap(features())
    changed = (after - before).abs().sum(dim=(0, 2, 3)) > 0
    assert changed.tolist() == [False, True, False]


def test_autocast_leaves_map_pool_and_penalty_in_float32():
    head, x = small(), features()
    expected = head(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x)
    for mixed, full in zip(got, expected, strict=True):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, full, atol=0.02, rtol=0.02)
    assert not torch.equal(got[0], expected[0])  # the convolutions did run in half precision


def test_features_in_half_precision_are_taken_as_they_are():
    head, x = small(), features().half()
    torch.testing.assert_close(head.heatmap(x), head.heatmap(x.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "product"}, "fusion must be 'gate' or 'eq4', got 'product'"),
        ({"norm": "batch"}, "norm must be"),
        ({"norm": "spatial"}, "grid=\\(h, w\\) goes with norm='spatial'"),
        ({"grid": (7, 7)}, "grid=\\(h, w\\) goes with norm='spatial'"),
        ({"pooling": "top_fraction"}, "cannot run over chunks; choose"),
        ({"alpha": float("inf")}, "alpha must be finite"),
        ({"checkpoint_chunk": 0}, "checkpoint_chunk must be at least 1"),
        ({"squared_norm": "max"}, "squared_norm must be 'mean' or 'sum', got 'max'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_features_of_another_width_are_refused_with_their_shape():
    with pytest.raises(ValueError, match=r"features must be \[N, 6, h, w\], got shape \[5, 4, 7, 7\]"):
        small()(features(channels=4))


@pytest.mark.parametrize("options", [{}, {"fusion": "eq4", "context": False, "checkpoint_chunk": 2, "norm": "none"}])
def test_scripted_head_agrees_in_all_three_outputs(options):
    head, x, inside = small(**options), features(), half_inside()
    for got, expected in zip(torch.jit.script(head)(x, inside), head(x, inside), strict=True):
        torch.testing.assert_close(got, expected)
