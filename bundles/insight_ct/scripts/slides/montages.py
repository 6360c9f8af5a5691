"""Pictures of validation slides while a network learns, from features that training has stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import nn

from common.features import FeatureStore

from .inference import SlideInferer
from .output import overlay
from .tiles import Tiler


class SlideMontages:
    """The `inferer` of `common.handlers.ValidationMontages` for slides: the slide, and below it the heat over it.

    Args:
        tiler, batch_size: see `SlideInferer`.
        store: with the features of the slides.
        longest: pixels of the slide's longer side.
    """

    def __init__(self, tiler: Tiler, *, store: FeatureStore, batch_size: int = 32, longest: int = 480) -> None:
        self.inferer = SlideInferer(tiler, batch_size=batch_size, store=store, truth=False)
        self.longest = longest

    def montage(self, case: Mapping[str, Any], network: nn.Module) -> Image.Image:
        """Slide and heat of a case; no outline, since no threshold is chosen yet."""
        try:
            result = self.inferer(case, network)
            return overlay(result.tiled, result.heat, None, longest=self.longest)
        finally:
            self.inferer.close()
