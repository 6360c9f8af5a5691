from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.encoders import Encoder, encoder
from tests.encoders.conftest import image
from tests.running import run_code


class Blocks(nn.Module):
    """The mean of each channel over each cell: what comes out is known."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, self.stride) * self.gain


def blocks(stride: int = 4, **options) -> Encoder:
    return Encoder(Blocks(stride), name="blocks", channels=3, stride=stride, **options)


class TestEncoder:
    def test_a_cell_is_the_pixels_that_its_place_names(self):
        pixels = image(2, 3, 24, 32)
        expected = pixels.numpy().reshape(2, 3, 6, 4, 8, 4).mean((3, 5))
        np.testing.assert_allclose(blocks()(pixels), expected, atol=1e-6)

    @pytest.mark.parametrize("divisor", [4, 16])
    def test_sides_that_do_not_divide_are_padded_with_zeros_at_the_end_and_the_grid_cropped(self, divisor):
        pixels = image(1, 3, 21, 18)
        padded = np.zeros((1, 3, 24, 20))
        padded[..., :21, :18] = pixels.numpy()
        actual = blocks(divisor=divisor)(pixels)
        np.testing.assert_allclose(actual, padded.reshape(1, 3, 6, 4, 5, 4).mean((3, 5)), atol=1e-6)
        assert blocks(divisor=divisor).grid(21, 18) == tuple(actual.shape[2:])

    def test_one_channel_is_repeated_and_each_color_normalized_by_its_own(self):
        mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
        pixels = image(2, 1, 8, 8)
        actual = blocks(mean=mean, std=std)(pixels).numpy()
        cells = pixels.numpy().reshape(2, 1, 2, 4, 2, 4).mean((3, 5))
        expected = (cells - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(actual, expected, atol=1e-5)

    def test_size_resizes_first(self):
        pixels = torch.linspace(0, 1, 64)[None, None, None].expand(1, 1, 32, 64)  # a ramp from left to right
        features = blocks(size=16)(pixels)
        assert features.shape == (1, 3, 4, 4)
        np.testing.assert_allclose(features[0, 0, 0], [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=0.01)
        assert blocks(size=18).grid(32, 64) == (5, 5) == blocks(size=18)(pixels).shape[2:]

    @pytest.mark.parametrize(("zoom", "shape"), [(2.0, (40, 26)), (1.5, (30, 20)), (0.5, (10, 7))])
    def test_zoom_enlarges_both_sides_and_the_grid_with_them(self, zoom, shape):
        net = blocks(zoom=zoom)
        rows, columns = -(-shape[0] // 4), -(-shape[1] // 4)
        features = net(torch.full((1, 1, 20, 13), 0.5))
        assert net.grid(20, 13) == (rows, columns) == features.shape[2:]
        whole = np.minimum(np.arange(1, columns + 1) * 4, shape[1]) - np.arange(columns) * 4  # columns of real pixels
        np.testing.assert_allclose(features[0, 0, 0], 0.5 * whole / 4, atol=1e-6)
        np.testing.assert_allclose(net.coverage(torch.ones(1, 1, 20, 13))[0, 0, 0], whole / 4, atol=1e-6)

    def test_input_scale_multiplies_and_clips_what_is_brighter(self):
        pixels = torch.tensor([0.0, 1.0, 2.0, 6.0])[None, None, None].repeat_interleave(4, 3).expand(1, 1, 4, 16)
        assert blocks(input_scale=0.25)(pixels)[0, 0, 0].tolist() == [0.0, 0.25, 0.5, 1.0]

    def test_vector_is_the_mean_of_the_cells_that_hold_pixels(self):
        pixels = image(2, 1, 24, 18)
        vector = blocks(divisor=16, embedding="vector")
        torch.testing.assert_close(vector(pixels), blocks(divisor=16)(pixels).mean((2, 3), keepdim=True))
        assert vector.grid(24, 18) == (1, 1)

    def test_bfloat16_is_near_float32_and_comes_out_as_float32(self, lite):
        low = encoder("efficientnet_lite0", weights=None, precision="bfloat16")
        low.load_state_dict(lite.state_dict())
        pixels = image(1, 1, 64, 64)
        expected, actual = lite(pixels), low(pixels)
        assert actual.dtype == torch.float32
        assert 0 < (actual - expected).norm() / expected.norm() < 0.05

    def test_it_stays_frozen(self):
        frozen = nn.Sequential(encoder("efficientnet_lite0", weights=None)).train()
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
        assert not any(module.training for module in frozen[0].modules())
        assert not frozen(image(1, 1, 16, 16).requires_grad_()).requires_grad

    def test_several_modalities_are_encoded_one_by_one(self, lite):
        several = encoder("efficientnet_lite0", weights=None, modalities=2)
        several.body.load_state_dict(lite.body.state_dict())
        pixels = image(3, 2, 32, 48)
        assert several.channels == 2 * lite.channels
        expected = torch.cat([lite(pixels[:, :1]), lite(pixels[:, 1:])], dim=1)
        torch.testing.assert_close(several(pixels), expected, atol=1e-5, rtol=1e-4)
        assert several.fingerprint != lite.fingerprint
        with pytest.raises(ValueError, match=r"an encoder of 2 modalities takes \[B, 2, H, W\], got \[1, 3"):
            several(image(1, 3, 8, 8))

    @pytest.mark.parametrize("shape", [(1, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"takes \[B, 1 or 3, H, W\], got \[1"):
            blocks()(torch.zeros(shape))

    @pytest.mark.parametrize("value", [-1000.0, 1.5])
    def test_values_that_are_not_between_0_and_1_are_refused(self, value):
        pixels = torch.full((1, 1, 8, 8), 0.5)
        pixels[0, 0, 3, 3] = value
        with pytest.raises(ValueError, match=r"values in \[0, 1\], got .*scale the image before"):
            blocks()(pixels)

    def test_unknown_options_are_refused(self):
        with pytest.raises(ValueError, match="embedding must be 'tensor' or 'vector', got 'token'"):
            blocks(embedding="token")
        with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
            blocks(precision="float16")
        with pytest.raises(ValueError, match=r"give size or zoom, not both; got size=8 and zoom=2\.0"):
            blocks(size=8, zoom=2.0)
        with pytest.raises(ValueError, match="divisor 6 must be a multiple of the stride 4"):
            blocks(divisor=6)


class TestShare:
    @pytest.mark.parametrize("side", [(16, 24), (17, 21)])
    def test_it_is_the_part_of_the_cells_pixels_that_the_mask_covers(self, side):
        mask = (image(2, 1, *side) > 0.6).float()
        share = blocks().coverage(mask)
        assert tuple(share.shape[2:]) == blocks().grid(*side)
        for i in range(share.shape[2]):
            for j in range(share.shape[3]):
                cell = mask[:, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                torch.testing.assert_close(share[:, 0, i, j], cell.sum((1, 2)) / 16)

    def test_resized_images_have_resized_masks(self):
        mask = torch.zeros(1, 1, 32, 64)
        mask[..., 32:] = 1
        np.testing.assert_array_equal(blocks(size=16).coverage(mask)[0, 0], [[0, 0, 1, 1]] * 4)

    def test_a_vector_stands_for_the_whole_image(self):
        mask = torch.zeros(1, 1, 10, 10)
        mask[..., :3, :] = 1
        assert blocks(embedding="vector").coverage(mask).tolist() == [[[[1.0]]]]
        assert blocks(embedding="vector").coverage(torch.zeros_like(mask)).tolist() == [[[[0.0]]]]


class TestFingerprint:
    def test_it_is_the_same_in_another_process(self):
        code = "import torch; from common.encoders import encoder; torch.manual_seed(3); "
        code += "print(encoder('efficientnet_lite0', weights=None).fingerprint)"
        found = run_code(code).strip()
        torch.manual_seed(3)
        assert found == encoder("efficientnet_lite0", weights=None).fingerprint

    @pytest.mark.parametrize(
        "options",
        [
            {"stride": 8},
            {"divisor": 8},
            {"size": 16},
            {"zoom": 2.0},
            {"input_scale": 0.5},
            {"embedding": "vector"},
            {"precision": "bfloat16"},
            {"mean": [0.0, 0.0, 0.1]},
            {"std": [1.0, 1.0, 1.1]},
        ],
    )
    def test_each_option_changes_it(self, options):
        assert blocks().fingerprint == blocks().fingerprint
        assert blocks(**options).fingerprint != blocks().fingerprint

    def test_levels_change_it_though_the_weights_are_the_same(self, lite):
        other = encoder("efficientnet_lite0", weights=None, levels=(4, 8))
        other.body.load_state_dict(lite.body.state_dict())
        assert other.fingerprint != lite.fingerprint

    def test_one_bit_of_one_weight_changes_it_also_later(self):
        net = blocks()
        before = net.fingerprint
        with torch.no_grad():
            net.body.gain.copy_(torch.nextafter(net.body.gain, torch.tensor(2.0)))
        changed = net.fingerprint
        assert changed != before
        net.load_state_dict(blocks().state_dict())
        assert net.fingerprint == before
        net.body.gain = nn.Parameter(torch.full((1,), 3.0))
        assert net.fingerprint not in (before, changed)
