from __future__ import annotations

from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from common.data import SliceDataset, pseudo_masks, true_masks
from common.engines import SliceMapInferer
from tests.bundles.conftest import load_script

pseudo = load_script("gp_unet_brats", "pseudo")

SHAPE = (24, 20, 6)
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
LESION = (slice(4, 9), slice(5, 10), slice(1, 3))
DECOY = (slice(14, 19), slice(10, 15), slice(4, 6))  # as bright, in slices labeled 0
LABELS = [0, 1, 1, 1, 0, 0]  # slice 3 is positive, and nothing is bright in it
RAW = {"dilate_mm": 0.0, "intensity": 0.0, "smooth_mm": 0.0, "opening_mm": 0.0, "largest": False}


def bright_boxes(case: dict) -> dict:
    """Preprocessing: an organ of intensity 1 with two boxes of intensity 3, above the organ mask."""
    organ = torch.zeros(SHAPE)
    organ[1:-1, 1:-1] = 1
    image = organ.clone()
    for box in (LESION, DECOY):
        image[box] = 3
    return {"image": MetaTensor(torch.stack([image, organ]), affine=torch.as_tensor(AFFINE))}


class Teacher(torch.nn.Module):
    """Its map is the brightness above a level, in one corner of the image only."""

    num_classes = 2

    def __init__(self, corner: int = 24) -> None:
        super().__init__()
        self.corner = corner
        self.level = torch.nn.Parameter(torch.tensor(2.0))

    def explain(self, image):
        evidence = image[:, :1] - self.level
        evidence[:, :, self.corner :] = -1
        maps = torch.cat([torch.zeros_like(evidence), evidence], dim=1)
        return maps, maps.amax(dim=(2, 3))


def dataset(*, teacher=None, cls=LABELS, window=None, **options):
    settings = {"teacher": teacher or Teacher(), "inferer": SliceMapInferer(margin=100), "refine": RAW}
    targets = partial(pseudo_masks, **(settings | options))
    cases = [{"case": "a", "image": "", "cls": cls, "label": "never opened.nii.gz"}]
    return SliceDataset(cases, bright_boxes, progress=False, targets=targets, window=window)


def marked(*boxes) -> torch.Tensor:
    mask = torch.zeros(SHAPE)
    for box in boxes:
        mask[box] = 1
    return mask


def masks(items) -> torch.Tensor:
    return torch.stack([item["pseudo"][0] for item in items], dim=-1)


def test_the_teacher_marks_in_evaluation_mode_whatever_mode_it_is_given_in():
    teacher = Teacher().train()
    dataset(teacher=teacher)
    assert not teacher.training


def test_masks_are_where_the_teacher_is_hot_in_slices_labeled_positive():
    items = list(dataset())
    assert torch.equal(masks(items), marked(LESION))
    assert [item["cls"] for item in items] == LABELS
    assert not masks(dataset(teacher=Teacher(corner=4))).any()
    assert masks(dataset(teacher=Teacher(corner=6))).sum() == marked(LESION)[:6].sum()


def test_a_positive_slice_without_a_mask_does_not_count_and_a_negative_one_does():
    assert [bool(item["counts"]) for item in dataset()] == [True, True, True, False, True, True]


class TestOneLabelAVolume:
    """The teacher's probabilities by slice are .27 (nothing bright) and .73 (a box)."""

    def test_the_teacher_says_which_slices_of_a_positive_one_have_a_mask(self):
        items = list(dataset(cls=1))
        assert torch.equal(masks(items), marked(LESION, DECOY))
        assert not masks(dataset(cls=0)).any()

    @pytest.mark.parametrize(("sure", "sure_of_none"), [((0.2, 0.5), False), ((0.3, 0.5), True)])
    def test_slices_between_sure_and_sure_of_none_do_not_count(self, sure, sure_of_none):
        counts = [bool(item["counts"]) for item in dataset(cls=1, sure=sure)]
        assert counts == [sure_of_none, True, True, sure_of_none, True, True]
        assert all(item["counts"] for item in dataset(cls=0, sure=sure))

    def test_the_most_probable_slice_has_one_however_unsure_the_teacher_is(self):
        items = list(dataset(cls=1, sure=(0.1, 0.9)))
        assert torch.equal(masks(items), marked(LESION, DECOY))  # all of its slices are as probable

    def test_their_logits_are_pooled(self):
        target = {"cls": torch.tensor([1, 1, 0]), "bag": torch.tensor([4, 4, 0]), "counts": torch.zeros(3)}
        target |= {key: torch.zeros(3, 1, 4, 4) for key in ("pseudo", "organ")}
        logits = torch.tensor([[0.0, -9.0], [0.0, 9.0], [9.0, 0.0]])
        loss = pseudo.PseudoMaskLoss(pool="max")
        assert float(loss((torch.zeros(3, 2, 4, 4), logits), target)) < 1e-3


def test_the_image_refines_what_the_teacher_only_points_at():
    items = list(dataset(teacher=Teacher(corner=5), refine=RAW | {"dilate_mm": 15.0, "intensity": 1.5}))
    assert torch.equal(masks(items), marked(LESION))


def test_masks_follow_the_window_of_their_image():
    items = list(dataset(window=[12, 30]))
    assert any(item["pseudo"].any() for item in items)
    for item in items:
        assert item["pseudo"].shape == item["image"].shape == (1, 22, 30)  # the organ is longer than the window
        if item["pseudo"].any():
            assert torch.equal(item["pseudo"] > 0, item["image"] > 2)


def test_true_masks_are_brought_to_the_image(tmp_path):
    mask = marked(LESION).flip(0)
    turned = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = AFFINE[0, 0] * (SHAPE[0] - 1)
    nib.save(nib.Nifti1Image(mask.numpy(), turned), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE), AFFINE), tmp_path / "image.nii.gz")
    cases = [{"case": "a", "image": "", "cls": LABELS, "label": str(tmp_path / "mask.nii.gz")}]

    def preprocessing(case):
        image = bright_boxes(case)["image"]
        image.meta["filename_or_obj"] = str(tmp_path / "image.nii.gz")
        return {"image": image}

    items = list(SliceDataset(cases, preprocessing, progress=False, targets=true_masks))
    assert torch.equal(masks(items), marked(LESION))
    assert [bool(item["counts"]) for item in items] == [True, True, True, False, True, True]


def test_a_mask_file_says_nothing_in_slices_labeled_negative(tmp_path):
    """For masks that another network drew."""
    nib.save(nib.Nifti1Image(marked(LESION, DECOY).numpy(), AFFINE), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE), AFFINE), tmp_path / "image.nii.gz")
    case = {"case": "a", "cls": LABELS, "label": str(tmp_path / "mask.nii.gz")}
    image = bright_boxes(case)["image"]
    image.meta["filename_or_obj"] = str(tmp_path / "image.nii.gz")
    assert torch.equal(true_masks(case, image)["pseudo"][0].float(), marked(LESION))


def test_a_network_of_another_collection_shares_the_evidence_for_its_class():
    class Constant(torch.nn.Module):
        def __init__(self, *levels):
            super().__init__()
            self.num_classes = len(levels)
            self.maps = torch.tensor(levels)[None, :, None, None].expand(2, -1, 4, 4)

        def explain(self, image):
            return self.maps, self.maps.amax(dim=(2, 3))

    network, other = Constant(0.5, 3.0, 2.5, 1.0), Constant(-1.0, 4.0)
    taught = pseudo.TaughtElsewhere(network, other, of_class=2, share=0.25)
    maps, logits = taught.explain(torch.zeros(2, 2, 4, 4))
    # Against class 0: 5 of the other, and a quarter of 2.5 - 0.5.
    assert maps[0, :, 0, 0].tolist() == [0.5, 3.0, 6.0, 1.0]
    assert torch.equal(logits, network.explain(None)[1])
    assert network.maps[0, 2, 0, 0] == 2.5
    assert taught.num_classes == 4
    for wrong in ({"of_class": 0, "other": other}, {"of_class": 4, "other": other}, {"of_class": 2, "other": network}):
        with pytest.raises(ValueError, match="cannot be taught"):
            pseudo.TaughtElsewhere(network, **wrong)


def test_a_batch_gives_the_loss_what_it_needs():
    batch = next(iter(DataLoader(dataset(), batch_size=6)))
    batch["image"] = torch.cat([batch["image"], batch["organ"]], dim=1)
    image, target = pseudo.prepare_batch(batch, torch.device("cpu"))
    assert image.shape == (6, 2, *SHAPE[:2])
    assert target["cls"].tolist() == LABELS
    assert target["counts"].tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert torch.equal(target["organ"], image[:, 1:])
    maps = torch.zeros(6, 2, *SHAPE[:2])
    assert torch.isfinite(pseudo.PseudoMaskLoss()((maps, torch.zeros(6, 2)), target))


def test_pseudo_mask_loss_counts_only_slices_that_have_a_mask_or_need_none():
    maps = torch.zeros(2, 2, 4, 4)
    maps[:, 1] = torch.randn(2, 4, 4)
    maps.requires_grad_()
    target = {
        "cls": torch.tensor([0, 1]),
        "bag": torch.tensor([-1, -1]),
        "pseudo": torch.zeros(2, 1, 4, 4),
        "organ": torch.ones(2, 1, 4, 4),
        "counts": torch.tensor([1.0, 0.0]),
    }
    loss = pseudo.PseudoMaskLoss(classification=0.0)((maps, torch.zeros(2, 2)), target)
    (gradient,) = torch.autograd.grad(loss, maps)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_pseudo_mask_loss_is_zero_for_certain_and_right_maps():
    pseudo_mask = (torch.rand(2, 1, 8, 8) > 0.7).float()
    margin = (pseudo_mask * 2 - 1) * 60
    maps = torch.cat([torch.zeros_like(margin), margin], dim=1)
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]])
    target = {
        "cls": torch.tensor([0, 1]),
        "bag": torch.tensor([-1, -1]),
        "pseudo": pseudo_mask,
        "organ": torch.ones_like(pseudo_mask),
        "counts": torch.ones(2),
    }
    assert float(pseudo.PseudoMaskLoss()((maps, logits), target)) < 1e-3


class ThreeClasses(Teacher):
    """Class 1 is hot in the lesion's half of the image, class 2 in the decoy's; in half of the lesion still hotter."""

    num_classes = 3

    def explain(self, image):
        bright = image[:, :1] - self.level
        left = (torch.arange(bright.shape[2]) < 12)[:, None].expand_as(bright)
        maps = torch.cat([0 * bright, torch.where(left, 2 * bright, -10.0), torch.where(left, -10.0, bright)], dim=1)
        return maps, maps.amax(dim=(2, 3))


def test_the_map_of_the_class_that_the_label_names_counts():
    assert torch.equal(masks(dataset(teacher=ThreeClasses(), cls=LABELS)), marked(LESION))
    assert not masks(dataset(teacher=ThreeClasses(), cls=[2 * label for label in LABELS])).any()
    assert torch.equal(masks(dataset(teacher=ThreeClasses(), cls=[0, 0, 0, 0, 2, 2])), marked(DECOY))


def test_a_quantile_of_each_slice_takes_the_place_of_a_threshold():
    high = {"threshold": 5.0, "cls": LABELS}
    assert not masks(dataset(**high)).any()
    tenth = masks(dataset(**high, binarize="quantile", mask_quantile=0.9))  # of 22 × 18 pixels; the lesion has 25
    assert torch.equal(tenth, marked(LESION))
    hidden = dataset(**high, teacher=ThreeClasses(), binarize="quantile", mask_quantile=0.2)
    assert not (masks(hidden)[12:] > 0).any()  # what lies at -10 is no evidence


class TwoSpots(Teacher):
    """A large spot, and a small one that is hotter."""

    def explain(self, image):
        evidence = torch.full_like(image[:, :1], -1.0)
        evidence[:, :, 4:9, 5:10] = 1.0
        evidence[:, :, 14:16, 10:12] = 3.0
        maps = torch.cat([torch.zeros_like(evidence), evidence], dim=1)
        return maps, maps.amax(dim=(2, 3))


@pytest.mark.parametrize(("hottest", "pixels"), [(True, 4), (False, 29)])
def test_the_hottest_component_alone_is_refined_where_asked(hottest, pixels):
    items = masks(dataset(teacher=TwoSpots(), hottest=hottest))
    assert items.sum(dim=(0, 1)).tolist() == [pixels * label for label in LABELS]


def test_the_class_that_the_label_names_is_to_fill_the_mask():
    maps = torch.zeros(1, 3, 4, 4)
    maps[:, 1] = 9.0
    ones = torch.ones(1, 1, 4, 4)
    target = {"bag": torch.tensor([-1]), "counts": torch.ones(1), "pseudo": ones, "organ": ones}
    loss = pseudo.PseudoMaskLoss(classification=0.0)
    right, wrong = (float(loss((maps, maps[..., 0, 0]), target | {"cls": torch.tensor([k])})) for k in (1, 2))
    assert right < 0.01
    assert wrong > 0.5
    assert float(loss((maps, maps[..., 0, 0]), target | {"pseudo": 0 * ones, "cls": torch.tensor([2])})) > 5


def test_maps_of_another_kind_are_combined_first():
    class Members(Teacher):
        num_maps = 1

        def explain(self, image):
            maps, logits = super().explain(image)
            return maps[:, 1:], logits

    def combine(made):
        maps, rest = made["pred"][:1], made["pred"][1:]
        assert made["image"].shape[1:] == SHAPE
        return {"pred": torch.cat([0 * maps, maps, rest])}

    case = {"case": "a", "cls": LABELS}
    options = {"teacher": Members(), "inferer": SliceMapInferer(margin=100), "refine": RAW}
    made = pseudo_masks(case, bright_boxes(case)["image"], **options, combine=combine)
    assert torch.equal(made["pseudo"][0].float(), marked(LESION))


def test_a_quantile_is_of_the_evidence_inside_the_organ():
    """The box is 25 of its 396 pixels, 6.3 % of them, and 5.2 % of the 480 of the slice."""
    assert torch.equal(masks(dataset(binarize="quantile", mask_quantile=0.93)), marked(LESION))
    assert not masks(dataset(binarize="quantile", mask_quantile=0.94)).any()


def test_evidence_is_what_a_class_has_beyond_class_0():
    class Shifted(Teacher):
        def explain(self, image):
            maps, logits = super().explain(image)
            return maps + 5, logits

    assert torch.equal(masks(dataset(teacher=Shifted())), marked(LESION))
