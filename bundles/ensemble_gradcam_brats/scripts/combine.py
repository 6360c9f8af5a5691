"""From the members' class activation maps to one: normalization, the paper's four combinations and two of soft maps.

Source: Ostrowski et al., arXiv:2303.07896, Sec. 2.3. Every combination is expressed as a margin whose positive part is
the combined mask, so that the heatmap and the mask never disagree and one threshold (0) serves all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from common.images import as_array, like_image
from common.masks import gate_slices

HARD = ("or", "and", "min", "max")
SOFT = ("mean", "product")


def normalize_maps(maps: np.ndarray, mode: str = "slice") -> np.ndarray:
    """Divide each map by its maximum, so that thresholds in [0, 1] mean the same for every member.

    Args:
        maps: `[N, H, W, D]`, not negative (they come out of a ReLU).
        mode: `slice` (the paper: every slice has a pixel of 1, also one without tumor), `volume` (a member's
            slices keep their order) or `none` (maps that are in [0, 1] by themselves).

    Returns:
        The same shape, in [0, 1]; a map without any activation stays 0.

    Raises:
        ValueError: another mode, or negative maps.
    """
    if mode not in ("slice", "volume", "none"):
        raise ValueError(f"normalize must be 'slice', 'volume' or 'none', got {mode!r}")
    if maps.min(initial=0.0) < 0:
        raise ValueError("maps must not be negative: use class activation maps after their ReLU")
    if mode == "none":
        return maps
    peak = maps.max(axis=(1, 2) if mode == "slice" else (1, 2, 3), keepdims=True)
    return np.divide(maps, peak, out=np.zeros_like(maps), where=peak > 0)


def bright_part(image: np.ndarray, organ: np.ndarray, fraction: float) -> np.ndarray:
    """Pixels of at least `fraction` of their slice's largest intensity inside the organ.

    The paper's "threshold 0.8", applied to the maps; what its text says, applied to the frame before the network sees
    it, is `EnsembleNet`'s `frame_threshold`.

    Args:
        image: `[H, W, D]`, not negative.
        organ: `[H, W, D]` bool.
        fraction: of the maximum.

    Returns:
        `[H, W, D]` bool.
    """
    inside = np.where(organ, image, 0.0)
    return organ & (inside >= fraction * inside.max(axis=(0, 1), keepdims=True)) & (inside > 0)


def combine(maps: np.ndarray, thresholds: Sequence[float], how: str) -> np.ndarray:
    """The margin of a combination: positive exactly where the combined mask is.

    With the members' masks `maps[i] > thresholds[i]`: `or` is their union (the paper's sum), `and` their intersection
    (its product), `min` (`<`) and `max` (`>`) take, slice by slice, the whole mask with the fewest or the most
    positive pixels (the first member's at a tie). `mean` and `product` combine the maps before the threshold.

    Args:
        maps: `[N, H, W, D]` in [0, 1].
        thresholds: N numbers; a single one for `mean` and `product`.
        how: `or`, `and`, `min`, `max`, `mean` or `product`.

    Returns:
        `[H, W, D]` in [-1, 1].

    Raises:
        ValueError: an unknown combination or a wrong number of thresholds.
    """
    if how not in HARD + SOFT:
        raise ValueError(f"combine must be one of {HARD + SOFT}, got {how!r}")
    count = 1 if how in SOFT else len(maps)
    if len(thresholds) != count:
        raise ValueError(f"{how!r} of {len(maps)} maps takes {count} threshold(s), got {list(thresholds)}")
    if how in SOFT:
        return (maps.mean(axis=0) if how == "mean" else maps.prod(axis=0)) - thresholds[0]
    margins = maps - np.reshape(np.asarray(thresholds, dtype=maps.dtype), (-1, 1, 1, 1))
    if how == "or":
        return margins.max(axis=0)
    if how == "and":
        return margins.min(axis=0)
    sizes = (margins > 0).sum(axis=(1, 2))  # [N, D]
    chosen = sizes.argmin(axis=0) if how == "min" else sizes.argmax(axis=0)
    return np.take_along_axis(margins, chosen[None, None, None, :], axis=0)[0]


class MemberMaps:
    """The members' maps of a case as the combinations take them: inside the organ, bright parts only, normalized.

    Args:
        normalize: see `normalize_maps`.
        intensity_mask: see `bright_part`; None for all of the organ.
        image_channel: of the network's input, for the intensity mask.
        organ_channel: the last channel of the network's input is the organ mask.
    """

    def __init__(
        self,
        *,
        normalize: str = "slice",
        intensity_mask: float | None = None,
        image_channel: int = 0,
        organ_channel: bool = True,
    ) -> None:
        self.normalize = normalize
        self.intensity_mask = intensity_mask
        self.image_channel = image_channel
        self.organ_channel = organ_channel

    def __call__(self, pred: np.ndarray, image: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Maps `[N, H, W, D]` in [0, 1] and probabilities `[C, D]` from the inferer's `[N + C, H, W, D]`."""
        maps, probability = pred[:-classes], pred[-classes:, 0, 0, :]
        organ = image[-1] > 0.5 if self.organ_channel else np.ones(image.shape[1:], dtype=bool)
        maps = normalize_maps(maps * organ, self.normalize)
        if self.intensity_mask is not None:
            maps = maps * bright_part(image[self.image_channel], organ, self.intensity_mask)
        return maps, probability


class CombineMapsd(MapTransform):
    """Replace the members' maps by the combination's margin, as the class map that `MapsToMaskd` thresholds at 0.

    Args:
        keys: the inferer's output `[N + C, H, W, D]`; becomes `[2 C, H, W, D]`.
        classes: C.
        use: indices of the members that take part; None for all.
        combine, thresholds: `how` and `thresholds` of the function `combine`.
        table: name → `{"use", "how", "thresholds"}`: other combinations to be scored beside this one. Each adds
            `baseline_<name>`, its mask in the slices that pass `table_gate`.
        image_key: the network's input.
        table_gate: as `gate` in `MapsToMaskd`; that under which the rows' thresholds were fitted.
        maps: options of `MemberMaps`.

    Raises:
        ValueError: an unknown combination, or a number with which no mask would mean anything.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        classes: int = 2,
        use: Sequence[int] | None = None,
        combine: str = "and",
        thresholds: Sequence[float] = (0.5, 0.5),
        table: Mapping[str, Mapping[str, Any]] | None = None,
        image_key: str = "image",
        table_gate: float | None = 0.5,
        **maps: Any,
    ) -> None:
        super().__init__(keys)
        _refuse_unusable(combine, thresholds, table_gate=table_gate, intensity_mask=maps.get("intensity_mask"))
        self.classes = classes
        self.use = use
        self.combine = combine
        self.thresholds = list(thresholds)
        self.table = dict(table or {})
        self.image_key = image_key
        self.table_gate = table_gate
        self.maps = MemberMaps(**maps)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        image = data[self.image_key]
        for key in self.key_iterator(data):
            pred = torch.as_tensor(data[key]).cpu()
            maps, probability = self.maps(pred.numpy(), as_array(image), self.classes)
            margin = combine(_used(maps, self.use), self.thresholds, self.combine)
            evidence = torch.as_tensor(margin, dtype=torch.float32).expand(self.classes - 1, *margin.shape)
            data[key] = torch.cat([torch.zeros_like(evidence[:1]), evidence, pred[-self.classes :]])
            gated = gate_slices(probability, self.table_gate) > 0
            for name, row in self.table.items():
                mask = (combine(_used(maps, row["use"]), row["thresholds"], row["how"]) > 0) & gated
                data[f"baseline_{name}"] = like_image(image, mask[None].astype(np.uint8))
        return data


def _refuse_unusable(how: str, thresholds: Sequence[float], **shares: float | None) -> None:
    """A run is checked before it begins; a server of others builds the transform from a config that nobody has."""
    wrong = [] if how in HARD + SOFT else [f"combine must be one of {HARD + SOFT}, got {how!r}"]
    if not np.isfinite(np.asarray(thresholds, dtype=float)).all():
        wrong.append(f"thresholds must be finite numbers, got {list(thresholds)}")
    wrong += [f"{key} must lie in [0, 1], got {v}" for key, v in shares.items() if v is not None and not 0 <= v <= 1]
    if wrong:
        raise ValueError("; ".join(wrong))


def _used(maps: np.ndarray, use: Sequence[int] | None) -> np.ndarray:
    return maps if use is None else maps[list(use)]
