"""The GP family: one name a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .networks import GPEfficientNet, GPNet, GPUNet
from .recon_resnet import GPReconResNet
from .shuffle_unet import GPShuffleUNet

BACKBONES: dict[str, Callable[..., GPNet]] = {
    "gp_unet": GPUNet,
    "gp_shuffle_unet": GPShuffleUNet,
    "gp_recon_resnet": GPReconResNet,
    "gp_efficientnet": GPEfficientNet,
}


def gp_network(
    backbone: str,
    *,
    in_channels: int,
    num_classes: int,
    dropout: float,
    encoder_weights: str | None = None,
    spatial_dims: int = 2,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> GPNet:
    """A network of the family.

    Args:
        backbone: a key of `BACKBONES`.
        in_channels: image channels, without the organ channel.
        num_classes: classes, 0 = healthy.
        dropout: see the network.
        encoder_weights: of GPEfficientNet; the others have no encoder of their own.
        spatial_dims: 3: of stacks of slices, in place of slices; GPUNet alone has both forms.
        options: of that network alone: `features`, `upsample`, `width`, `blocks`, `input_mean` …;
            of all: `evidence_above`.
        kwargs: see `GPNet`.

    Raises:
        ValueError: unknown backbone, or an option or a form that it does not have.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {backbone!r}")
    network = BACKBONES[backbone]
    if spatial_dims != 2:
        if network is not GPUNet:
            raise ValueError(f"spatial_dims {spatial_dims}: {backbone} is of slices; take --backbone gp_unet")
        kwargs["spatial_dims"] = spatial_dims
    fixed = ("self", "in_channels", "num_classes", "dropout", "weights", "spatial_dims", "kwargs")
    known = [name for name in inspect.signature(network).parameters if name not in fixed] + ["evidence_above"]
    options = dict(options or {})
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"network_options: {backbone} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    if network is GPEfficientNet:
        options["weights"] = encoder_weights
    return network(in_channels=in_channels, num_classes=num_classes, dropout=dropout, **options, **kwargs)
