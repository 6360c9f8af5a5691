"""What the network sees of an axial slice, for explanations of its decision: the plane that inference takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from common.cam import View
from common.images import spacing_of
from common.radon import sample_planes

from .cells import maps_on_body
from .geometry import Body, crop_to_organ, overlapping_stacks
from .inferers import ToNNOInferer


class AxialPlanes:
    """The views of a network that gets axial slices as planes of `size` pixels over twice the radius.

    Args:
        inferer: whose `size`, `geometry`, `radius`, `organ_channel` and `stack` count. With stacks there is a view for
            each that holds the slice.
    """

    def __init__(self, inferer: ToNNOInferer) -> None:
        self.inferer = inferer

    def __call__(self, volume: Tensor, z: int) -> list[View]:
        """Views of the slice at `z` of a volume `[C + 1, D, H, W]`, a `MetaTensor` where the spacing is not 1 mm.

        Raises:
            ValueError: no plane goes through the slice, which lies beyond the organ.
        """
        spacing, volume = spacing_of(volume), volume.as_subclass(Tensor)
        views = []
        for part in overlapping_stacks(volume.shape[-1], self.inferer.stack):
            held = range(part.start, part.stop)
            body = crop_to_organ(volume[..., part], spacing, **self.inferer.body_options) if z in held else None
            if body is not None and z in (places := held[body.box[2]]):
                views.append(axial_view(body, places.index(z), volume.shape[1:3], self.inferer.size))
        if not views:
            raise ValueError(f"slice {z} lies beyond the organ: there is no plane through it")
        return views


def axial_view(body: Body, index: int, shape: Sequence[int], size: int) -> View:
    """The plane through one slice of a body as a view.

    Args:
        body: from which inference cuts.
        index: of the slice within the body.
        shape: `[D, H]` of the slices of the image that the body lies in.
        size: pixels of the plane's side.
    """
    x, y, _ = body.box
    inside = body.inside[..., index]

    def to_network(image: Tensor) -> Tensor:
        seen = (image[:, :, x, y] * inside).flatten(0, 1)[..., None]  # a volume of this slice, batch as channels
        normal, offset = seen.new_tensor([[0.0, 0.0, 1.0]]), seen.new_zeros(1)
        return sample_planes(seen, normal, offset, size=size, **body.extent)[0].unflatten(0, image.shape[:2])

    def to_slice(heat: Tensor) -> Tensor:
        whole = heat.new_zeros(tuple(shape))
        whole[x, y] = maps_on_body(heat[None], body, 2, size=size, first=0.0)[..., 0]
        return whole

    return View(to_network, to_slice)
