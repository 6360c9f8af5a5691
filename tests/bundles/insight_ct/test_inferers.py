from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.encoders import Encoder
from common.features import FeatureStore
from tests.bundles.conftest import load_script

inferers = load_script("insight_ct", "inferers")
networks = load_script("insight_ct", "networks")

STRIDE, DEPTH, ALPHA = 4, 7, 8.0
WITH_ORGAN = [1, 2, 4, 5]
# Options of the encoder, the image's height and width, and the cells (rows, columns) that are bright in all slices.
SCENES = {
    "zoom 1": ({}, (12, 16), [(0, 3), (2, 1)]),
    "zoom 1, no multiple": ({}, (11, 13), [(0, 0), (2, 1)]),
    "zoom 2": ({"zoom": 2.0}, (12, 10), [(1, 1), (2, 1), (5, 4)]),
    "zoom 2, no multiple": ({"zoom": 2.0}, (11, 13), [(0, 5), (3, 2)]),
    "zoom 0.4, sides rounded down": ({"zoom": 0.4}, (11, 41), [(0, 1)]),
    "size": ({"size": 16}, (24, 20), [(0, 0), (3, 2)]),
    "size of an oblong image": ({"size": 8}, (9, 40), [(1, 0)]),
    "size, no multiple": ({"size": 18}, (36, 18), [(0, 1), (3, 3)]),
}


class Brightness(nn.Module):
    """The mean brightness of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.avg_pool2d(image, STRIDE)


class Threshold(nn.Module):
    """Heat is 1 where a cell is bright, and 0.25 times that for each further label."""

    in_channels, pooling, alpha, otsu = 3, "smooth_max", ALPHA, False

    def __init__(self, num_labels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels

    def heatmap(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        heat = (features[:, :1] > 0.45).float() * 0.25 ** torch.arange(self.num_labels).view(1, -1, 1, 1)
        return heat if inside is None else heat.masked_fill(inside <= 0.5, 0.0)

    def stream(self):
        return networks.HeatmapStream(self)


def network(*, num_labels: int = 1, **options):
    encoder = Encoder(Brightness(), name="brightness", channels=3, stride=STRIDE, **options)
    return networks.Insight(encoder, Threshold(num_labels))


def pitch(options: dict, shape: tuple[int, int]) -> list[float]:
    """Pixels of a cell along rows and columns."""
    return [STRIDE * side / (options.get("size") or int(side * options.get("zoom", 1) + 0.5)) for side in shape]


def scene(name: str) -> tuple[Tensor, np.ndarray, list[float]]:
    """A volume `[1, 2, H, W, D]` with bright cells in the slices 2 and 5, the grid's heat, and the size of a cell."""
    options, shape, bright = SCENES[name]
    grid = network(**options).encoder.grid(*shape)
    heat = np.zeros(grid)
    heat[tuple(zip(*bright, strict=True))] = 1
    cell = pitch(options, shape)
    rows, columns = (
        np.minimum((np.arange(side) + 0.5) // size, cells - 1).astype(int)
        for side, size, cells in zip(shape, cell, grid, strict=True)
    )
    volume = torch.zeros(1, 2, *shape, DEPTH)
    volume[0, 0, ..., [2, 5]] = torch.as_tensor(heat[np.ix_(rows, columns)], dtype=torch.float32)[..., None]
    volume[0, 1, ..., WITH_ORGAN] = 1
    return volume, heat, cell


def enlarged(heat: np.ndarray, cell: list[float], shape: tuple[int, int]) -> np.ndarray:
    """Bilinear between the middles of the cells, constant beyond the outermost."""
    for axis, (size, side) in enumerate(zip(cell, shape, strict=True)):
        middles, at = (np.arange(heat.shape[axis]) + 0.5) * size, np.arange(side) + 0.5
        heat = np.apply_along_axis(lambda line, m=middles, x=at: np.interp(x, m, line), axis, heat)
    return heat


def smooth_max(values: np.ndarray) -> float:
    weights = np.exp(ALPHA * values)
    return float((weights * values).sum() / weights.sum())


@pytest.mark.parametrize("name", SCENES)
def test_heat_lies_where_the_encoder_saw_it(name):
    volume, heat, cell = scene(name)
    out = inferers.InsightInferer()(volume, network(**SCENES[name][0]))
    assert out.shape == (1, 4, *volume.shape[2:])
    expected = enlarged(heat, cell, tuple(volume.shape[2:4]))
    assert expected.max() > 0.5
    for z in (2, 5):
        np.testing.assert_allclose(out[0, 1, ..., z], expected, atol=1e-5)
    assert out[0, 1, ..., [0, 1, 3, 4, 6]].abs().max() == 0
    assert out[0, 0].abs().max() == 0


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_probability_is_pooled_over_all_slices_with_organ_however_they_come(chunk, batch_size):
    volume, heat, _ = scene("zoom 1")
    out = inferers.InsightInferer(chunk=chunk, batch_size=batch_size)(volume, network())
    expected = smooth_max(np.stack([heat * (z in (2, 5)) for z in WITH_ORGAN]))
    probability = out[0, 2:].flatten(1)
    np.testing.assert_allclose(probability[1], expected, atol=1e-6)
    np.testing.assert_allclose(probability[0], 1 - expected, atol=1e-6)
    torch.testing.assert_close(out, inferers.InsightInferer()(volume, network()))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_by_slice_each_slice_has_the_probability_of_its_own_cells(batch_size):
    volume, heat, _ = scene("zoom 1")
    out = inferers.InsightInferer(batch_size=batch_size, by_slice=True)(volume, network())
    expected = [smooth_max(heat[None]) if z in (2, 5) else 0.0 for z in range(DEPTH)]
    np.testing.assert_allclose(out[0, 3, 0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(out[0, 2, 0, 0], 1 - np.array(expected), atol=1e-6)
    torch.testing.assert_close(out[:, :2], inferers.InsightInferer()(volume, network())[:, :2])


def test_heat_in_cells_mostly_outside_the_organ_does_not_count():
    volume, heat, cell = scene("zoom 1")
    volume[0, 1, :3, 12:] = 0  # three of four rows of the cell (0, 3)
    heat[0, 3] = 0
    out = inferers.InsightInferer()(volume, network())
    np.testing.assert_allclose(out[0, 1, ..., 5], enlarged(heat, cell, (12, 16)), atol=1e-5)


def test_no_class_is_as_probable_as_the_most_probable_label_leaves_it():
    volume, heat, cell = scene("zoom 2")
    out = inferers.InsightInferer()(volume, network(num_labels=3, zoom=2.0))
    assert out.shape[1] == 8
    for label in range(3):
        expected = 0.25**label * enlarged(heat, cell, (12, 10))
        np.testing.assert_allclose(out[0, 1 + label, ..., 2], expected, atol=1e-5)
    probability = out[0, 4:, 0, 0, 0]
    assert probability[1] > probability[2] > probability[3]
    assert probability[0] == 1 - probability[1]


def test_a_volume_without_organ_is_negative_for_certain():
    volume, *_ = scene("zoom 1")
    volume[:, 1] = 0
    out = inferers.InsightInferer()(volume, network(num_labels=2))
    assert out[:, :3].abs().max() == 0
    assert (out[:, 3] == 1).all()
    assert out[:, 4:].abs().max() == 0


def test_with_a_store_the_result_is_the_same_and_the_encoder_runs_once(tmp_path):
    volume, *_ = scene("zoom 2, no multiple")
    other = volume.flip(-1).roll(1, dims=2)
    expected = inferers.InsightInferer()(torch.cat([volume, other]), network(zoom=2.0))
    net = network(zoom=2.0)
    inferer = inferers.InsightInferer(store_dir=str(tmp_path), chunk=3)
    for expected_calls in (2, 2):  # one batch a volume, and none the second time
        torch.testing.assert_close(inferer(torch.cat([volume, other]), net), expected)
        assert net.encoder.body.calls == expected_calls
    assert len(list(FeatureStore(tmp_path).entries())) == 2


@pytest.mark.parametrize("error", [inferers.EntryLocked, inferers.NotWritten])
def test_a_store_that_another_process_holds_or_a_full_disk_stops_nothing(tmp_path, monkeypatch, error):
    def volume_entry(*_, **__):
        raise error("held")

    monkeypatch.setattr(inferers, "volume_entry", volume_entry)
    volume, *_ = scene("zoom 1")
    expected = inferers.InsightInferer()(volume, network())
    torch.testing.assert_close(inferers.InsightInferer(store_dir=str(tmp_path))(volume, network()), expected)


def test_a_vector_of_features_heats_the_whole_slice():
    volume, *_ = scene("zoom 1")
    volume[0, 0] = volume[0, 1] * torch.tensor([0.0, 1, 0.1, 0, 1, 0, 0])
    out = inferers.InsightInferer()(volume, network(embedding="vector"))
    for z in range(DEPTH):
        assert (out[0, 1, ..., z] == float(z in (1, 4))).all()
