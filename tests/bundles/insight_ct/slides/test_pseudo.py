from __future__ import annotations

import torch

from common.features import FeatureStore
from tests.bundles.conftest import load_script
from tests.bundles.insight_ct.slides.helpers import LESION, TISSUE, ColorEncoder, color_network

pseudo = load_script("insight_ct", "slides.pseudo")


def test_a_slide_with_the_label_has_a_mask_where_the_teacher_is_hot_and_one_without_has_none(tmp_path):
    tiles = torch.tensor(TISSUE).view(1, 3, 1, 1).expand(40, 3, 224, 224) / 255  # two chunks
    tiles = tiles.clone()
    tiles[33, :, 112:] = torch.tensor(LESION).view(3, 1, 1) / 255
    inside = torch.ones(40, 1, 16, 16)
    inside[33, :, :, 8:] = 0
    store, bags = FeatureStore(tmp_path), []
    for key, label in (("aa", 1), ("bb", 0)):
        store.compute(key, tiles, ColorEncoder(), inside=inside, about={"cell_um": 14.0})
        bags.append({"case": key, "key": key, "labels": [label], "label": "no_such_file.xml"})
    options = {"teacher": color_network(), "threshold": [0.5], "progress": False, "flip": False}
    positive, negative = pseudo.PseudoMaskDataset(bags, store, **options)
    expected = torch.zeros(40, 1, 16, 16)
    expected[33, 0, 8:, :8] = 1
    torch.testing.assert_close(positive[3], expected)
    assert negative[3].max() == 0
    assert [list(part.shape) for part in positive] == [[40, 3, 16, 16], [40, 1, 16, 16], [1], [40, 1, 16, 16]]
    smoothed = pseudo.PseudoMaskDataset(bags, store, smooth_um=28.0, **options | {"threshold": [0.6]})[0][3]
    expected[33, 0, 8] = 0  # there it falls below, but not at the edge of the tissue
    torch.testing.assert_close(smoothed, expected)


def test_mirrored_bags_have_mirrored_masks(tmp_path):
    tiles = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tiles[:, :, :100, :70] = torch.tensor(LESION).view(3, 1, 1) / 255
    store = FeatureStore(tmp_path)
    store.compute("aa", tiles, ColorEncoder(), inside=torch.ones(2, 1, 16, 16), about={"cell_um": 14.0})
    bags = [{"case": "a", "key": "aa", "labels": [1]}]
    network = color_network()
    data = pseudo.PseudoMaskDataset(bags, store, teacher=network, threshold=[0.9], progress=False, flip=True)
    drawn = [data[0] for _ in range(8)]
    assert len({tuple(features[0, 0].flatten().tolist()) for features, *_ in drawn}) > 1
    for features, inside, _, masks in drawn:
        torch.testing.assert_close(masks, (network.head.heatmap(features, inside) > 0.9).float())
