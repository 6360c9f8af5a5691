"""What calibration from labels keeps of a case, and what its label says of heat and masks there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from ..data import labels_of, patient_of
from ..images import as_array, spacing_of
from ..masks import MapsToMaskd, smooth_in_plane, volume_ml


@dataclass(frozen=True)
class LabeledCase:
    """A case and its label, with what a network says of it. No mask of a finding is among it.

    Attributes:
        name, patient: of the case.
        cls: its label as the datalist has it.
        half: whether it is half of an organ (`common.datasets.halves`).
        positive: whether anything is in it.
        labels: `[Z]`, of each slice whether anything is in it; None where the case has one label.
        image: `[2, X, Y, Z]`, its first channel and the organ.
        maps: `[K, X, Y, Z]` of the classes.
        of_slices: `[K, Z]`, what the network says of the classes of slices.
        heat: `[X, Y, Z]`.
        classes: `[K, Z]`, probabilities of the classes in each slice.
        fixed: options of `MapsToMaskd` that no calibration chooses.
    """

    name: str
    patient: str
    cls: Any
    half: bool
    positive: bool
    labels: np.ndarray | None
    image: MetaTensor
    maps: Tensor
    of_slices: Tensor
    heat: np.ndarray
    classes: np.ndarray
    fixed: Mapping[str, Any]

    @classmethod
    def of(
        cls, case: Mapping[str, Any], image: MetaTensor, pred: Tensor, fixed: Mapping[str, Any] | None = None
    ) -> LabeledCase:
        """Of an entry of the datalist, its image `[C, X, Y, Z]` (organ last) and the maps `[2K, X, Y, Z]` of it."""
        positive, labels = labels_of(case, pred.shape[-1])
        fixed = dict(fixed or {})
        seen = MapsToMaskd("pred", gate=None, **fixed)({"image": image, "pred": pred})
        count = len(pred) // 2
        return cls(
            name=case["case"],
            patient=patient_of(case),
            cls=case.get("cls"),
            half="half" in case,
            positive=positive,
            labels=labels,
            image=image[[0, -1]].half(),
            maps=pred[:count].half(),
            of_slices=pred[count:, 0, 0],
            heat=as_array(seen["heatmap"])[0].astype(np.float16),
            classes=as_array(seen["slice_probability"]),
            fixed=fixed,
        )

    @cached_property
    def organ(self) -> np.ndarray:
        """`[X, Y, Z]`, where the organ is."""
        return as_array(self.image)[-1] > 0.5

    @cached_property
    def seen(self) -> np.ndarray:
        """`[Z]`, which slices have organ; the others say nothing."""
        return np.asarray(self.organ.any(axis=(0, 1)))

    @cached_property
    def empty(self) -> np.ndarray:
        """`[Z]`, which slices have organ and, by their label or the case's, nothing in it."""
        return self.seen & (~self.labels if self.labels is not None else not self.positive)

    @cached_property
    def full(self) -> np.ndarray:
        """`[Z]`, which slices have organ and, by their label or the case's, something in it."""
        return self.seen & (self.labels if self.labels is not None else self.positive)

    @cached_property
    def probability(self) -> np.ndarray:
        """`[Z]`, of holding anything."""
        return 1 - self.classes[0]

    def brightness_of_nothing(self, smooth_mm: float) -> np.ndarray:
        """`[N]`, brightness of the organ in empty slices, smoothed as a refinement does before it compares."""
        bright = smooth_in_plane(as_array(self.image)[0], smooth_mm=smooth_mm, spacing=spacing_of(self.image))
        return bright[..., self.empty][self.organ[..., self.empty]]

    def heat_of_nothing(self, gate: float) -> np.ndarray:
        """`[N]`, heat inside the organ of empty slices; those that the gate mistakes are hot, and left out."""
        quiet = self.empty & (self.probability <= gate if self.labels is not None else True)
        return self.heat[..., quiet][self.organ[..., quiet]]

    def peaks(self) -> np.ndarray:
        """`[N]`, highest heat inside the organ of each full slice; with one label, of the case."""
        if not self.full.any():
            return np.empty(0)
        peaks = self.heat[..., self.full].max(axis=(0, 1))  # outside the organ heat has its minimum
        return peaks if self.labels is not None else peaks.max(keepdims=True)

    def mask(self, options: Mapping[str, Any]) -> np.ndarray:
        """`[X, Y, Z]`, by options of `MapsToMaskd` beside the fixed ones."""
        maps = self.maps.float()
        pred = torch.cat([maps, self.of_slices[:, None, None].expand_as(maps)])
        data: dict[Hashable, Any] = {"image": self.image.float(), "pred": pred}
        return np.asarray(MapsToMaskd("pred", **{**self.fixed, **options})(data)["pred"])[0] > 0

    def ml(self, mask: np.ndarray) -> float:
        """Milliliters of a mask of it."""
        return volume_ml(mask, spacing_of(self.image))
