"""Pictures of cases for the page: the montages that a run left, smaller, and a thumbnail of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

SUFFIXES = ("montage.png", "overlay.png")  # of volumes and of slides
SIZES = ((1222, 82), (1222, 70), (960, 75), (760, 70), (600, 65), (440, 60), (320, 50))  # widths, JPEG's qualities
THUMBNAIL = 96  # pixels
COLUMNS = 6  # of a montage
BAR = 70  # pixels: its color bar


def find_picture(folder: Path, case: str) -> Path | None:
    """The picture that a run left of a case, if any."""
    return next((path for end in SUFFIXES if (path := folder / f"{case}_{end}").is_file()), None)


def picture(path: Path, most_bytes: int) -> str:
    """A picture as base64 of a JPEG, the largest of `SIZES` that needs no more bytes; else the smallest one."""
    image = Image.open(path).convert("RGB")
    for width, quality in SIZES:
        data = _jpeg(_narrowed(image, width), quality)
        if len(data) <= most_bytes:
            break
    return base64.b64encode(data).decode()


def thumbnail(path: Path) -> str:
    """A part of a picture as base64 of a JPEG: of a montage its fourth slice, of a slide all of it, both with heat."""
    image = Image.open(path).convert("RGB")
    if path.name.endswith(SUFFIXES[0]):
        width, height = (image.width - BAR) // COLUMNS, image.height // 2
        image = image.crop((3 * width, height, 4 * width, 2 * height))
    elif image.width > BAR:
        image = image.crop((0, image.height // 2, image.width - BAR, image.height))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return base64.b64encode(_jpeg(image, 75)).decode()


def pictures(paths: Iterable[Path], *, most_bytes: int) -> list[str]:
    """Pictures that together need about `most_bytes` at most, the more of them the smaller."""
    paths = list(paths)
    return [picture(path, most_bytes // max(len(paths), 1)) for path in paths]


def within(texts: Iterable[str], most_bytes: int) -> list[str]:
    """The first of texts of base64: as many as stand for no more than `most_bytes` together; no further one is made."""
    kept, left = [], most_bytes
    for text in texts:
        left -= size(text)
        if left < 0:
            break
        kept.append(text)
    return kept


def size(text: str) -> int:
    """Bytes that a text of base64 stands for, or up to two more."""
    return len(text) * 3 // 4


def _narrowed(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
