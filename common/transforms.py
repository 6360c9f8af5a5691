"""Dictionary transforms that all bundles share: checks, organ mask, normalisation, and the way from maps to masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from .binarize import clean, largest_component, multi_otsu
from .metrics import heat_outside
from .organ import ORGANS, normalize_by_median, organ_mask
from .refine import each_slice, open_slices, refine_by_intensity, smooth_along_slices


def _file_of(image: Any) -> str:
    return str(image.meta.get("filename_or_obj", "the image")) if isinstance(image, MetaTensor) else "the image"


def _spacing(image: Any, default: float = 1.0) -> tuple[float, float, float]:
    if isinstance(image, MetaTensor):
        x, y, z = (float(s) for s in image.pixdim)
        return x, y, z
    return default, default, default


def as_array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


class CheckImaged(MapTransform):
    """Refuse an image that a network would turn into nonsense, naming the file and what was expected.

    Args:
        keys: of images `[C, H, W, D]`.
        channels: expected number of channels.

    Raises:
        ValueError: not 3D, another number of channels, NaN or infinite values, nothing but one value.
    """

    def __init__(self, keys: KeysCollection, *, channels: int) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            image = data[key]
            name = _file_of(image)
            if image.ndim != 4 or (image.ndim == 4 and min(image.shape[1:3]) < 2):
                raise ValueError(f"{name}: expected a 3D image, got shape {list(image.shape[1:])}")
            if image.shape[0] != self.channels:
                raise ValueError(
                    f"{name}: expected {self.channels} channel(s), got {image.shape[0]}; "
                    "give one image_pattern per modality, in the order of metadata.json"
                )
            if not bool(torch.isfinite(torch.as_tensor(image)).all()):
                raise ValueError(f"{name}: holds NaN or infinite values; replace them before")
            if float(image.max()) == float(image.min()):
                raise ValueError(f"{name}: every voxel is {float(image.min()):g}, there is nothing to see")
        return dict(data)


class OrganMaskd(MapTransform):
    """Add an organ mask `[1, H, W, D]` (float 0/1) of the first channel under `organ_key`.

    Args:
        keys: one image key, `[C, H, W, D]`, slices along the last axis.
        organ: `brain`, `head`, `lung` or `none` (everything; the papers' plain recipe). See `common.organ`.
        options: keyword arguments of that organ's function.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        organ: Literal["brain", "head", "lung", "none"],
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
            mask = organ_mask(as_array(image[0]), spacing=_spacing(image), organ=self.organ, **self.options)
            data[self.organ_key] = image[:1] * 0 + torch.as_tensor(mask[None], dtype=image.dtype)
        return data


class Normalized(MapTransform):
    """Bring intensities of all channels to a common scale, in place of scanner units.

    Args:
        keys: images `[C, H, W, D]`.
        mode: `organ_median` gives multiples of the median inside the organ, clipped to `[0, upper]`, 0 outside, so
            that skull-stripped and whole heads look alike (a percentile of the image would be set by scalp and fat);
            `slice_max` divides every slice by its maximum (GP-UNet's authors' code).
        organ_key: the organ mask.
        upper: clip value of `organ_median`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mode: Literal["organ_median", "slice_max"] = "organ_median",
        organ_key: str = "organ",
        upper: float = 4.0,
    ) -> None:
        super().__init__(keys)
        if mode not in ("organ_median", "slice_max"):
            raise ValueError(f"mode must be 'organ_median' or 'slice_max', got {mode!r}")
        self.mode: str = mode
        self.organ_key = organ_key
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            if self.mode == "slice_max":
                peak = image.amax(dim=(1, 2), keepdim=True)
                data[key] = image / torch.where(peak > 0, peak, torch.ones_like(peak))
            else:
                organ = as_array(data[self.organ_key])[0] > 0.5
                data[key] = image.clone()
                for channel in data[key]:
                    values = normalize_by_median(as_array(channel), organ, upper=self.upper)
                    channel.copy_(torch.as_tensor(values * organ))
        return data


class MapsToMaskd(MapTransform):
    """Turn the maps and slice probabilities of `SliceMapInferer` into a heatmap, a mask and the numbers beside them.

    Writes `pred` (label values `[1, H, W, D]`), `heatmap` (raw evidence against class 0, its minimum outside the
    organ), `probability` `[C]` of the volume (class probabilities of its most suspicious slice), `slice_probability`
    `[C, D]`, `threshold`, and `heat_outside`, the share of positive evidence that lay outside the organ.

    Args:
        keys: the inferer's output `[2C, H, W, D]`.
        image_key: the network's input `[image channels, organ, H, W, D]`, in multiples of the organ's median.
        organ_channel: whether the last channel of the input is the organ mask.
        gate: a slice holds a lesion when its probability of not being class 0 exceeds it; None: when another class
            is the most probable one.
        smooth_mm: Gaussian along the slices before the gate.
        binarize: `fixed` or `multi_otsu` (three classes, the highest threshold, slice by slice).
        threshold: of the map, for `fixed`.
        offset: subtracted from the multi-Otsu threshold.
        evidence: `predicted` shows the predicted class's map, `sum` adds the maps of all classes but 0.
        clean_options: of `common.binarize.clean`, applied slice by slice.
        refine: keyword arguments of `common.refine.refine_by_intensity`; None leaves the thresholded map.
        largest: without refinement: keep only the largest 3D component.
        min_volume_ml: smaller masks are emptied.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        image_key: str = "image",
        organ_channel: bool = True,
        gate: float | None = 0.5,
        smooth_mm: float = 0.0,
        binarize: Literal["fixed", "multi_otsu"] = "fixed",
        threshold: float = 0.0,
        offset: float = 0.0,
        evidence: Literal["predicted", "sum"] = "predicted",
        clean_options: Mapping[str, Any] | None = None,
        refine: Mapping[str, Any] | None = None,
        largest: bool = False,
        min_volume_ml: float = 0.0,
    ) -> None:
        super().__init__(keys)
        if binarize not in ("fixed", "multi_otsu"):
            raise ValueError(f"binarize must be 'fixed' or 'multi_otsu', got {binarize!r}")
        if evidence not in ("predicted", "sum"):
            raise ValueError(f"evidence must be 'predicted' or 'sum', got {evidence!r}")
        self.image_key = image_key
        self.organ_channel = organ_channel
        self.gate = gate
        self.smooth_mm = smooth_mm
        self.binarize = binarize
        self.threshold = threshold
        self.offset = offset
        self.evidence = evidence
        self.clean_options = dict(clean_options or {})
        self.refine = dict(refine) if refine is not None else None
        self.largest = largest
        self.min_volume_ml = min_volume_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[self.image_key]
            spacing = _spacing(image)
            output = as_array(data[key])
            classes = output.shape[0] // 2
            maps, probability = output[:classes], output[classes:, 0, 0, :]
            volume = as_array(image)
            organ = volume[-1] > 0.5 if self.organ_channel else np.ones(volume.shape[1:], dtype=bool)
            probability = smooth_along_slices(probability, sigma_mm=self.smooth_mm, slice_mm=spacing[2])
            classes_of_slices = open_slices(probability, self.gate)
            suspicious = probability[:, int((1 - probability[0]).argmax())]
            everywhere = self._evidence(maps, classes_of_slices, suspicious)
            # Outside there is as little evidence as anywhere inside, so that any threshold leaves it out.
            heat = np.where(organ, everywhere, everywhere[organ].min(initial=0.0))
            seed = self._seed(heat, organ) & (classes_of_slices > 0)
            mask = self._mask(seed, volume[0], organ, spacing)
            if mask.sum() * float(np.prod(spacing)) / 1000.0 < self.min_volume_ml:
                mask[:] = False
            data[key] = like_image(image, (mask * classes_of_slices)[None].astype(np.uint8))
            data["heatmap"] = like_image(image, heat[None].astype(np.float32))
            data["probability"] = torch.as_tensor(suspicious)
            data["slice_probability"] = torch.as_tensor(probability)
            data["heat_outside"] = torch.tensor(heat_outside(everywhere, organ))
            data["threshold"] = torch.tensor(self.threshold if self.binarize == "fixed" else self.offset)
        return data

    def _evidence(self, maps: np.ndarray, classes_of_slices: np.ndarray, suspicious: np.ndarray) -> np.ndarray:
        margins = maps[1:] - maps[:1]
        if self.evidence == "sum":
            return margins.sum(axis=0)
        # A slice without finding still shows evidence: that of the volume's leading class.
        leading = 1 + int(suspicious[1:].argmax())
        shown = np.where(classes_of_slices > 0, classes_of_slices, leading) - 1
        return np.take_along_axis(margins, shown[None, None, None, :], axis=0)[0]

    def _seed(self, heat: np.ndarray, organ: np.ndarray) -> np.ndarray:
        if self.binarize == "fixed":
            return (heat > self.threshold) & organ
        seed = np.zeros(heat.shape, dtype=bool)
        for z in np.flatnonzero(organ.any(axis=(0, 1))):
            plane = heat[..., z]
            seed[..., z] = plane > multi_otsu(plane, offset=self.offset, mask=organ[..., z])
        return seed & organ

    def _mask(
        self, seed: np.ndarray, image: np.ndarray, organ: np.ndarray, spacing: tuple[float, float, float]
    ) -> np.ndarray:
        if self.clean_options:
            seed = each_slice(lambda s: clean(s, **self.clean_options), seed)
        if self.refine is not None:
            return refine_by_intensity(seed, image, organ, spacing=spacing, **self.refine)
        return largest_component(seed) if self.largest else seed


def like_image(image: Any, array: np.ndarray) -> Tensor:
    """A tensor on the image's grid, so that inverting the preprocessing can bring it back."""
    tensor = torch.as_tensor(array)
    return MetaTensor(tensor, meta=dict(image.meta)) if isinstance(image, MetaTensor) else tensor


class BaselineMasksd(MapTransform):
    """Add what needs no learned map: `baseline_threshold` and `baseline_gated`, on the model's grid.

    The first is every organ voxel brighter than `intensity` organ medians. The second keeps it only in slices that
    the classifier's probability opens, and of that the largest component.

    Args:
        keys: the network's input `[image channels, organ, H, W, D]`.
        intensity, gated_intensity: thresholds in organ medians.
        gate: as in `MapsToMaskd`, whose `slice_probability` is used.
    """

    def __init__(
        self, keys: KeysCollection = "image", *, intensity: float, gated_intensity: float, gate: float | None = 0.5
    ) -> None:
        super().__init__(keys)
        self.intensity = intensity
        self.gated_intensity = gated_intensity
        self.gate = gate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[key]
            volume = as_array(image)
            organ = volume[-1] > 0.5
            opened = open_slices(as_array(data["slice_probability"]), self.gate) > 0
            gated = largest_component((volume[0] > self.gated_intensity) & organ & opened)
            data["baseline_threshold"] = like_image(
                image, ((volume[0] > self.intensity) & organ)[None].astype(np.uint8)
            )
            data["baseline_gated"] = like_image(image, gated[None].astype(np.uint8))
        return data
