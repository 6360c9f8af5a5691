"""Dictionary transforms that all bundles share: organ mask, normalization."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..images import as_array, file_of, spacing_of
from .organ import ORGANS, normalize_by_median, normalize_by_mode, organ_mask
from .thorax import check_gray, doubts_about_lungs

LUNGS = ("lung", "lungmask")


class OrganMaskd(MapTransform):
    """Add an organ mask `[1, H, W, D]` (float 0/1) of the first channel under `organ_key`.

    A mask that is there already, loaded from a file, is kept: above 0.5 is organ. One that holds the corners of most
    slices, and lungs that are none of a chest (`common.preprocessing.thorax`), are doubted under `warnings`.

    Args:
        keys: one image key, `[C, H, W, D]`, slices along the last axis.
        organ: `brain`, `head`, `lung`, `lungmask`, `center` (a box in the middle) or `none` (everything; the papers'
            plain recipe); see `common.preprocessing.organ`.
        options: keyword arguments of that organ's function.

    Raises:
        ValueError: no organ is found, the mask from a file is empty, or a chest's gray is inverted; naming the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        organ: Literal["brain", "center", "head", "lung", "lungmask", "none"],
        organ_key: str = "organ",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(keys)
        if organ not in ORGANS:
            raise ValueError(f"organ must be one of {sorted(ORGANS)}, got {organ!r}")
        self.organ = organ
        self.organ_key = organ_key
        self.options = dict(options or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            if self.organ in LUNGS:
                _naming(image, check_gray, as_array(image[0]), spacing_of(image))
            given = self.organ_key in data
            if given:
                data[self.organ_key] = _checked_mask(data[self.organ_key], image)
                doubts = [] if self.organ == "none" else doubts_about_mask(as_array(data[self.organ_key][0]) > 0.5)
            else:
                doubts = []
                options: dict[str, Any] = {"spacing": spacing_of(image), "organ": self.organ, **self.options}
                options |= {"doubts": doubts} if self.organ == "lung" else {}
                mask = _naming(image, organ_mask, as_array(image[0]), **options)
                data[self.organ_key] = image[:1] * 0 + torch.as_tensor(mask[None], dtype=image.dtype)
            if self.organ in LUNGS and not (given and doubts):
                lungs = as_array(data[self.organ_key][0]) > 0.5
                doubts += doubts_about_lungs(as_array(image[0]), lungs, spacing_of(image), found=not given)
            if doubts:
                said = [str(data["warnings"])] if data.get("warnings") else []
                data["warnings"] = "; ".join([*said, *doubts])
        return data


def doubts_about_mask(organ: np.ndarray) -> list[str]:
    """Why a mask bool `[H, W, D]` from a file cannot be that of an organ; empty if it can.

    An organ is round, and leaves the corners of a slice free, even of one that is cut to its size.
    """
    corners = organ[[0, 0, -1, -1], [0, -1, 0, -1]].all(axis=0)
    if corners.sum() <= organ.any(axis=(0, 1)).sum() / 2:
        return []
    return ["the organ's mask holds the corners of most slices: is it that of everything, or turned inside out?"]


def _naming(image: Any, look: Callable, *args: Any, **options: Any) -> Any:
    """What a look at an image finds, or the error that it raises, with the image's file: training adds none to it."""
    try:
        return look(*args, **options)
    except ValueError as error:
        raise ValueError(f"{file_of(image)}: {error}") from None


def _checked_mask(organ: Any, image: Any) -> Any:
    organ = (organ[:1] > 0.5).to(image.dtype)
    if not bool(organ.any()):
        raise ValueError(f"{file_of(organ)}: the organ's mask is empty")
    return organ


BY_ORGAN = {"organ_median": normalize_by_median, "organ_mode": normalize_by_mode}


class NormalizeByOrgand(MapTransform):
    """Bring intensities of all channels to a common scale, in place of scanner units.

    Args:
        keys: images `[C, H, W, D]`.
        mode: `organ_median` gives multiples of the median inside the organ, clipped to `[0, upper]`, 0 outside, so
            that skull-stripped and whole heads look alike (a percentile of the image would be set by scalp and fat);
            `organ_mode` the same by the most frequent intensity, where a large part of the organ may be ill;
            `slice_max` divides every slice by its maximum (GP-UNet's authors' code); `none` changes nothing. A case
            with a `half` is 0 outside its organ in any mode: else both halves of a scan would be one image.
        organ_key: the organ mask.
        upper: clip value of `organ_median` and `organ_mode`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mode: Literal["organ_median", "organ_mode", "slice_max", "none"] = "organ_median",
        organ_key: str = "organ",
        upper: float = 4.0,
    ) -> None:
        super().__init__(keys)
        if mode not in (*BY_ORGAN, "slice_max", "none"):
            raise ValueError(f"mode must be one of {[*BY_ORGAN, 'slice_max', 'none']}, got {mode!r}")
        self.mode: str = mode
        self.organ_key = organ_key
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[key] * (data[self.organ_key] > 0.5) if "half" in data else data[key]
            if self.mode == "slice_max":
                peak = image.amax(dim=(1, 2), keepdim=True)
                image = image / torch.where(peak > 0, peak, torch.ones_like(peak))
            elif self.mode in BY_ORGAN:
                organ = as_array(data[self.organ_key])[0] > 0.5
                image = image.clone()
                for channel in image:
                    values = BY_ORGAN[self.mode](as_array(channel), organ, upper=self.upper)
                    channel.copy_(torch.as_tensor(values * organ))
            data[key] = image
        return data
