"""Slides as bags of stored features: for training, and so that inference finds what training has computed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.data import label_of, multi_hot
from common.features import Entry, EntryLocked, FeatureStore, case_files, file_key
from common.files import NotWritten, atomic_path

from .tiles import TiledSlide, Tiler

logger = logging.getLogger(__name__)


def grid_of(encoder: Any, tile_px: int) -> int:
    """Feature vectors along a side of a tile.

    Raises:
        ValueError: the grid is not square.
    """
    rows, columns = encoder.grid(tile_px, tile_px)
    if rows != columns:
        raise ValueError(f"slides need an encoder with a square grid; it gives {rows} × {columns} for a square tile")
    return rows


def stored_features(
    store: FeatureStore,
    case: Mapping[str, Any],
    tiled: TiledSlide,
    tiler: Tiler,
    encoder: Any,
    *,
    batch_size: int = 32,
    key: str | None = None,
) -> Entry:
    """Features of a slide's tiles, computed unless the store has them; an interrupted slide goes on where it stopped.

    Args:
        store: where they are kept.
        case: with the name and the file.
        tiled, tiler: the slide, and who chose its tiles.
        encoder: see `common.encoders.Encoder`.
        batch_size: tiles per forward.
        key: of the entry, where it is known already.

    Raises:
        EntryLocked, ValueError, NotWritten: see `FeatureStore.compute`.
    """
    key = key or file_key(encoder.fingerprint, case_files(case, ("image",)), tiler.recipe)
    about = {"case": case["case"], "files": [Path(case["image"]).name], "cell_um": tiled.grid.cell_um}
    return store.get(key) or store.compute(
        key,
        tiled.tiles,
        encoder,
        inside=tiled.inside(slice(None)),
        coordinates=tiled.tiles.coordinates,
        batch_size=batch_size,
        about=about,
    )


def slide_bags(
    cases: Sequence[Mapping[str, Any]],
    store: FeatureStore,
    tiler: Tiler,
    encoder: Any,
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    tiles_dir: str | Path | None = None,
    progress: bool = True,
    patience: float = 5.0,
) -> list[dict[str, Any]]:
    """Put the features of slides into a store; what is there already is not computed again.

    Args:
        cases: with `case`, `patient`, `image` and `cls`.
        store: where the features go.
        tiler: chooses tiles.
        encoder: of one tile.
        classes: names, the negative one first.
        device: where to compute.
        batch_size: tiles per forward.
        tiles_dir: where `<case>_tiles.png` goes, before a slide is encoded; None: nowhere.
        progress: show a bar.
        patience: seconds between looks at slides that other processes are at; they come last.

    Returns:
        The cases with `key` (of the entry in the store) and `labels` (`[K]` list of 0 and 1).

    Raises:
        ValueError: a case without `cls`.
        RuntimeError: (after all slides) some failed; the message lists them with the reasons.
        NotWritten: the disk is full.
    """
    labels = [multi_hot(label_of(case), classes) for case in cases]
    encoder = encoder.to(device)
    bags, failed, waiting = {}, {}, deque(enumerate(cases))
    with tqdm(total=len(cases), desc="slides", unit="slide", disable=not progress) as bar:
        while waiting:
            number, case = waiting.popleft()
            try:
                key = _encoded(case, store, tiler, encoder, batch_size, tiles_dir)
                bags[number] = {**case, "key": key, "labels": labels[number]}
            except EntryLocked:
                waiting.append((number, case))
                time.sleep(patience)
                continue
            except NotWritten:
                raise  # no other slide would fit either
            except Exception as error:
                failed[case["case"]] = f"{type(error).__name__}: {error}"
                logger.error("slide %s failed and is skipped: %s", case["case"], error)
            bar.update()
    if failed:
        lines = "\n".join(f"  {case}: {reason}" for case, reason in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(cases)} slides failed:\n{lines}")
    return [bags[number] for number in sorted(bags)]


def _encoded(
    case: Mapping[str, Any], store: FeatureStore, tiler: Tiler, encoder: Any, batch_size: int, folder: Any
) -> str:
    """The key of a slide's entry, which is computed where there is none."""
    key = file_key(encoder.fingerprint, case_files(case, ("image",)), tiler.recipe)
    if store.get(key) is None:
        tiled = tiler(case["image"], cells=grid_of(encoder, tiler.tile_px))
        with tiled.slide:
            if folder is not None:
                with atomic_path(Path(folder) / f"{case['case']}_tiles.png") as path:
                    tiled.picture().save(path, compress_level=1)  # stained tissue hardly packs
            stored_features(store, case, tiled, tiler, encoder, batch_size=batch_size, key=key)
    return key
