"""One picture per case: the slices through the strongest heat, with contours and a shared color bar."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw
from skimage.transform import resize

from ..images import LPS_TO_RAS, in_axes_of

MASK_COLOR = (0, 229, 255)
TRUTH_COLOR = (255, 176, 0)  # as in the viewer of reports; green is not told from cyan by all eyes


def draw_montage(
    image: np.ndarray,
    heatmap: np.ndarray,
    mask: np.ndarray | None,
    truth: np.ndarray | None = None,
    *,
    affine: np.ndarray,
    columns: int = 6,
    height: int = 192,
    slices: Sequence[int] | None = None,
) -> Image.Image:
    """Axial slices (radiological view), above as they are with contours, below with the heatmap over them.

    Args:
        image, heatmap, mask, truth: `[H, W, D]` on one grid; mask and ground truth, where there are any, are outlined
            in cyan and amber.
        affine: of that grid, RAS+ mm; it decides what is shown as axial and which way is up.
        columns: number of slices.
        height: of one panel in pixels.
        slices: which, counted from below; by default `columns` that are spread over heat and mask.

    Returns:
        An RGB picture; the color bar spans 0 to the largest heat of the volume (magma, never inverted).
    """
    values = image.ravel(order="K")  # in the order of memory, and of large images a part: much faster
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], [1, 99.8])
    outlines = [np.zeros(image.shape, bool) if region is None else region > 0 for region in (mask, truth)]
    volumes = [image, heatmap, *outlines]
    # To left, posterior, superior: transposed later, this shows the patient's right on the left.
    image, heat, shown_mask, shown_truth = (in_axes_of(volume, affine, LPS_TO_RAS)[0] for volume in volumes)
    spacing = nib.affines.voxel_sizes(in_axes_of(volumes[0], affine, LPS_TO_RAS)[1])
    width = max(1, round(height * spacing[0] * image.shape[0] / (spacing[1] * image.shape[1])))
    peak = max(float(heat.max()), 0.0)
    rows: list[list[np.ndarray]] = [[], []]
    for z in _strongest((heat > 0) | shown_mask, columns) if slices is None else slices:
        gray = np.clip((_panel(image[..., z], height, width) - low) / max(high - low, 1e-6), 0, 1)
        plain = np.repeat(gray[..., None], 3, axis=-1)
        warmth = _panel(np.maximum(heat[..., z], 0), height, width) / peak if peak > 0 else np.zeros_like(gray)
        opacity = 0.65 * np.clip(warmth * 2, 0, 1)[..., None]
        colored = (1 - opacity) * plain + opacity * matplotlib.colormaps["magma"](warmth)[..., :3]
        rows[0].append(_outlined(plain, shown_mask[..., z], shown_truth[..., z], height, width))
        rows[1].append((255 * colored).astype(np.uint8))
    canvas = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    return with_colorbar(canvas, peak, truth is not None, has_mask=mask is not None)


def _strongest(shown: np.ndarray, count: int) -> np.ndarray:
    """`count` slices spread evenly over those that hold something, or over the volume when none does."""
    present = np.flatnonzero(shown.any(axis=(0, 1)))
    if len(present) == 0:
        present = np.arange(shown.shape[2])
    return present[np.linspace(0, len(present) - 1, count).round().astype(int)]


def _panel(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    return resize(plane.T.astype(np.float32), (height, width), order=1, anti_aliasing=False)


def _outlined(plain: np.ndarray, mask: np.ndarray, truth: np.ndarray, height: int, width: int) -> np.ndarray:
    from skimage.segmentation import find_boundaries  # 0.3 s to import, for pictures only

    rgb = (255 * plain).astype(np.uint8)
    for region, color in ((truth, TRUTH_COLOR), (mask, MASK_COLOR)):
        rgb[find_boundaries(_panel(region, height, width) > 0.5, mode="inner")] = color
    return rgb


def with_colorbar(canvas: np.ndarray, peak: float, has_truth: bool, *, has_mask: bool = True) -> Image.Image:
    """The picture `[H, W, 3]` with a bar of the heat from 0 to `peak` and the names of the outlines at its right."""
    bar, margin = 12, 70
    picture = Image.new("RGB", (canvas.shape[1] + margin, canvas.shape[0]))
    picture.paste(Image.fromarray(canvas))
    ramp = matplotlib.colormaps["magma"](np.linspace(1, 0, canvas.shape[0] // 2 - 20))[:, None, :3]
    picture.paste(
        Image.fromarray((255 * np.repeat(ramp, bar, axis=1)).astype(np.uint8)),
        (canvas.shape[1] + 6, canvas.shape[0] // 2 + 10),
    )
    draw = ImageDraw.Draw(picture)
    x = canvas.shape[1] + 6
    draw.text((x + bar + 4, canvas.shape[0] // 2 + 6), f"{peak:.2g}", fill="white")
    draw.text((x + bar + 4, canvas.shape[0] - 20), "0", fill="white")
    if has_mask:
        draw.text((x, 8), "mask", fill=MASK_COLOR)
    if has_truth:
        draw.text((x, 24), "truth", fill=TRUTH_COLOR)
    return picture
