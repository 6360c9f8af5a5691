from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from common.images import as_array, axial, file_of, like_image, spacing_of, tensor_bytes, window_pads
from tests.pipeline import affine_of, world


@pytest.mark.parametrize("size", [[8, 6], [4, 4], [20, 31], [7, 9]])
def test_window_has_its_size_and_the_organ_in_its_middle(size):
    organ = torch.zeros(16, 24, dtype=torch.bool)
    organ[11:14, 2:5] = True  # 3 x 3, off center: its center is pixel (12, 3)
    window = F.pad(organ, window_pads(organ, size))
    assert list(window.shape) == size
    center = torch.nonzero(window).float().mean(0)
    assert (center - (torch.tensor(size) - 1) / 2).abs().max() <= 0.5
    assert window.sum() == 9


def test_a_longer_organ_widens_the_window_and_none_centers_it_on_the_image():
    organ = torch.zeros(16, 24, dtype=torch.bool)
    organ[2:12, 5:6] = True
    assert F.pad(organ, window_pads(organ, [4, 3])).shape == (10, 3)
    assert window_pads(torch.zeros(16, 24, dtype=torch.bool), [10, 20]) == [-2, -2, -3, -3]


def test_padding_back_undoes_the_window():
    organ = torch.zeros(16, 24, dtype=torch.bool)
    organ[11:14, 2:5] = True
    pads = window_pads(organ, [12, 12])
    image = torch.rand(16, 24)
    back = F.pad(F.pad(image, pads), [-p for p in pads])
    assert back.shape == image.shape
    torch.testing.assert_close(back[6:, :9], image[6:, :9])


class TestAxial:
    @pytest.mark.parametrize(("axcodes", "degrees"), [("LPS", 0), ("RAS", 0), ("SAL", 0), ("RIP", 20), ("PLI", 30)])
    def test_every_voxel_keeps_its_value_and_its_place(self, axcodes, degrees):
        shape = (4, 5, 6)
        affine = affine_of(axcodes, (1.0, 2.0, 3.0), shape, degrees)
        values = np.arange(120.0).reshape(1, *shape)
        turned = axial(MetaTensor(torch.as_tensor(values), affine=torch.as_tensor(affine)))
        assert nib.aff2axcodes(turned.affine.numpy()) == ("L", "P", "S")
        before = dict(zip(values.ravel(), world(affine, shape).reshape(-1, 3), strict=True))
        places = world(turned.affine.numpy(), turned.shape[1:]).reshape(-1, 3)
        after = dict(zip(turned.numpy().ravel(), places, strict=True))
        assert before.keys() == after.keys()
        for value, place in before.items():
            np.testing.assert_allclose(after[value], place, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_tensor_bytes_are_the_elements_in_their_order_whatever_the_strides(dtype):
    plain = torch.arange(24).reshape(2, 3, 2, 2).to(dtype)
    assert bytes(tensor_bytes(plain)) == bytes(plain.untyped_storage())
    for strided in (plain.to(memory_format=torch.channels_last), plain.transpose(0, 1).contiguous().transpose(0, 1)):
        assert bytes(tensor_bytes(strided)) == bytes(tensor_bytes(plain))
    assert bytes(tensor_bytes(torch.tensor(5))) == (5).to_bytes(8, "little")


def test_what_a_tensor_knows_of_its_image_is_told_and_kept():
    image = MetaTensor(torch.rand(1, 2, 3, 4), affine=torch.diag(torch.tensor([2.0, 3.0, -4.0, 1.0])))
    image.meta["filename_or_obj"] = "scan.nii.gz"
    assert spacing_of(image) == (2.0, 3.0, 4.0)
    assert file_of(image) == "scan.nii.gz"
    array = np.ones((1, 2, 3, 4), np.float32)
    made = like_image(image, array)
    assert spacing_of(made) == (2.0, 3.0, 4.0)
    np.testing.assert_array_equal(as_array(made), array)


def test_what_a_header_rounds_of_the_spacing_moves_no_edge_of_a_mask():
    turned = affine_of("LPS", (3, 3, 0.7), (4, 5, 6), 20).astype(np.float32).astype(float)
    meter = 1000 * np.diag([0.003, 0.003, 0.0007, 1]).astype(np.float32).astype(float)
    for affine in (turned, meter):
        assert nib.affines.voxel_sizes(affine)[0] != 3.0
        assert spacing_of(MetaTensor(torch.rand(1, 2, 3, 4), affine=torch.as_tensor(affine))) == (3.0, 3.0, 0.7)


def test_plain_tensors_have_a_default_spacing_and_no_file():
    plain = torch.zeros(1, 2, 3, 4)
    assert spacing_of(plain) == (1.0, 1.0, 1.0)
    assert spacing_of(plain, default=0.5) == (0.5, 0.5, 0.5)
    assert file_of(plain) == "the image"
    assert type(like_image(plain, np.ones(3))) is torch.Tensor
