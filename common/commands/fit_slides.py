"""What `fit` finds and says where images are whole slides."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from tqdm import tqdm

from ..data import SECTIONS
from ..files import read_json
from ..images.pictures import SLIDE_SUFFIXES, TIFF, is_slide_file
from .fit_minutes import cases_of

LOOKED_AT = 5  # slides whose tiles are counted before anything is computed
# Seconds on two CPU cores: features of a tile, a tile in an epoch, a slide's maps and pictures, the start of a run.
TILE, TRAINED_TILE, SLIDE, RUN = 0.02, 0.003, 1.5, 10.0


@dataclass(frozen=True)
class Found:
    """What some slides of a data set are like.

    Attributes:
        suffixes: of all files, with how many there are.
        sizes: `[N, 2]` width and height in pixels.
        mpp: N, micrometers per pixel.
        tiles: N, that are kept.
        tile_um: side of a tile.
        tile_mpp: micrometers per pixel of a tile.
    """

    suffixes: Mapping[str, int]
    sizes: np.ndarray
    mpp: np.ndarray
    tiles: np.ndarray
    tile_um: float
    tile_mpp: float

    def __str__(self) -> str:
        files = ", ".join(f"{count} {suffix}" for suffix, count in self.suffixes.items())
        longest = self.sizes.max(axis=1)
        return (
            f"slides: {files}; {_span(self.mpp)} µm per pixel, longer side {_span(longest)} pixels; tiles of "
            f"{self.tile_um:g} µm at {self.tile_mpp:g} µm per pixel, {_span(self.tiles)} a slide "
            f"({len(self.tiles)} looked at)"
        )


def are_slides(content: Mapping[str, Any], dataset_dir: Path, *, flat: bool = False) -> bool:
    """Whether the images of a datalist are whole slides: by their files' names, of TIFF by what they hold.

    A TIFF that cannot be read is what the others are: it is named where it is used.

    Args:
        content: of the datalist.
        dataset_dir: what its paths are relative to.
        flat: TIFF without levels are slides as well.

    Raises:
        ValueError: some are and some are not.
    """
    first: dict[bool | None, str] = {}  # a case of each kind
    for case in cases_of(content):
        first.setdefault(_is_slide(dataset_dir, case["image"], flat), case["case"])
    if {True, False} <= first.keys():
        raise ValueError(
            f"case {first[True]!r} is a whole slide and {first[False]!r} is none: fit them one after the other (TIFF "
            "without levels are pictures; with --backend tifffile, or openslide, slides as well)"
        )
    return True in first


def found_slides(own: Path, content: Mapping[str, Any], dataset_dir: Path) -> Found:
    """Look at some slides, evenly drawn, as the bundle's own `wsi_inference.json` opens and tiles them.

    Raises:
        FileNotFoundError, ImportError, ValueError: see `scripts.slides.tiles.Tiler`.
    """
    cases = cases_of(content)
    some = np.unique(np.linspace(0, len(cases) - 1, LOOKED_AT).round().astype(int))
    config = read_json(own / "configs" / "wsi_inference.json")
    cells = max(1, config["tile_px"] // config["stride"])
    sizes, mpp, tiles = [], [], []
    with _scripts_of(own):
        tiler = _tiler(config)
        for number in some:
            tiled = tiler(str(dataset_dir / cases[number]["image"]), cells=cells)
            with tiled.slide as slide:
                sizes.append(slide.size)
                mpp.append(np.mean(slide.mpp))
                tiles.append(len(tiled.tiles))
    suffixes = Counter(_suffix(case["image"]) for case in cases)
    um = config["tile_px"] * config["mpp"]
    return Found(suffixes, np.array(sizes), np.array(mpp), np.array(tiles), um, config["mpp"])


def check_slides(own: Path, content: Mapping[str, Any], dataset_dir: Path) -> None:
    """Refuse slides of the test section that cannot be scored, before anything is trained: tissue is sought in each.

    Raises:
        ValueError: naming the cases, and what is wrong with the first three.
    """
    broken, cases = [], content.get("test") or []
    with _scripts_of(own):
        tiler = _tiler(read_json(own / "configs" / "wsi_inference.json"))
        for case in tqdm(cases, desc="reading the test section", unit="slide", leave=False, disable=None):
            try:
                tiler(str(dataset_dir / case["image"]), cells=1).slide.close()
            except (OSError, ValueError) as error:
                broken.append(f"{case['case']}: {error}")
    refuse_broken(broken, f"{len(broken)} of {len(cases)} slides of the test section")


def refuse_broken(broken: Sequence[str], which: str) -> None:
    """Stop where there are cases that cannot be read: their names, each with what is wrong.

    Raises:
        ValueError: naming the first three.
    """
    if broken:
        more = f"; … ({len(broken)})" if len(broken) > 3 else ""
        raise ValueError(
            f"{which} cannot be scored; mend them, or take them out, before anything is trained: "
            f"{'; '.join(broken[:3])}{more}"
        )


def minutes_of_slides(found: Found, content: Mapping[str, Any], train: Mapping[str, Any], rounds: int) -> int:
    """A guess, from what a tile costs with EfficientNet-Lite0: all steps of `fit` on two CPU cores."""
    tiles, cases, sections = found.tiles.mean(), len(cases_of(content)), [len(content.get(s) or []) for s in SECTIONS]
    draws = train.get("bags_per_epoch") or sections[0]
    epoch = (draws + sections[1]) * tiles * TRAINED_TILE
    written = cases + (sections[2] or sections[1])
    seconds = cases * tiles * TILE + (1 + rounds) * (train["max_epochs"] * epoch + 2 * RUN) + written * SLIDE + 2 * RUN
    return max(1, round(seconds / 60))


def summary_of_slides(folder: Path, section: str) -> str:
    """What labels say about each finding, and what outlines say where there are any."""
    scores = read_json(folder / "summary.json")
    lines = []
    for name, row in scores.get("labels", {}).items():
        auc = "n/a" if row["auc"] is None else f"{row['auc']:.3f}"
        auc += f" {row['auc_interval']}" if row["auc_interval"] else ""
        lines.append(
            f"{section}, from labels: {name}, AUC of slides {auc}; marked {row['positives_marked']} of "
            f"{row['positives']} with it and {row['negatives_marked']} of {row['negatives']} without, there "
            f"{100 * (row['tissue_in_negatives'] or 0):.2g} % of the tissue"
            + (f"; Dice of its outlines {row['dice']['mean']:.3f}" if "dice" in row else "")
        )
    if len(lines) > 1 and "auc_macro" in scores:
        lines.append(f"mean AUC over labels {scores['auc_macro']:.3f}")
    if "dice" in scores:
        dice = scores["dice"]
        lines.append(
            f"with outlines, which chose nothing: Dice {dice['mean']:.3f}, median {dice['median']:.3f}; "
            f"all tissue {scores['dice_tissue']['mean']:.3f}"
        )
    return "\n".join(lines)


@contextmanager
def _scripts_of(own: Path) -> Iterator[None]:
    """In the block, `scripts` is that of a bundle; another's is not there, and comes back."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}
    sys.path.insert(0, str(own))
    try:
        yield
    finally:
        sys.path.remove(str(own))
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.modules.update(before)


def _tiler(config: dict[str, Any]) -> Any:
    return ConfigParser(config=config).get_parsed_content("preprocessing")


def _suffix(image: Any) -> str:
    return Path(image).suffix.lower() if isinstance(image, str) else ""


def _is_slide(dataset_dir: Path, image: Any, flat: bool) -> bool | None:
    """Whether a file is a whole slide; None of a TIFF that cannot be read."""
    suffix = _suffix(image)
    if suffix not in TIFF or flat:
        return suffix in (*SLIDE_SUFFIXES, *TIFF)
    try:
        return is_slide_file(dataset_dir / image)
    except ValueError:
        return None


def _span(values: Sequence[float] | np.ndarray) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    texts = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)
