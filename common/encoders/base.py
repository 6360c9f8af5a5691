"""What all encoders share: from an image to a grid of features, frozen, with a fingerprint of what decides on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..images import tensor_bytes

Embedding = Literal["tensor", "vector"]
Precision = Literal["float32", "bfloat16"]


class Encoder(nn.Module):
    """A frozen network with all that stands between an image and its grid of features.

    Cell (i, j) of the grid stands for the pixels `[i·stride, (i+1)·stride) × [j·stride, (j+1)·stride)` of the image
    (after resizing, where `size` or `zoom` is given). An image whose sides are no multiples of `divisor` is padded
    with 0 at the bottom and the right, and the grid cropped to the cells that hold a pixel of the image.

    It stays in evaluation mode and has no gradients. TorchScript compiles it if it compiles the body, and then
    computes in float32 whatever the precision.

    Several modalities are encoded one by one, each as a gray image, and their features concatenated.

    Args:
        body: network, `[B, 3, H, W]` to `[B, channels, H / stride, W / stride]` for H and W multiples of `divisor`.
        name: goes into the fingerprint; should tell what the weights do not.
        channels: of the body's output.
        stride: pixels of a cell.
        divisor: of the sides that the body takes, a multiple of `stride`; None: `stride`.
        mean, std: of the three colors, which the image is normalized by.
        size: the image is resized to `size × size` first; None keeps its own size.
        zoom: without `size`, the image is enlarged by this factor first: finer cells where pixels are coarse.
        input_scale: the image is multiplied by it first, and what then exceeds 1 is clipped: 0.25 fits images in
            multiples of an organ's median.
        embedding: `tensor`, or `vector` for the mean over all cells as a grid of 1 × 1.
        precision: of the body; what comes out is float32.
        modalities: channels of an image that are images of their own; 1: the image is gray, or has three colors.

    Attributes:
        channels: of the features, of all modalities together.

    Raises:
        ValueError: an unknown embedding or precision, size and zoom at once, or a divisor that the stride does not
            divide.
    """

    __jit_unused_properties__ = ("fingerprint", "options")

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        channels: int,
        stride: int,
        divisor: int | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        size: int | None = None,
        zoom: float = 1.0,
        input_scale: float = 1.0,
        embedding: Embedding = "tensor",
        precision: Precision = "float32",
        modalities: int = 1,
    ) -> None:
        super().__init__()
        if size is not None and zoom != 1:
            raise ValueError(f"give size or zoom, not both; got size={size} and zoom={zoom}")
        if embedding not in ("tensor", "vector"):
            raise ValueError(f"embedding must be 'tensor' or 'vector', got {embedding!r}")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
        self.name = name
        self.modalities = modalities
        self.channels = channels * modalities
        self.stride = stride
        self.divisor = divisor or stride
        if self.divisor % stride:
            raise ValueError(f"the divisor {divisor} must be a multiple of the stride {stride}")
        self.size: int = size or 0  # TorchScript compares a number more readily than None
        self.zoom = float(zoom)
        self.input_scale = float(input_scale)
        self.vector: bool = embedding == "vector"
        self.halved: bool = precision == "bfloat16"
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)
        self.body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)
        self.eval()
        self._print: tuple[Any, str] | None = None

    def train(self, mode: bool = True) -> Encoder:
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Features `[B, channels, h, w]`, float32, of `[B, 1 or 3, H, W]` in [0, 1]; one channel is repeated.

        With several modalities, of `[B, modalities, H, W]`.

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        with torch.no_grad():
            return self.differentiable(image)

    def differentiable(self, image: Tensor) -> Tensor:
        """As `forward`, but a gradient reaches the image: for explanations."""
        if self.modalities > 1:
            if image.dim() != 4 or image.shape[1] != self.modalities:
                raise ValueError(
                    f"an encoder of {self.modalities} modalities takes [B, {self.modalities}, H, W], "
                    f"got {list(image.shape)}"
                )
            image = image.flatten(0, 1).unsqueeze(1)
        elif image.dim() != 4 or image.shape[1] not in (1, 3):
            raise ValueError(
                f"an encoder takes [B, 1 or 3, H, W], got {list(image.shape)}; of several modalities it must know"
            )
        image = image.float() * self.input_scale
        if self.input_scale != 1.0:
            image = image.clamp(max=1.0)
        if bool((image < -0.01).any()) or bool((image > 1.01).any()):
            raise ValueError(
                f"an encoder takes values in [0, 1], got {float(image.min())} to {float(image.max())}: "
                "scale the image before"
            )
        shape = self.resized(image.shape[2], image.shape[3])
        if shape[0] != image.shape[2] or shape[1] != image.shape[3]:
            image = F.interpolate(image, size=shape, mode="bilinear", align_corners=False, antialias=True)
        height, width = image.shape[2], image.shape[3]
        image = F.pad(image, [0, -width % self.divisor, 0, -height % self.divisor])
        image = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self._run(image).float()
        features = features[:, :, : -(-height // self.stride), : -(-width // self.stride)]
        if self.vector:
            features = features.mean(dim=(2, 3), keepdim=True)
        return features.reshape(-1, self.channels, features.shape[2], features.shape[3]).contiguous()

    def resized(self, height: int, width: int) -> list[int]:
        """Rows and columns of an image after resizing."""
        if self.size > 0:
            return [self.size, self.size]
        return [max(1, int(height * self.zoom + 0.5)), max(1, int(width * self.zoom + 0.5))]

    def _run(self, image: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.body(image)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.halved):
            return self.body(image)

    @torch.jit.unused
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the features of an image of that many pixels."""
        if self.vector:
            return 1, 1
        rows, columns = (-(-side // self.stride) for side in self.resized(height, width))
        return rows, columns

    @torch.jit.unused
    def coverage(self, mask: Tensor) -> Tensor:
        """Share of each cell, `[B, 1, h, w]` in [0, 1], that a mask of the image `[B, 1, H, W]` covers.

        The one cell of a vector is inside (1) as soon as the mask holds anything: a lung seldom fills half an image.
        """
        mask = mask.float()
        if self.vector:
            return (mask > 0.5).float().amax(dim=(2, 3), keepdim=True)
        height, width = self.resized(mask.shape[2], mask.shape[3])
        mask = F.adaptive_avg_pool2d(mask, (height, width))
        return F.avg_pool2d(F.pad(mask, [0, -width % self.stride, 0, -height % self.stride]), self.stride)

    @property
    def options(self) -> dict[str, Any]:
        """What, beside the weights, decides on the output."""
        # Only where there are several: the fingerprints of encoders of one image stay what they have been.
        several = {"modalities": self.modalities} if self.modalities > 1 else {}
        return {
            **several,
            "name": self.name,
            "body": type(self.body).__qualname__,  # not its module, whose name changes when a bundle is exported
            "channels": self.channels,
            "stride": self.stride,
            "divisor": self.divisor,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "size": self.size or None,
            "zoom": self.zoom,
            "input_scale": self.input_scale,
            "embedding": "vector" if self.vector else "tensor",
            "precision": "bfloat16" if self.halved else "float32",
        }

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the options and the weights; computed again only after either has changed."""
        weights = self.body.state_dict()
        # Gigabytes take seconds: tensors that nobody has written to need not be read again.
        seal = (json.dumps(self.options), [(key, t.data_ptr(), t.dtype, t._version) for key, t in weights.items()])
        if self._print is None or self._print[0] != seal:
            digest = hashlib.sha256(seal[0].encode())
            for key, tensor in weights.items():
                digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor_bytes(tensor))
            self._print = (seal, digest.hexdigest())
        return self._print[1]
