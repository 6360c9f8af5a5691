from __future__ import annotations

import pytest
import torch

from tests.bundles.conftest import load_script

heads = load_script("insight_ct", "heads")
networks = load_script("insight_ct", "networks")
losses = load_script("insight_ct", "losses")

SMALL = {
    "ABMIL": {"width": 12, "hidden": 6},
    "CLAM_SB": {"width": 12, "hidden": 6, "k": 2},
    "CLAM_MB": {"width": 12, "hidden": 6, "k": 2},
    "TransMIL": {"width": 12, "heads": 2},
}
NAMES = sorted(SMALL)
GATED = ["ABMIL", "CLAM_MB", "CLAM_SB"]


def small(name, *, seed=0, num_labels=2, **options):
    torch.manual_seed(seed)
    return getattr(heads, name)(6, num_labels, **(SMALL[name] | options)).eval()


def features(tiles=7, size=3, seed=1):
    return torch.randn(tiles, 6, size, size, generator=torch.Generator().manual_seed(seed))


def some_inside(tiles=7, size=3):
    inside = (torch.rand(tiles, 1, size, size, generator=torch.Generator().manual_seed(2)) > 0.4).float()
    inside[3] = 0
    return inside


def embedded(head, x):
    """Embedded instances of whole tiles, written out."""
    return (x.mean(dim=(2, 3)) @ head.embed[0].weight.T + head.embed[0].bias).clamp(min=0)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_head_keeps_the_interface(name, tokens):
    head, x, inside = small(name, tokens=tokens), features(), some_inside()
    heatmap, probability, penalty = head(x, inside)
    assert (head.in_channels, head.num_labels) == (6, 2)
    assert list(heatmap.shape) == [7, 2, 3, 3]
    assert list(probability.shape) == [2]
    assert penalty.item() == 0.0  # no labels, no instance loss
    assert ((heatmap >= 0) & (heatmap <= 1)).all()
    assert ((probability > 0) & (probability < 1)).all()
    assert heatmap[(inside == 0).expand_as(heatmap)].abs().sum() == 0
    assert (heatmap[(inside == 1).expand_as(heatmap)] > 0).all()
    torch.testing.assert_close(head.heatmap(x, inside), heatmap)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_heatmap_of_a_tile_does_not_depend_on_the_other_tiles(name, tokens):
    head, x, inside = small(name, tokens=tokens), features(), some_inside()
    parts = [head.heatmap(f, i) for f, i in zip(x.split(3), inside.split(3), strict=True)]
    torch.testing.assert_close(torch.cat(parts), head.heatmap(x, inside))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_lies_outside_does_not_matter(name, tokens):
    head, x, inside = small(name, tokens=tokens), features(), some_inside()
    changed = torch.where(inside > 0.5, x, torch.full_like(x, 9.0))
    for got, expected in zip(head(changed, inside), head(x, inside), strict=True):
        torch.testing.assert_close(got, expected)
    kept = [t for t in range(7) if t != 3]  # tile 3 has nothing inside
    torch.testing.assert_close(head(x[kept], inside[kept])[1], head(x, inside)[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_tile_is_the_mean_of_its_cells_and_a_token_is_a_cell(name):
    x = features()
    means = x.mean(dim=(2, 3), keepdim=True)
    cells = x.permute(0, 2, 3, 1).reshape(-1, 6, 1, 1)
    whole, tokens = small(name), small(name, tokens=True)
    torch.testing.assert_close(whole(x)[1], whole(means)[1])
    torch.testing.assert_close(tokens(x)[1], whole(cells)[1])
    expected = whole.heatmap(cells).reshape(7, 3, 3, 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(tokens.heatmap(x), expected)
    torch.testing.assert_close(whole.heatmap(x), whole.heatmap(means).expand(-1, -1, 3, 3))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_stream_gives_the_heatmaps_and_probability_of_one_pass(name, tokens):
    head, x, inside = small(name, tokens=tokens), features(), some_inside()
    heatmap, probability, _ = head(x, inside)
    stream = head.stream()
    sizes = [3, 1, 0, 3]  # the second chunk is the tile without a cell inside
    maps = [stream.update(f, i) for f, i in zip(x.split(sizes), inside.split(sizes), strict=True)]
    torch.testing.assert_close(torch.cat(maps), heatmap)
    torch.testing.assert_close(stream.compute(), probability, atol=1e-6, rtol=0)
    with pytest.raises(RuntimeError, match="call update"):
        head.stream().compute()


@pytest.mark.parametrize("name", NAMES)
def test_bag_without_a_cell_inside_has_probability_zero_and_trains_nothing(name):
    head, x = small(name), features()
    heatmap, probability, penalty = head(x, torch.zeros(7, 1, 3, 3), torch.ones(2))
    (probability.sum() + penalty).backward()
    assert heatmap.abs().sum() == 0
    assert probability.tolist() == [0.0, 0.0]
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in head.parameters())


@pytest.mark.parametrize("name", GATED)
def test_gated_attention_is_that_of_the_paper(name):
    head, x = small(name), features()
    h = embedded(head, x)
    v, u = head.attend[0], head.gate[0]
    probability = head(x)[1]
    for label in range(2):
        w = head.attention.weight[label if name == "CLAM_MB" else 0]
        raw = torch.stack([w @ (torch.tanh(v(t)) * torch.sigmoid(u(t))) for t in h])
        z = (raw.exp() / raw.exp().sum()) @ h
        logit = head.classify.weight[label] @ z + head.classify.bias[label]
        torch.testing.assert_close(probability[label], logit.sigmoid())
        alone = (h @ head.classify.weight[label] + head.classify.bias[label]).sigmoid()
        torch.testing.assert_close(head.heatmap(x)[:, label, 1, 1], raw.sigmoid() * alone)


@pytest.mark.parametrize("name", GATED)
def test_order_of_tiles_does_not_matter_to_gated_attention(name):
    head, x, order = small(name), features(), torch.tensor([3, 0, 6, 4, 2, 5, 1])
    torch.testing.assert_close(head(x[order])[1], head(x)[1])


def test_clam_with_one_attention_shares_it_and_with_many_does_not():
    counts = {name: small(name, num_labels=3).attention.out_features for name in GATED}
    assert counts == {"ABMIL": 1, "CLAM_SB": 1, "CLAM_MB": 3}


@pytest.mark.parametrize("name", ["CLAM_SB", "CLAM_MB"])
def test_instance_loss_takes_the_most_and_least_attended(name):
    head, x, labels = small(name), features(), torch.tensor([1, 0])
    h = embedded(head, x)
    attention, logits = head.attention_logits(h).expand(-1, 2), head.classify_instance(h)
    terms = []
    for label in range(2):
        order = attention[:, label].argsort(descending=True)
        top, bottom = logits[order[:2], label].sigmoid(), logits[order[-2:], label].sigmoid()
        terms += [-(top if labels[label] else 1 - top).log(), -(1 - bottom).log()]
    torch.testing.assert_close(head(x, None, labels)[2], torch.cat(terms).mean())


@pytest.mark.parametrize("name", ["CLAM_SB", "CLAM_MB"])
def test_no_instance_is_both_most_and_least_attended(name):
    head = small(name, k=8)
    assert head(features(tiles=1), None, torch.ones(2))[2] == 0
    with torch.no_grad():
        head.classify_instance.weight.zero_()
        head.classify_instance.bias.fill_(100.0)  # every instance counts as positive: 0 at the top, 100 at the bottom
    torch.testing.assert_close(head(features(tiles=5), None, torch.ones(2))[2], torch.tensor(50.0))


def test_transmil_lays_instances_out_on_a_square_filled_with_the_first_ones():
    head, x = small("TransMIL"), features(tiles=7, size=1)
    torch.testing.assert_close(head(x)[1], head(torch.cat([x, x[:2]]))[1])


def test_transmil_layers_are_residual_and_positions_mix_neighbors():
    head, x = small("TransMIL"), features(tiles=9, size=1)
    with torch.no_grad():
        for layer in (head.first, head.second):
            layer.attention.out_proj.weight.zero_()
            layer.attention.out_proj.bias.zero_()
    expected = head.classify(head.norm(head.token[0, 0])).sigmoid()  # then nothing reaches the class token
    torch.testing.assert_close(head(x)[1], expected)
    head = small("TransMIL")
    order = torch.tensor([8, 1, 2, 3, 4, 5, 6, 7, 0])
    assert (head(x[order])[1] - head(x)[1]).abs().max() > 1e-6
    with torch.no_grad():
        for convolution in head.position:
            convolution.weight.zero_()
            convolution.bias.zero_()
    torch.testing.assert_close(head(x[order])[1], head(x)[1])
    tokens = torch.cat([head.token[0], embedded(head, x)])[None]  # positions add to the instances
    torch.testing.assert_close(head(x)[1], head.classify(head.norm(head.second(head.first(tokens))[0, 0])).sigmoid())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_what_comes_out_in_float32(name):
    head, x = small(name), features()
    expected = head(x, None, torch.ones(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x, None, torch.ones(2))
    for mixed, full in zip(got, expected, strict=True):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, full, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_heads_work_in_insight(name):
    class Encoder(torch.nn.Conv2d):
        channels, fingerprint = 6, "ab" * 32

    net = networks.Insight(Encoder(1, 6, 4, stride=4), small(name))
    image = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(net(image), net.head.heatmap(net.encoder(image)))


def test_features_of_another_encoder_are_refused_with_their_shape():
    with pytest.raises(ValueError, match=r"features must be \[N, 6, h, w\], got shape \[7, 4, 3, 3\]"):
        small("ABMIL")(features()[:, :4])


def planted_bag(positive, generator, tiles=6):
    x, where = torch.randn(tiles, 6, 4, 4, generator=generator), None
    if positive:
        where = int(torch.randint(tiles, (1,), generator=generator))
        x[where, 2, 1:3, 1:3] += 4
    return x, where


@pytest.mark.parametrize("name", [*NAMES, "InsightHead"])
def test_head_learns_from_yes_and_no_which_tile_is_positive(name):
    torch.manual_seed(0)
    options = {"width": 16} if name == "InsightHead" else SMALL[name] | {"width": 32}
    head = getattr(networks if name == "InsightHead" else heads, name)(6, 1, **options)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=4e-3)
    loss = losses.InsightLoss(decoupling=6 / 7 if name.startswith("CLAM") else 0.01)
    labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    for _ in range(150):
        bags = [head(planted_bag(bool(y), generator)[0], None, y)[1:] for y in labels]
        optimizer.zero_grad()
        loss(tuple(torch.stack(part) for part in zip(*bags, strict=True)), labels).backward()
        optimizer.step()
    head.eval()
    found, sick, well = 0, [], []
    with torch.no_grad():
        for _ in range(50):
            x, where = planted_bag(True, generator)
            heatmap, probability, _ = head(x)
            found += int(heatmap.amax(dim=(1, 2, 3)).argmax()) == where
            sick.append(probability.item())
            well.append(head(planted_bag(False, generator)[0])[1].item())
    auc = (torch.tensor(sick)[:, None] > torch.tensor(well)).float().mean()
    assert found >= 40
    assert auc > 0.9


@pytest.mark.parametrize("name", ["insight", "abmil", "clam_sb", "clam_mb", "transmil"])
def test_one_set_of_options_builds_a_head_of_any_name(name):
    kinds = {"insight": networks.InsightHead} | {kind.lower(): getattr(heads, kind) for kind in NAMES}
    options = {"width": 16, "fusion": "eq4", "norm": "none", "pooling": "max", "alpha": 4.0, "context": False}
    head = heads.make_head(name, in_channels=6, num_labels=2, checkpoint_chunk=3, **options)
    assert type(head) is kinds[name]
    assert (head.in_channels, head.num_labels) == (6, 2)


def test_insight_by_name_has_the_options_it_was_given():
    options = {"width": 8, "norm": "channel", "fusion": "eq4", "pooling": "avg", "checkpoint_chunk": 2}
    torch.manual_seed(0)
    expected = networks.InsightHead(6, 2, **options)
    torch.manual_seed(0)
    made = heads.make_head("insight", in_channels=6, num_labels=2, **options)
    assert made.checkpoint_chunk == 2
    for got, want in zip(made(features()), expected(features()), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("tokens", [False, True])
def test_other_heads_by_name_take_tiles_or_cells_as_instances(tokens):
    heatmap = heads.make_head("abmil", in_channels=6, num_labels=1, tokens=tokens).heatmap(features())
    assert (heatmap.amax(dim=(2, 3)) > heatmap.amin(dim=(2, 3))).all() == tokens


def test_an_unknown_head_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown head 'mil': use one of \['insight', 'abmil', .*'transmil'\]"):
        heads.make_head("mil", in_channels=6, num_labels=1)
