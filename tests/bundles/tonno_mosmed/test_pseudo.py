from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.bundles.conftest import load_script

pseudo = load_script("tonno_mosmed", "pseudo")

SHAPE = (24, 24, 12)
AFFINE = np.diag([3.0, 3.0, 5.0, 1.0])
LESION = (slice(4, 9), slice(5, 10), slice(3, 6))  # where the image is bright
DECOY = (slice(14, 19), slice(14, 19), slice(8, 11))  # as bright, in slices labeled 0
REFINE = {"dilate_mm": 9.0, "intensity": 1.5, "smooth_mm": 0.0, "opening_mm": 0.0, "largest": False}
LABELS = [int(3 <= z < 6) for z in range(12)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def bright_boxes(case: dict) -> dict:
    """Preprocessing: an organ of intensity 1 with two boxes of intensity 3, above the organ mask."""
    organ = torch.zeros(SHAPE)
    organ[1:-1, 1:-1, 1:-1] = 1
    image = organ.clone()
    for box in (LESION, DECOY):
        image[box] = 3
    meta = {"filename_or_obj": case.get("image")}
    return {"image": MetaTensor(torch.stack([image, organ]), affine=torch.as_tensor(AFFINE), meta=meta)}


def dataset(folder, cases, *, heat=(LESION, DECOY), **options):
    values = np.zeros(SHAPE, dtype=np.float32)
    for x, y, z in heat:
        values[(x.start + x.stop) // 2, (y.start + y.stop) // 2, z] = 1  # the middle; the image gives the outline
    for case in cases:
        nib.save(nib.Nifti1Image(values, AFFINE), folder / f"{case['case']}_heatmap.nii.gz")
    settings = {"pseudo_dir": folder, "threshold": 0.5, "refine": REFINE, "planes": 16, "size": 48, "progress": False}
    return pseudo.PseudoPlaneDataset(cases, bright_boxes, **(settings | options))


def bright_cm2(planes: torch.Tensor, radius: float) -> torch.Tensor:
    return ((planes[:, 0] - 1).clamp(min=0) / 2).sum(dim=(1, 2)) * (0.2 * radius / (planes.shape[-1] - 1)) ** 2


def test_planes_are_positive_where_they_meet_the_lesion(tmp_path):
    """The organ holds nothing else that is bright here, so the image itself tells."""
    planes = dataset(tmp_path, [{"case": "a", "cls": [1] * 12}], scale=0.1, shear=0.1)
    assert planes.classes == [1]
    for _ in range(5):
        item = planes[0]
        bright = bright_cm2(item["image"], planes.bodies[0].radius)
        assert item["cls"].tolist() == [1.0, 0.0] * 8
        assert (bright[0::2] > 0.99).all()
        assert (bright[1::2] < 1e-3).all()
        drawn, shown = item["pseudo"][:, 0], (item["image"][:, 0] - 1).clamp(min=0) / 2
        assert drawn[1::2].max() < 1e-3
        assert (drawn - shown)[0::2].abs().mean() < 0.2 * shown[0::2].mean()  # the mask is cut with the image


def test_what_lies_in_slices_labeled_negative_is_no_finding(tmp_path):
    planes = dataset(tmp_path, [{"case": "a", "cls": LABELS}])
    marked = np.zeros(SHAPE, dtype=bool)
    marked[LESION] = True
    np.testing.assert_array_equal(planes.bodies[0].volume[-1].numpy() > 0.5, marked[1:-1, 1:-1, 1:-1])


def test_true_masks_teach_in_slices_labeled_positive_and_need_no_heatmap(tmp_path):
    values = np.zeros(SHAPE, dtype=np.uint8)
    part = tuple(slice(x.start, x.start + 2) for x in LESION)
    values[part] = values[DECOY] = 1
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), tmp_path / "flair.nii.gz")
    files = {"image": str(tmp_path / "flair.nii.gz"), "label": str(tmp_path / "mask.nii.gz")}
    cases = [{"case": "a", "cls": LABELS, **files}, {"case": "healthy", "cls": [0] * 12, **files}]
    planes = pseudo.MaskedPlaneDataset(cases, bright_boxes, planes=4, size=48, min_area_cm2=0.1, progress=False)
    assert planes.classes == [1, 0]
    marked = np.zeros(SHAPE, dtype=bool)
    marked[part] = True
    np.testing.assert_array_equal(planes.bodies[0].volume[-1].numpy() > 0.5, marked[1:-1, 1:-1, 1:-1])
    assert planes[0]["cls"].tolist() == [1.0, 0.0] * 2
    assert planes[1]["pseudo"].max() == 0


def test_negative_planes_hold_as_much_organ_as_positive_ones(tmp_path):
    cases = [{"case": "a", "cls": LABELS}]
    organs = []
    for candidates in (1, 12):
        planes = dataset(tmp_path, cases, candidates=candidates)
        areas = torch.stack([(planes[0]["image"] != 0).sum(dim=(1, 2, 3)).float() for _ in range(8)])
        organs.append((areas[:, 0::2].mean() - areas[:, 1::2].mean()).item() / areas.mean().item())
    assert organs[0] > 0.1
    assert abs(organs[1]) < 0.05


def test_volumes_without_a_positive_slice_are_negative_and_those_without_a_pseudo_mask_are_left_out(tmp_path):
    healthy = dataset(tmp_path, [{"case": "healthy", "cls": 0}])
    assert healthy.classes == [0]
    assert healthy[0]["cls"].tolist() == [0.0] * 16
    with pytest.raises(RuntimeError, match="no volume is left"):
        dataset(tmp_path, [{"case": "lost", "cls": LABELS}], heat=(DECOY,))


def test_validation_planes_never_change(tmp_path):
    fixed = dataset(tmp_path, [{"case": "a", "cls": LABELS}], fixed=True)
    assert torch.equal(fixed[0]["image"], fixed[0]["image"])


def test_a_missing_heatmap_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"1 of 1 heatmaps do not exist, e\.g\. .*b_heatmap\.nii\.gz"):
        pseudo.PseudoPlaneDataset([{"case": "b"}], bright_boxes, pseudo_dir=tmp_path, threshold=0.5)


def test_pairs_take_large_areas_first_and_the_nearest_organ():
    area = torch.tensor([0.0, 0.5, 2.0, 0.0, 3.0, 0.0])
    organ = torch.tensor([10, 50, 30, 28, 11, 90])
    assert pseudo.pairs_of_planes(area, organ, count=2, min_area=1.0).tolist() == [2, 3, 4, 0]
    assert pseudo.pairs_of_planes(area, organ, count=3, min_area=2.5).tolist() == [4, 0, 2, 3, 1, 5]


@pytest.mark.parametrize("area", [torch.zeros(4), torch.ones(4)])
def test_planes_of_one_kind_are_taken_as_they_come(area):
    assert pseudo.pairs_of_planes(area, torch.ones(4), count=1, min_area=0.5).tolist() == [0, 1]


def test_in_a_cache_volumes_follow_the_heatmap_that_their_mask_is_from(tmp_path):
    cases = [
        {"case": "a", "cls": LABELS, "image": str(tmp_path / "a")},
        {"case": "b", "cls": [0] * 12, "image": str(tmp_path / "a")},
    ]
    (tmp_path / "a").write_text("the scan")
    for heat in ((LESION, DECOY), (LESION, DECOY), ()):
        held = dataset(tmp_path, cases, heat=heat, fixed=True)
        stored = dataset(tmp_path, cases, heat=heat, fixed=True, cache_dir=tmp_path / "cache")
        assert len(stored) == len(held) == (2 if heat else 1)
        for one, other in zip(held, stored, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["cls"], other["cls"])
    assert len(list((tmp_path / "cache").rglob("entry.json"))) == 4  # two of each heatmap
