from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd
from scipy.spatial.transform import Rotation

from common.preprocessing import SpacingByAxesd
from common.preprocessing.spacing import resample_by_axes

OBLIQUE = Rotation.from_euler("xyz", (4, 6, 8), degrees=True).as_matrix()


def case(shape: tuple[int, int, int], zooms: tuple[float, float, float], shear: float = 0.0) -> dict[str, MetaTensor]:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ (np.eye(3) + shear * np.eye(3, k=1)) @ np.diag(zooms)
    affine[:3, 3] = 3, -50, 7
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.rand(2, *shape, generator=generator), torch.rand(1, *shape, generator=generator) > 0.5
    return {key: MetaTensor(t, affine=torch.as_tensor(affine)) for key, t in (("image", image), ("mask", mask))}


GRIDS = [
    ((24, 30, 11), (1.0, 1.0, 5.0), (1.5, 1.5, -1.0)),  # every third of the new voxels lies between two old ones
    ((17, 21, 9), (0.7, 1.1, 5.0), (1.0, 1.0, 1.0)),
    ((31, 12, 1), (1.0, 1.0, 1.0), (0.5, 2.0, -1.0)),
    ((9, 8, 7), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
]


@pytest.mark.parametrize(("shape", "zooms", "pixdim"), GRIDS)
def test_there_and_back_as_monai_goes(shape, zooms, pixdim):
    there, back = [], []
    for kind in (Spacingd, SpacingByAxesd):
        transform = kind(
            keys=["image", "mask"],
            pixdim=pixdim,
            mode=["bilinear", "nearest"],
            dtype=torch.float32,
            align_corners=False,
        )
        there.append(transform(case(shape, zooms)))
        back.append(transform.inverse(dict(there[-1])))
    for monai, ours in (there, back):
        for key in ("image", "mask"):
            torch.testing.assert_close(ours[key].affine, monai[key].affine)
            assert ours[key].dtype == monai[key].dtype == torch.float32
            assert len(ours[key].applied_operations) == len(monai[key].applied_operations)
        torch.testing.assert_close(ours["image"].as_tensor(), monai["image"].as_tensor(), atol=3e-5, rtol=0)
        assert torch.equal(ours["mask"].as_tensor(), monai["mask"].as_tensor())


@pytest.mark.parametrize(
    "options",
    [{}, {"padding_mode": "zeros"}, {"dtype": torch.float64}, {"align_corners": True}, {"mode": 2}, {"lazy": True}],
)
def test_what_is_not_for_axes_is_left_to_monai(options, monkeypatch):
    monkeypatch.setattr("common.preprocessing.spacing.resample_by_axes", None)
    sheared = case((9, 8, 7), (1.0, 1.0, 1.0), shear=0.0 if options else 0.2)
    options = {"pixdim": (1.5, 1.5, 1.5), "dtype": torch.float32} | options
    monai = Spacingd(keys="image", **options)(dict(sheared))["image"]
    assert torch.equal(SpacingByAxesd(keys="image", **options)(dict(sheared))["image"], monai)


def test_beyond_the_border_an_image_goes_on_as_it_ends():
    places = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    places[0, 3] = -2.0
    ramp = torch.arange(3.0)[None, :, None, None].expand(1, 3, 2, 2)
    moved = resample_by_axes(ramp, places, [6, 2, 2])
    torch.testing.assert_close(moved[0, :, 0, 0], torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0]))
