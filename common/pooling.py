"""Pooling of a map of any spatial rank to one number per channel, optionally inside a mask.

All functions take maps `[B, C, *spatial]` and return `[B, C]` in at least float32. A mask `[B, 1, *spatial]`
restricts the pool to the positions where it is above 0.5. A sample whose mask is empty pools to 0 with zero gradient.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn


def _flatten(maps: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the shapes; return the maps `[B, C, N]` in at least float32 and the mask, bool `[B, 1, N]`."""
    if maps.dim() < 3 or 0 in maps.shape[2:]:
        raise ValueError(f"maps must be [B, C, *spatial] with at least one position; got shape {list(maps.shape)}")
    flat = maps.flatten(2)
    if flat.dtype != torch.float64:
        flat = flat.float()  # half precision overflows in sums and exponentials
    if mask is None:
        return flat, torch.ones_like(flat[:, :1], dtype=torch.bool)
    expected = [maps.shape[0], 1] + list(maps.shape[2:])  # noqa: RUF005 (TorchScript has no unpacking in lists)
    if list(mask.shape) != expected:
        raise ValueError(
            f"mask must have shape {expected} to go with maps of shape {list(maps.shape)}; got {list(mask.shape)}"
        )
    return flat, mask.flatten(2) > 0.5


def _check_alpha(alpha: float) -> None:
    if not (0.0 <= alpha < math.inf):
        raise ValueError(f"alpha must be finite and not negative; got {alpha}. For the exact maximum use 'max'")


def _smooth_max(maps: torch.Tensor, mask: torch.Tensor | None, alpha: float) -> torch.Tensor:
    _check_alpha(alpha)
    flat, inside = _flatten(maps, mask)
    values = flat.masked_fill(~inside, 0.0)
    # A very negative finite number, not -inf: the softmax of an empty mask would be NaN, and so its gradient.
    weights = (alpha * values).masked_fill(~inside, -3.0e38).softmax(dim=-1)
    return (weights * values).sum(dim=-1)


def _top_fraction(maps: torch.Tensor, mask: torch.Tensor | None, fraction: float) -> torch.Tensor:
    if not (0.0 < fraction <= 1.0):
        raise ValueError(f"fraction must be in (0, 1]; got {fraction}")
    flat, inside = _flatten(maps, mask)
    area = inside.sum(dim=-1, keepdim=True)
    # No sample needs more than a full mask would: a bound known from the shape, so the device is not synchronized.
    most = max(1, int(fraction * inside.shape[-1] + 0.5))
    count = (fraction * area + 0.5).floor().clamp(min=1, max=most)
    largest = flat.masked_fill(~inside, -math.inf).topk(most, dim=-1)[0]
    chosen = torch.arange(most, device=maps.device) < torch.minimum(count, area)
    return largest.masked_fill(~chosen, 0.0).sum(dim=-1) / count[..., 0]


def global_max_pool(maps: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pool to the largest value (GP-UNet).

    Args:
        maps: `[B, C, *spatial]`.
        mask: `[B, 1, *spatial]`, bool or float; positions above 0.5 count.

    Returns:
        `[B, C]`; 0 where the mask is empty.

    Raises:
        ValueError: if the maps have no spatial axis, or the mask has another shape.
    """
    flat, inside = _flatten(maps, mask)
    largest = flat.masked_fill(~inside, -math.inf).max(dim=-1)[0]
    return torch.where(inside.any(dim=-1), largest, torch.zeros_like(largest))


def global_avg_pool(maps: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pool to the mean.

    Args:
        maps: `[B, C, *spatial]`.
        mask: `[B, 1, *spatial]`, bool or float; positions above 0.5 count.

    Returns:
        `[B, C]`; 0 where the mask is empty.

    Raises:
        ValueError: if the maps have no spatial axis, or the mask has another shape.
    """
    flat, inside = _flatten(maps, mask)
    total = flat.masked_fill(~inside, 0.0).sum(dim=-1)
    return total / inside.sum(dim=-1).clamp(min=1)


def smooth_max_pool(maps: torch.Tensor, mask: torch.Tensor | None = None, *, alpha: float = 8.0) -> torch.Tensor:
    """Pool to the softmax-weighted sum `sum_i softmax(alpha * H)_i * H_i` (INSIGHT, Eq. 5).

    It tends to the mean as alpha → 0 and to the maximum as alpha → ∞. At a given alpha a few hot positions are diluted
    by many cold ones: at alpha = 8, 15 saturated cells of 43,808 (32 slices of 37 × 37 tokens), all others 0, give
    0.505. A lesion that is smaller than that cannot reach a probability of 0.5 unless alpha grows or a mask shrinks
    the pool.

    Args:
        maps: `[B, C, *spatial]`.
        mask: `[B, 1, *spatial]`, bool or float; positions above 0.5 count.
        alpha: sharpness, finite and not negative, in units of 1 / map value.

    Returns:
        `[B, C]`; 0 where the mask is empty.

    Raises:
        ValueError: if the maps have no spatial axis, the mask has another shape, or alpha is out of range.
    """
    return _smooth_max(maps, mask, alpha)


def top_fraction_pool(maps: torch.Tensor, mask: torch.Tensor | None = None, *, fraction: float = 0.03) -> torch.Tensor:
    """Pool to the mean of the largest values: between max (one position) and average (`fraction = 1`).

    The number of positions is `fraction` times the sample's own mask area, rounded, and at least 1.

    Args:
        maps: `[B, C, *spatial]`.
        mask: `[B, 1, *spatial]`, bool or float; positions above 0.5 count.
        fraction: share of the (masked) positions, in (0, 1].

    Returns:
        `[B, C]`; 0 where the mask is empty.

    Raises:
        ValueError: if the maps have no spatial axis, the mask has another shape, or the fraction is out of range.
    """
    return _top_fraction(maps, mask, fraction)


class SmoothMax(nn.Module):
    """`smooth_max_pool` as a layer: between the mean (alpha → 0) and the maximum (alpha → ∞) (INSIGHT, Eq. 5).

    Args:
        alpha: sharpness, finite and not negative, in units of 1 / map value.

    Raises:
        ValueError: if alpha is out of range.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0, 2.0]]])
        >>> SmoothMax(alpha=0.0)(maps)
        tensor([[1.]])
        >>> SmoothMax(alpha=8.0)(maps, mask=maps < 2)
        tensor([[0.9997]])
    """

    def __init__(self, alpha: float = 8.0) -> None:
        super().__init__()
        _check_alpha(alpha)
        self.alpha = float(alpha)

    def forward(self, maps: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool `[B, C, *spatial]` to `[B, C]` inside the mask `[B, 1, *spatial]`."""
        return _smooth_max(maps, mask, self.alpha)

    def extra_repr(self) -> str:
        """Show alpha."""
        return f"alpha={self.alpha}"


POOLINGS = {
    "max": global_max_pool,
    "avg": global_avg_pool,
    "smooth_max": smooth_max_pool,
    "top_fraction": top_fraction_pool,
}


class GlobalPool(nn.Module):
    """A pooling chosen by name, for configs; a thin wrapper over `POOLINGS` that TorchScript can compile.

    Args:
        name: a key of `POOLINGS`.
        **options: keyword options of that function (`alpha`, `fraction`).

    Raises:
        ValueError: if there is no such pooling, or it has no such option.

    Example:
        >>> GlobalPool("smooth_max", alpha=4.0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, name: str, **options: float) -> None:
        super().__init__()
        if name not in POOLINGS:
            raise ValueError(f"unknown pooling {name!r}; choose one of {sorted(POOLINGS)}")
        parameters = inspect.signature(POOLINGS[name]).parameters.values()
        known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"pooling {name!r} has no option {unknown}; its options are {sorted(known)}")
        known.update(options)
        self.name = name
        self.alpha = float(known.get("alpha", 0.0))
        self.fraction = float(known.get("fraction", 1.0))

    def forward(self, maps: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool `[B, C, *spatial]` to `[B, C]` inside the mask `[B, 1, *spatial]`."""
        # A chain, not a look-up in POOLINGS: TorchScript cannot hold a function in an attribute.
        if self.name == "max":
            return global_max_pool(maps, mask)
        if self.name == "avg":
            return global_avg_pool(maps, mask)
        if self.name == "smooth_max":
            return _smooth_max(maps, mask, self.alpha)
        return _top_fraction(maps, mask, self.fraction)

    def extra_repr(self) -> str:
        """Show the name and the option in use."""
        option = {"smooth_max": f", alpha={self.alpha}", "top_fraction": f", fraction={self.fraction}"}
        return repr(self.name) + option.get(self.name, "")


class RunningPool:
    """Pool a map that comes in chunks: what one pass over all of it gives, in memory that does not grow.

    The sums are kept relative to the largest value so far and in float64 on the CPU, so neither sharpness nor the
    number of chunks costs accuracy. For inference: no gradient flows.

    Args:
        name: `smooth_max`, `max` or `avg`; `top_fraction` needs all values at once.
        alpha: sharpness of `smooth_max`, finite and not negative.

    Raises:
        ValueError: if the pooling cannot run, or alpha is out of range.

    Example:
        >>> pool = RunningPool("avg")
        >>> for chunk in (torch.zeros(1, 1, 6), torch.ones(1, 1, 2)):
        ...     pool.update(chunk)
        >>> pool.compute()
        tensor([[0.2500]])
    """

    def __init__(self, name: str = "smooth_max", *, alpha: float = 8.0) -> None:
        if name not in ("smooth_max", "max", "avg"):
            raise ValueError(f"pooling {name!r} cannot run over chunks; choose 'smooth_max', 'max' or 'avg'")
        _check_alpha(alpha)
        self.name = name
        self.alpha = alpha if name == "smooth_max" else 0.0  # the mean is the SmoothMax of alpha = 0
        self._peak, self._weight, self._sum = torch.zeros(0), torch.zeros(0), torch.zeros(0)

    @torch.no_grad()
    def update(self, maps: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add a chunk `[B, C, *spatial]`, inside the mask `[B, 1, *spatial]`; it may hold no position at all.

        Raises:
            ValueError: if maps and mask do not go together, or B or C changed.
        """
        if 0 in maps.shape[2:]:
            return
        flat, inside = _flatten(maps, mask)
        values = flat.masked_fill(~inside, 0.0)
        peak = flat.masked_fill(~inside, -3.0e38).amax(dim=-1)
        weights = (self.alpha * (values - peak[..., None])).exp().masked_fill(~inside, 0.0)
        weight, total = weights.sum(dim=-1).cpu().double(), (weights * values).sum(dim=-1).cpu().double()
        peak = peak.cpu().double()
        if not len(self._peak):
            self._peak, self._weight, self._sum = peak, weight, total
            return
        if peak.shape != self._peak.shape:
            raise ValueError(f"chunks must agree in [B, C]; got {list(peak.shape)} after {list(self._peak.shape)}")
        highest = torch.maximum(self._peak, peak)
        before, now = (self.alpha * (self._peak - highest)).exp(), (self.alpha * (peak - highest)).exp()
        self._weight = before * self._weight + now * weight
        self._sum = before * self._sum + now * total
        self._peak = highest

    def compute(self) -> torch.Tensor:
        """The pool of all chunks so far, float32 `[B, C]` on the CPU; 0 where every mask was empty.

        Raises:
            RuntimeError: if no chunk had a position.
        """
        if not len(self._peak):
            raise RuntimeError("nothing to pool: call update with at least one position first")
        pooled = self._peak if self.name == "max" else self._sum / self._weight.clamp(min=1e-30)
        return torch.where(self._weight > 0, pooled, torch.zeros_like(pooled)).float()
