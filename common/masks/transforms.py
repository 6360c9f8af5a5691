"""From maps to masks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..images import as_array, like_image, spacing_of
from ..metrics import heat_outside
from .morphology import clean, each_slice, largest_component, least_voxels, volume_ml
from .refine import refine_by_intensity, shown_classes, smooth_along_slices
from .thresholds import NO_EVIDENCE, multi_otsu, otsu

BINARIZE = ("fixed", "multi_otsu", "otsu", "quantile")


class MapsToMaskd(MapTransform):
    """Turn the maps and slice probabilities of `SliceMapInferer` into a heatmap, a mask and the numbers beside them.

    Writes `pred` (label values `[1, H, W, D]`), `heatmap` (the evidence, its minimum outside the organ), `probability`
    `[C]` of the volume (class probabilities of its most suspicious slice), `slice_probability` `[C, D]`, `threshold`
    (above which heat was cut; of multi-Otsu, which has one a slice, the lowest of the slices with a lesion, of all
    where there are none; infinite where nothing stands out), `gate` where one is given, and `heat_outside`, the share
    of positive evidence that lay outside the organ.

    Args:
        keys: the inferer's output `[2C, H, W, D]`.
        image_key: the network's input `[image channels, organ, H, W, D]`, in multiples of the organ's median.
        organ_channel: whether the last channel of the input is the organ mask.
        gate: a slice holds a lesion when its probability of not being class 0 exceeds it; None: when another class
            is the most probable one.
        gate_smooth_mm: Gaussian along the slices before the gate.
        binarize: `fixed`; `multi_otsu` (three classes, the highest threshold, slice by slice); or, of the volume's
            heat inside the organ, `otsu` or `quantile`.
        threshold: of the map, for `fixed`.
        offset: subtracted from the multi-Otsu threshold.
        mask_quantile: of the heat inside the organ, for `quantile`.
        one_class: slices with a lesion share one class, that with the most probability over all of them: for grades of
            a patient, learned from one label a volume. Otherwise each has its own.
        evidence: `predicted` shows the predicted class's map against class 0's, `own` that map alone after ReLU (GP's
            paper: one that is negative everywhere marks nothing), `sum` adds the maps of all classes against class 0's.
        clean: keyword arguments of `common.masks.clean`, applied slice by slice.
        refine: keyword arguments of `common.masks.refine_by_intensity`; None leaves the thresholded map.
        largest: without refinement: keep only the largest 3D component.
        min_component_ml: smaller 3D components are dropped.
        min_volume_ml: smaller masks are emptied.

    Raises:
        ValueError: an unknown word, or a number with which no mask would mean anything.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        image_key: str = "image",
        organ_channel: bool = True,
        gate: float | None = 0.5,
        gate_smooth_mm: float = 0.0,
        binarize: Literal["fixed", "multi_otsu", "otsu", "quantile"] = "fixed",
        threshold: float = 0.0,
        offset: float = 0.0,
        mask_quantile: float = 0.98,
        one_class: bool = False,
        evidence: Literal["predicted", "own", "sum"] = "predicted",
        clean: Mapping[str, Any] | None = None,
        refine: Mapping[str, Any] | None = None,
        largest: bool = False,
        min_component_ml: float = 0.0,
        min_volume_ml: float = 0.0,
    ) -> None:
        super().__init__(keys)
        if binarize not in BINARIZE:
            raise ValueError(f"binarize must be one of {BINARIZE}, got {binarize!r}")
        if evidence not in ("predicted", "own", "sum"):
            raise ValueError(f"evidence must be 'predicted', 'own' or 'sum', got {evidence!r}")
        # A run is checked before it begins; a server of others builds this from a config that nobody has checked.
        shares = {"gate": gate, "mask_quantile": mask_quantile}
        sizes = {"gate_smooth_mm": gate_smooth_mm, "min_component_ml": min_component_ml, "min_volume_ml": min_volume_ml}
        wrong = [f"{k} must lie in [0, 1], got {v}" for k, v in shares.items() if v is not None and not 0 <= v <= 1]
        wrong += [f"{k} must be 0 or more, got {v}" for k, v in {**sizes, **(refine or {})}.items() if not v >= 0]
        if math.isnan(threshold):
            wrong.append("threshold must be a number, got nan")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.image_key = image_key
        self.organ_channel = organ_channel
        self.gate = gate
        self.gate_smooth_mm = gate_smooth_mm
        self.binarize = binarize
        self.threshold = threshold
        self.offset = offset
        self.mask_quantile = mask_quantile
        self.one_class = one_class
        self.evidence = evidence
        self.clean = dict(clean or {})
        self.refine = dict(refine) if refine is not None else None
        self.largest = largest
        self.min_component_ml = min_component_ml
        self.min_volume_ml = min_volume_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            image = data[self.image_key]
            spacing = spacing_of(image)
            output = as_array(data[key])
            classes = output.shape[0] // 2
            maps, probability = output[:classes], output[classes:, 0, 0, :]
            volume = as_array(image)
            organ = volume[-1] > 0.5 if self.organ_channel else np.ones(volume.shape[1:], dtype=bool)
            probability = smooth_along_slices(probability, sigma_mm=self.gate_smooth_mm, slice_mm=spacing[2])
            classes_of_slices, leading = shown_classes(probability, self.gate, one_class=self.one_class)
            everywhere = self._evidence(maps, classes_of_slices, leading)
            # Outside there is as little evidence as anywhere inside, so that any threshold leaves it out.
            heat = np.where(organ, everywhere, everywhere[organ].min(initial=0.0))
            thresholds = self._thresholds(heat, organ)
            kept = classes_of_slices > 0
            # In the map's own precision, as `heat > 0.1` compares.
            seed = (heat > thresholds.astype(heat.dtype)) & organ & kept
            mask = self._mask(seed, volume[0], organ, spacing)
            if volume_ml(mask, spacing) < self.min_volume_ml:
                mask[:] = False
            data[key] = like_image(image, (mask * classes_of_slices)[None].astype(np.uint8))
            data["heatmap"] = like_image(image, heat[None].astype(np.float32))
            data["probability"] = torch.as_tensor(probability[:, int((1 - probability[0]).argmax())])
            data["slice_probability"] = torch.as_tensor(probability)
            data["heat_outside"] = torch.tensor(heat_outside(everywhere, organ))
            data["threshold"] = torch.tensor(float(thresholds[kept if kept.any() else ...].min()))
            if self.gate is not None:
                data["gate"] = torch.tensor(float(self.gate))
        return data

    def _evidence(self, maps: np.ndarray, classes_of_slices: np.ndarray, leading: int) -> np.ndarray:
        margins = np.maximum(maps[1:], 0) if self.evidence == "own" else maps[1:] - maps[:1]
        if self.evidence == "sum":
            return margins.sum(axis=0)
        # A slice without finding still shows evidence: that of the volume's leading class.
        shown = np.where(classes_of_slices > 0, classes_of_slices, leading) - 1
        return np.take_along_axis(margins, shown[None, None, None, :], axis=0)[0]

    def _thresholds(self, heat: np.ndarray, organ: np.ndarray) -> np.ndarray:
        """`[D]`, of each slice: multi-Otsu's own, else that of the volume."""
        if self.binarize == "multi_otsu":
            planes = zip(np.moveaxis(heat, -1, 0), np.moveaxis(organ, -1, 0), strict=True)
            return np.array([multi_otsu(plane, offset=self.offset, mask=inside) for plane, inside in planes])
        return np.full(heat.shape[-1], self._threshold(heat, organ))

    def _threshold(self, heat: np.ndarray, organ: np.ndarray) -> float:
        """The threshold of the whole volume."""
        if self.binarize == "fixed" or not organ.any():
            return self.threshold
        counted = organ & (heat > NO_EVIDENCE)
        if self.binarize == "otsu":
            return otsu(heat, mask=counted)
        return float(np.quantile(heat[counted if counted.any() else organ], self.mask_quantile))

    def _mask(
        self, seed: np.ndarray, image: np.ndarray, organ: np.ndarray, spacing: tuple[float, float, float]
    ) -> np.ndarray:
        if self.clean:
            seed = each_slice(lambda s: clean(s, **self.clean), seed)
        if self.refine is not None:
            mask = refine_by_intensity(seed, image, organ, spacing=spacing, **self.refine)
        else:
            mask = largest_component(seed) if self.largest else seed
        if self.min_component_ml > 0 and mask.any():
            mask = clean(mask, min_size=least_voxels(self.min_component_ml, spacing))
        return mask
