from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ConcatItemsd, EnsureChannelFirstd, LoadImaged
from torch import Tensor, nn

from common.encoders import Encoder
from common.features import FeatureStore
from common.pooling import GlobalPool
from tests.bundles.conftest import load_script

bags = load_script("insight_ct", "bags")
losses = load_script("insight_ct", "losses")
pseudo = load_script("insight_ct", "pseudo")

KEYS = ("image", "organ")
DARK, BRIGHT, STRIDE = 0.25, 0.75, 4
CLS = [1, 1, 1, 1, 0, 0, 0, 0]
RAW = {"dilate_mm": 0.0, "intensity": 0.5, "opening_mm": 0.0, "smooth_mm": 0.0, "largest": False}


class Everywhere(nn.Module):
    """Heat is 0.6 in the upper rows of cells and 0.4 in the lower ones, and a tenth for each further label."""

    def __init__(self, num_labels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels

    def heatmap(self, features: Tensor, inside: Tensor | None = None) -> Tensor:
        n, _, h, w = features.shape
        heat = torch.full((n, self.num_labels, h, w), 0.4)
        heat[:, :, : h // 2] = 0.6
        heat[:, 1:] /= 10
        return heat.masked_fill(inside <= 0.5, 0.0)


@pytest.fixture
def volume() -> np.ndarray:
    """Dark `[H, W, D]` with a bright corner in each cell, of 0 to 3 pixels a side, so that none encloses a hole."""
    rng = np.random.default_rng(0)
    rows, columns = (np.kron(rng.integers(0, 4, (4, 3, len(CLS))), np.ones((STRIDE, STRIDE, 1))) for _ in range(2))
    y, x, _ = np.indices(rows.shape)
    return np.where((y % STRIDE < rows) & (x % STRIDE < columns), BRIGHT, DARK).astype(np.float32)


@pytest.fixture
def dataset(tmp_path, volume):
    """Function that makes the dataset of one volume, whose first slices are labeled positive."""
    organ = np.ones_like(volume)
    organ[:, :STRIDE] = 0  # the first column of cells
    for key, array in zip(KEYS, (volume, organ), strict=True):
        np.save(tmp_path / f"{key}.npy", array)
    paths = {key: str(tmp_path / f"{key}.npy") for key in KEYS}
    case = {"case": "a", "patient": "a", "cls": CLS, "label": str(tmp_path / "none.npy"), **paths}
    load: list = [
        LoadImaged(keys=KEYS, reader="NumpyReader"),
        LoadImaged(keys="label", reader="NumpyReader", allow_missing_keys=True),
    ]
    keys: list = [*KEYS, "label"]
    first = EnsureChannelFirstd(keys=keys, channel_dim="no_channel", allow_missing_keys=True)
    preprocessing = Compose([*load, first, ConcatItemsd(keys=KEYS, name="image")])
    encoder = Encoder(nn.AvgPool2d(STRIDE), name="mean", channels=3, stride=STRIDE)
    store = FeatureStore(tmp_path / "store")

    def make(classes=("none", "infection"), cases=(case,), teacher=None, **options):
        found = bags.volume_bags(cases, preprocessing, encoder, store, classes=classes, progress=False)
        teacher = teacher or SimpleNamespace(head=Everywhere(len(classes) - 1), encoder=encoder, eval=lambda: teacher)
        teacher.eval = lambda: teacher
        options = {"threshold": 0.1, "refine": RAW, "progress": False, "fixed": True} | options
        return pseudo.PseudoMaskDataset(found, store, preprocessing=preprocessing, teacher=teacher, **options)

    make.case, make.parts = case, (preprocessing, encoder, store)  # type: ignore[attr-defined]
    return make


def bright_share(features: Tensor) -> Tensor:
    """Of each cell, told by its mean brightness."""
    return (features[:, :1] - DARK) / (BRIGHT - DARK)


def test_mask_is_what_is_bright_where_the_teacher_is_hot_within_the_organ_in_positive_bags(dataset):
    positive, negative = dataset()
    features, inside, labels, masks = positive
    assert labels.tolist() == [1.0]
    torch.testing.assert_close(masks[..., 1:], bright_share(features)[..., 1:], atol=2e-3, rtol=0)
    assert not masks[..., 0].any()
    assert not inside[..., 0].any()
    assert negative[2].tolist() == [0.0]
    assert negative[3].shape == masks.shape
    assert not negative[3].any()


def test_without_refinement_it_is_the_thresholded_heat(dataset):
    (_, _, _, masks), _ = dataset(threshold=0.5, refine=None)
    # Towards cells that are not hot the enlarged heat falls off.
    assert (masks[:, :, 0, 2] == 1).all()
    assert (masks[:, :, :2, 1:] > 0.5).all()
    assert not masks[:, :, 3:].any()
    (_, inside, _, masks), _ = dataset(threshold=0.1, refine=None)
    assert torch.equal(masks, inside)  # although the enlarged heat reaches beyond the organ


def test_masks_follow_the_stack_and_the_flips_of_their_features(dataset):
    torch.manual_seed(0)
    drawn = dataset(fixed=False, stack=2)
    seen = set()
    for _ in range(40):
        features, inside, _, masks = drawn[0]
        assert len(features) == len(inside) == len(masks) == 2
        torch.testing.assert_close(masks, bright_share(features) * inside, atol=2e-3, rtol=0)
        seen.add(tuple(masks.flatten().tolist()))
    assert len(seen) == 3 * 4  # places of the stack, flips


def test_a_label_that_the_bag_lacks_has_no_mask(dataset):
    case = dataset.case | {"cls": ["lesion"]}
    ((features, inside, labels, masks),) = dataset(classes=("none", "nodule", "lesion"), cases=[case], threshold=0.02)
    assert labels.tolist() == [0.0, 1.0]
    assert not masks[:, 0].any()
    expected = bright_share(features) * inside
    torch.testing.assert_close(masks[:, 1:, :2, 2], expected[:, :, :2, 2], atol=2e-3, rtol=0)
    assert masks[:, 1].any()


@pytest.mark.parametrize("classes", [("none", "infection"), ("none", "nodule", "lesion")])
def test_true_masks_are_read_from_files_for_the_upper_bound(dataset, volume, tmp_path, classes):
    preprocessing, encoder, store = dataset.parts
    np.save(tmp_path / "mask.npy", np.where(volume == BRIGHT, len(classes) - 1, 0).astype(np.float32))
    case = dataset.case | {"label": str(tmp_path / "mask.npy")}
    if len(classes) > 2:
        case["cls"] = ["lesion"]
    found = bags.volume_bags([case], preprocessing, encoder, store, classes=classes, progress=False)
    options = {"preprocessing": preprocessing, "encoder": encoder, "progress": False, "fixed": True}
    features, _, _, masks = pseudo.MaskDataset(found, store, **options)[0]
    torch.testing.assert_close(masks[:, -1:], bright_share(features), atol=2e-3, rtol=0)
    assert not masks[:, :-1].any()


def test_features_that_know_no_organ_are_refused(tmp_path):
    store = FeatureStore(tmp_path)
    encoder = Encoder(nn.AvgPool2d(STRIDE), name="mean", channels=3, stride=STRIDE)
    store.compute("k", torch.rand(2, 1, 8, 8), encoder)
    teacher = nn.Module()
    teacher.encoder = encoder
    with pytest.raises(ValueError, match="know where the organ is"):
        pseudo.PseudoMaskDataset(
            [{"key": "k", "labels": [1]}], store, preprocessing=dict, teacher=teacher, threshold=0.5
        )


def a_bag(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inside = (torch.rand(n, 1, 4, 5, generator=generator) > 0.4).float()
    masks = torch.rand(n, 1, 4, 5, generator=generator)
    return torch.rand(n, 3, 4, 5, generator=generator), inside, torch.ones(1), masks


def test_loss_is_the_mean_over_bags_of_the_cross_entropy_of_the_cells_inside():
    target = [a_bag(2, 0), a_bag(5, 1)]
    heat = [0.1 + 0.8 * torch.rand(bag[3].shape) for bag in target]
    expected = [
        nn.functional.binary_cross_entropy(h[bag[1] > 0.5], bag[3][bag[1] > 0.5])
        for h, bag in zip(heat, target, strict=True)
    ]
    loss = pseudo.PseudoMaskLoss()((heat, torch.rand(2, 1), torch.rand(2)), target)
    assert float(loss) == pytest.approx(float(sum(expected)) / 2, abs=2e-4)


def test_the_bags_loss_is_added_with_its_weight():
    target = [a_bag(2, 0), a_bag(5, 1)]
    pred = ([torch.rand(bag[3].shape) for bag in target], torch.rand(2, 1), torch.rand(2))
    options = {"smoothing": 0.1, "decoupling": 0.5}
    both = pseudo.PseudoMaskLoss(segmentation=3.0, classification=2.0, **options)(pred, target)
    bags_only = losses.InsightLoss(**options)(pred[1:], torch.ones(2, 1))
    torch.testing.assert_close(both, 3 * pseudo.PseudoMaskLoss()(pred, target) + 2 * bags_only)


def test_a_surely_wrong_cell_has_a_finite_gradient():
    _, inside, labels, _ = a_bag(2, 0)
    heat = torch.zeros(2, 1, 4, 5, requires_grad=True)
    bag = (None, inside, labels, torch.ones(2, 1, 4, 5))
    pseudo.PseudoMaskLoss()(([heat], torch.rand(1, 1), torch.rand(1)), [bag]).backward()
    assert torch.isfinite(heat.grad).all()
    assert (heat.grad[inside > 0.5] < 0).all()
    assert not heat.grad[inside <= 0.5].any()


def test_inferer_gives_each_bags_heat_probability_and_penalty():
    class Head(nn.Module):
        def forward(self, features, inside, labels):
            heat = features[:, :1] * inside
            return heat, GlobalPool("max")(heat.transpose(0, 1)[None])[0], labels.sum()

    batch = [a_bag(2, 0), a_bag(5, 1)]
    inputs, target = pseudo.prepare_batch(batch, torch.device("cpu"))
    heat, probability, penalty = pseudo.MaskInferer()(inputs, Head())
    for one, bag, p in zip(heat, target, probability, strict=True):
        torch.testing.assert_close(one, bag[0][:, :1] * bag[1])
        assert float(p) == float(one.max())
    assert penalty.tolist() == [1.0, 1.0]
