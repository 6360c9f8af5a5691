"""Mosaics, alone or side by side, with outlines and a table: `python -m benchmarks mosaics OUT LEFT RIGHT`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from common.files import write_csv


def lay_out_mosaics(output_dir: str, *folders: str, split: str = "training") -> None:
    """Join mosaics of folders from left to right (of one folder: copy), for `prepare table OUT/slides.csv`.

    Args:
        output_dir: gets pyramids, outlines (`<name>.xml`, groups named as labels), `slides.csv` (each call a split).
        folders: with `labels.csv` (label: `no`, `yes` or a name), pyramids of one size, and `truth/<name>.png`, a pixel
            a tile, 2 where the finding is.
        split: what the table says of them.

    Raises:
        ValueError: no folder, folders of other numbers of mosaics, or mosaics of other sizes side by side.
    """
    if not folders:
        raise ValueError("lay_out_mosaics needs a folder of mosaics, or several to join")
    out, rows = Path(output_dir), []
    out.mkdir(parents=True, exist_ok=True)
    for parts in zip(*(_rows(Path(folder) / "labels.csv") for folder in folders), strict=True):
        paths = [Path(folder) / part["image"] for folder, part in zip(folders, parts, strict=True)]
        labels = [part["label"] for part in parts]
        name, found = "_".join(path.stem for path in paths), sorted(set(labels) - {"no"})
        width = _join(paths, out / f"{name}.tif")
        ill = [i for i, label in enumerate(labels) if label != "no"]
        squares = [square for i in ill for square in _squares(paths[i], labels[i], i * width, width)]
        (out / f"{name}.xml").write_text(f"<ASAP_Annotations>{''.join(squares)}</ASAP_Annotations>", "utf-8")
        row = {"image": f"{name}.tif", "patient": name, "label": ";".join(found) or "no", "split": split}
        rows.append(row | {"mask": f"{name}.xml" if found else ""})
    table = out / "slides.csv"
    old = _rows(table) if table.is_file() else []
    write_csv(table, [*(row for row in old if row["split"] != split), *rows])


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def _join(paths: list[Path], target: Path) -> int:
    """Write a pyramid of those side by side; the width of one."""
    with tifffile.TiffFile(paths[0]) as file:
        first: Any = file.pages.first
        levels = len(file.pages)
        width, resolution = first.shape[1], first.get_resolution("CENTIMETER")
    if len(paths) == 1:
        target.write_bytes(paths[0].read_bytes())
        return width
    for path in paths[1:]:
        with tifffile.TiffFile(path) as other:
            if (len(other.pages), other.pages.first.shape) != (levels, first.shape):
                raise ValueError(f"{path} has another size or number of levels than {paths[0]}: they cannot be joined")
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    options |= {"compression": "jpeg", "compressionargs": {"level": 85}, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(target, bigtiff=True) as writer:
        for level in range(levels):
            page = np.concatenate([tifffile.imread(path, key=level) for path in paths], axis=1)
            options["resolution"] = [n / 2**level for n in resolution]
            writer.write(page, subfiletype=int(level > 0), **options)
    return width


def _squares(path: Path, label: str, left: int, width: int) -> list[str]:
    """Each tile with the finding as ASAP writes polygons."""
    truth = np.asarray(Image.open(path.parent / "truth" / f"{path.stem}.png"))
    side, squares = width // truth.shape[1], []
    for y, x in side * np.argwhere(truth == 2):
        corners = enumerate([(x, y), (x + side, y), (x + side, y + side), (x, y + side)])
        points = "".join(f'<Coordinate Order="{i}" X="{left + a}" Y="{b}"/>' for i, (a, b) in corners)
        squares.append(f'<Annotation PartOfGroup="{label}"><Coordinates>{points}</Coordinates></Annotation>')
    return squares
